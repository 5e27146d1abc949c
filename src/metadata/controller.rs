//! The controller: what the leader of the metadata group does by itself.
//!
//! One task on every broker, active only while that broker leads: it gives a
//! new cluster its id, fences brokers that are dead and unfences those that are
//! back, and places the coordinator groups. It decides from the image and from
//! what the transport says of peers; all it does goes through the log.

use std::sync::Arc;
use std::time::Duration;

use drave_raft::PeerStatus;
use tokio::time::{Instant, interval};
use tracing::{info, warn};
use uuid::Uuid;

use super::Metadata;
use super::command::{Command, Reply};
use super::image::Image;
use super::placement::{self, REPLICATION_FACTOR_DEFAULT_MAX};

/// A new leader first lets its peers say hello before it calls them dead.
const FENCING_GRACE: Duration = Duration::from_millis(1_000);
/// Coordinators are placed without the brokers that have not come by then.
const COORDINATORS_WAIT: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);

/// Acts whenever the image or a peer has changed, and now and then.
pub(super) async fn run(metadata: Arc<Metadata>) {
    let mut image = metadata.watch();
    let mut peers = metadata.raft.watch_peers();
    let mut tick = interval(TICK);
    let mut leading_since: Option<Instant> = None;
    loop {
        tokio::select! {
            changed = image.changed() => if changed.is_err() { return },
            changed = peers.changed() => if changed.is_err() { return },
            _ = tick.tick() => {}
        }
        if metadata.leading().is_none() {
            leading_since = None;
            continue;
        }
        let since = *leading_since.get_or_insert_with(Instant::now);
        let statuses = peers.borrow_and_update().clone();
        image.borrow_and_update();
        for command in decide(&metadata, &metadata.image(), &statuses, since.elapsed()) {
            carry_out(&metadata, command).await;
        }
    }
}

async fn carry_out(metadata: &Metadata, command: Command) {
    match &command {
        Command::FormCluster { cluster_id } => info!(%cluster_id, "giving the cluster its id"),
        Command::FenceBroker { broker, .. } => warn!(broker, "broker is dead, fencing it"),
        Command::UnfenceBroker { broker, .. } => info!(broker, "broker is back, unfencing it"),
        Command::CreateCoordinators { replicas } => {
            info!(groups = replicas.len(), "placing the coordinator groups");
        }
        _ => {}
    }
    match metadata.submit(command).await {
        Ok(Reply::Refused(refusal)) => warn!(%refusal, "the controller was overtaken"),
        Ok(_) => {}
        Err(error) => warn!(%error, "the controller could not make its change"),
    }
}

/// What is to be done now.
fn decide(
    metadata: &Metadata,
    image: &Image,
    peers: &[PeerStatus],
    leading_for: Duration,
) -> Vec<Command> {
    if image.cluster_id.is_nil() {
        return vec![Command::FormCluster {
            cluster_id: Uuid::new_v4(),
        }];
    }
    let mut commands = fencing(image, peers, leading_for >= FENCING_GRACE);
    let settings = &metadata.settings;
    let configured: Vec<u32> = settings.peers.iter().map(|(id, _)| *id).collect();
    let late = leading_for >= COORDINATORS_WAIT;
    commands.extend(coordinators(
        image,
        &configured,
        settings.coordinator_groups,
        late,
    ));
    commands
}

/// Brokers whose liveness the image has wrong.
fn fencing(image: &Image, peers: &[PeerStatus], may_fence: bool) -> Vec<Command> {
    let mut commands = Vec::new();
    for (&broker, known) in &image.brokers {
        let peer = peers.iter().find(|peer| peer.broker == broker);
        let incarnation = known.incarnation;
        // A process that restarted says so itself, by registering again.
        let alive = peer.is_some_and(|peer| peer.alive && peer.incarnation == incarnation);
        if !alive && !known.fenced && may_fence {
            commands.push(Command::FenceBroker {
                broker,
                incarnation,
            });
        }
        if alive && known.fenced {
            commands.push(Command::UnfenceBroker {
                broker,
                incarnation,
            });
        }
    }
    commands
}

