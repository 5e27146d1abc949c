//! Makes this broker known to the cluster, and the cluster's brokers known to
//! the transport. One task on every broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::{info, warn};

use super::Metadata;
use super::command::{Command, Reply};
use super::image::{BrokerRegistration, Image};

/// Pause after a registration that did not succeed.
const RETRY: Duration = Duration::from_millis(250);

/// Registers this broker whenever the image does not show it as it is.
pub(super) async fn run(metadata: Arc<Metadata>) {
    let mut image = metadata.watch();
    let mut peers_known = Vec::new();
    loop {
        let now = image.borrow_and_update().clone();
        let peers = peers(&metadata, &now);
        if peers != peers_known {
            metadata.raft.set_peers(peers.clone());
            peers_known = peers;
        }
        let registered = now.cluster_id.is_nil() || register(&metadata, &now).await;
        if !registered {
            sleep(RETRY).await;
        } else if image.changed().await.is_err() {
            return;
        }
    }
}

/// The configured brokers, and those that joined later.
fn peers(metadata: &Metadata, image: &Image) -> Vec<(u32, std::net::SocketAddr)> {
    let mut peers: BTreeMap<u32, _> = image
        .brokers
        .iter()
        .map(|(&id, broker)| (id, broker.peer_address))
        .collect();
    peers.extend(metadata.settings.peers.iter().copied());
    peers.into_iter().collect()
}

/// Whether the image shows this broker as it is; if not, tries to change that.
async fn register(metadata: &Metadata, image: &Image) -> bool {
    let Some(wanted) = wanted(metadata) else {
        return false;
    };
    let broker = wanted.replica.broker;
    if let Some(known) = image.brokers.get(&broker)
        && (BrokerRegistration {
            fenced: wanted.fenced,
            ..(**known).clone()
        }) == wanted
    {
        return true;
    }
    match metadata.submit(Command::RegisterBroker(wanted)).await {
        Ok(Reply::Done) => {
            info!(broker, "registered with the cluster");
            true
        }
        Ok(reply) => {
            warn!(broker, ?reply, "registration refused, trying again");
            false
        }
        Err(error) => {
            warn!(broker, %error, "not registered yet, trying again");
            false
        }
    }
}

/// This broker as it should be registered.
fn wanted(metadata: &Metadata) -> Option<BrokerRegistration> {
    let replica = metadata.raft.replica();
    let itself = metadata
        .raft
        .peers()
        .into_iter()
        .find(|peer| peer.broker == replica.broker)?;
    let settings = &metadata.settings;
    Some(BrokerRegistration {
        replica,
        incarnation: itself.incarnation,
        host: settings.advertised.0.clone(),
        port: settings.advertised.1,
        peer_address: settings.peer_address,
        rack: settings.rack.clone(),
        fenced: false,
    })
}