/// The coordinators' placement, once it can be decided for good.
fn coordinators(image: &Image, configured: &[u32], groups: usize, late: bool) -> Option<Command> {
    let registered = |id: &&u32| image.brokers.get(id).is_some_and(|broker| !broker.fenced);
    let there = configured.iter().filter(registered).count();
    let factor = configured.len().min(REPLICATION_FACTOR_DEFAULT_MAX);
    let enough = there == configured.len() || (late && there >= factor);
    if !image.coordinators.is_empty() || !enough {
        return None;
    }
    let mut candidates = placement::candidates(image);
    let replicas = placement::place(&mut candidates, groups, factor).ok()?;
    Some(Command::CreateCoordinators { replicas })
}

#[cfg(test)]
mod tests {
    use drave_raft::ReplicaId;

    use super::*;
    use crate::metadata::image::BrokerRegistration;

    fn image(brokers: &[(u32, bool)]) -> Image {
        let registration = |&(broker, fenced): &(u32, bool)| {
            let registration = BrokerRegistration {
                replica: ReplicaId {
                    broker,
                    directory: 1,
                },
                incarnation: 7,
                host: "localhost".into(),
                port: 1,
                peer_address: "127.0.0.1:1".parse().unwrap(),
                rack: None,
                fenced,
            };
            (broker, Arc::new(registration))
        };
        Image {
            brokers: brokers.iter().map(registration).collect(),
            ..Image::default()
        }
    }

    fn peer(broker: u32, alive: bool, incarnation: u64) -> PeerStatus {
        PeerStatus {
            broker,
            replica: None,
            alive,
            incarnation,
            sync_age_ms: 0,
        }
    }

    #[test]
    fn dead_brokers_are_fenced_and_those_that_return_are_unfenced() {
        let image = image(&[(1, false), (2, false), (3, true), (4, true)]);
        let peers = [
            peer(1, true, 7),
            peer(2, false, 7),
            peer(3, true, 7),
            peer(4, false, 7),
        ];
        let fence = Command::FenceBroker {
            broker: 2,
            incarnation: 7,
        };
        let unfence = Command::UnfenceBroker {
            broker: 3,
            incarnation: 7,
        };
        assert_eq!(fencing(&image, &peers, true), [fence, unfence.clone()]);
        assert_eq!(
            fencing(&image, &peers, false),
            [unfence],
            "a new leader waits"
        );
    }

    #[test]
    fn a_restarted_broker_is_fenced_until_it_registers_again() {
        let peers = [peer(1, true, 8)];
        let fence = Command::FenceBroker {
            broker: 1,
            incarnation: 7,
        };
        assert_eq!(fencing(&image(&[(1, false)]), &peers, true), [fence]);
        assert_eq!(fencing(&image(&[(1, true)]), &peers, true), []);
    }

    #[test]
    fn coordinators_wait_for_the_configured_brokers_but_not_forever() {
        let placed = |brokers: &[(u32, bool)], configured: &[u32], late| match coordinators(
            &image(brokers),
            configured,
            8,
            late,
        ) {
            Some(Command::CreateCoordinators { replicas }) => {
                assert_eq!(replicas.len(), 8);
                Some(replicas[0].len())
            }
            None => None,
            other => panic!("{other:?}"),
        };
        assert_eq!(placed(&[(1, false)], &[1], false), Some(1));
        assert_eq!(placed(&[(1, false), (2, false)], &[1, 2, 3], false), None);
        assert_eq!(
            placed(&[(1, false), (2, false)], &[1, 2, 3], true),
            None,
            "never fewer copies"
        );
        assert_eq!(
            placed(&[(1, false), (2, false), (3, false)], &[1, 2, 3], false),
            Some(3)
        );
        let four = [(1, false), (2, false), (3, false), (4, true)];
        assert_eq!(placed(&four, &[1, 2, 3, 4], false), None);
        assert_eq!(placed(&four, &[1, 2, 3, 4], true), Some(3));
    }
}
