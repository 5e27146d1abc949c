//! Opening the metadata group, and forming it when the cluster is new.
//!
//! A broker that holds anything of the group just opens it. Otherwise it waits
//! to be added by the leader, but for one: the voter with the lowest id forms
//! the group once every voter of the static configuration is connected and says
//! that it holds nothing either. Only that broker ever does, and it keeps its
//! replica closed until it knows: an empty disk never votes as its predecessor.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_raft::{GroupSpec, ReplicaId};
use drave_storage::SharedStore;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use super::image::{Image, METADATA_GROUP};
use super::machine::MetadataMachine;
use super::{ClusterFormed, Metadata};

/// Number of the service that says whether a broker's metadata group is empty.
pub const BOOTSTRAP_SERVICE: u8 = 2;
/// Bytes of log after which the image is checkpointed.
const CHECKPOINT_BYTES: u64 = 1 << 20;
const POLL: Duration = Duration::from_millis(50);
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often a broker that waits for others says so.
const REMIND: Duration = Duration::from_secs(10);
/// Answers of the service, the first byte being the format.
const EMPTY: &[u8] = &[1, 0];
const NOT_EMPTY: &[u8] = &[1, 1];

/// The brokers that vote in the metadata group: three of up to four, five of more.
pub fn voter_ids(peers: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let ids: BTreeSet<u32> = peers.into_iter().collect();
    let count = match ids.len() {
        0..=2 => ids.len(),
        3..=4 => 3,
        _ => 5,
    };
    ids.into_iter().take(count).collect()
}

/// Opens the group if that can be done at once; the future returned does what is left.
pub(super) async fn open(
    metadata: &Arc<Metadata>,
    store: SharedStore,
    published: watch::Sender<Arc<Image>>,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let held = tokio::task::spawn_blocking(move || store.open_group(METADATA_GROUP)).await??;
    let empty = held.last.is_none() && held.vote.is_none() && held.checkpoints.is_empty();
    serve(metadata, empty);
    let voters = voter_ids(metadata.settings.peers.iter().map(|(id, _)| *id));
    let me = metadata.raft.replica();
    let forms = empty && voters.first() == Some(&me.broker);
    let mut sender = Some(published);
    if !forms || voters.len() == 1 {
        let first_voters = if forms { vec![me] } else { Vec::new() };
        if let Some(published) = sender.take() {
            open_with(metadata, first_voters, published).await?;
        }
    }
    let metadata = metadata.clone();
    Ok(async move {
        if let Some(published) = sender {
            let first_voters = wait_for_voters(&metadata, &voters).await;
            if let Err(error) = open_with(&metadata, first_voters, published).await {
                error!(%error, "the metadata group can't be opened");
            }
        }
    })
}

async fn open_with(
    metadata: &Metadata,
    voters: Vec<ReplicaId>,
    published: watch::Sender<Arc<Image>>,
) -> anyhow::Result<()> {
    let spec = GroupSpec {
        group: METADATA_GROUP,
        voters,
        checkpoint_bytes: CHECKPOINT_BYTES,
        purge_behind_checkpoints: Some(1),
        // Every broker answers from its own image: it has to be the newest.
        commit_notice_wait: Duration::ZERO,
    };
    metadata
        .raft
        .open_group(spec, Box::new(MetadataMachine::new(published)))
        .await?;
    Ok(())
}

/// Tells others whether this broker holds anything of the metadata group.
fn serve(metadata: &Arc<Metadata>, empty_at_start: bool) {
    let weak = Arc::downgrade(metadata);
    metadata.raft.serve(
        BOOTSTRAP_SERVICE,
        Arc::new(move |_, _| {
            let group = weak.upgrade().and_then(|metadata| metadata.group());
            let status = group.map(|group| group.status()).unwrap_or_default();
            let untouched = status.last_index.is_none() && status.leadership.is_none();
            let answer = if empty_at_start && untouched {
                EMPTY
            } else {
                NOT_EMPTY
            };
            Box::pin(async move { Bytes::from_static(answer) })
        }),
    );
}

/// Waits until it is clear how to open the group: with every voter when all of
/// them are there and empty, with none as soon as one of them is not.
async fn wait_for_voters(metadata: &Metadata, voters: &[u32]) -> Vec<ReplicaId> {
    let me = metadata.raft.replica();
    let mut reminded = Instant::now();
    loop {
        let peers = metadata.raft.peers();
        let mut replicas = vec![me];
        let mut missing = Vec::new();
        for &voter in voters.iter().filter(|&&voter| voter != me.broker) {
            let replica = peers
                .iter()
                .find(|p| p.broker == voter && p.alive)
                .and_then(|p| p.replica);
            match replica {
                None => missing.push(voter),
                Some(replica) => match is_empty(metadata, voter).await {
                    None => missing.push(voter),
                    Some(true) => replicas.push(replica),
                    Some(false) => {
                        info!(
                            broker = voter,
                            "the cluster exists already, waiting to be added"
                        );
                        return Vec::new();
                    }
                },
            }
        }
        if missing.is_empty() {
            info!(voters = ?voters, "every voter is there, forming the cluster");
            return replicas;
        }
        if reminded.elapsed() >= REMIND {
            reminded = Instant::now();
            info!(?missing, "waiting for brokers, to form the cluster");
        }
        sleep(POLL).await;
    }
}

async fn is_empty(metadata: &Metadata, broker: u32) -> Option<bool> {
    let answer = metadata
        .raft
        .call(broker, BOOTSTRAP_SERVICE, Bytes::new(), ASK_TIMEOUT)
        .await;
    match answer.ok()?.as_ref() {
        EMPTY => Some(true),
        NOT_EMPTY => Some(false),
        _ => None,
    }
}

/// Hands the cluster's id on as soon as it is known.
pub(super) async fn announce_cluster(metadata: Arc<Metadata>, formed: ClusterFormed) {
    let mut image = metadata.watch();
    let cluster_id = match image.wait_for(|image| !image.cluster_id.is_nil()).await {
        Ok(image) => image.cluster_id,
        Err(_) => return,
    };
    info!(%cluster_id, "the cluster is formed");
    metadata.raft.set_cluster_id(cluster_id.as_u128());
    match tokio::task::spawn_blocking(move || formed(cluster_id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!(%error, "the cluster id can't be stored"),
        Err(error) => error!(%error, "storing the cluster id failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::voter_ids;

    #[test]
    fn three_of_four_and_five_of_many_vote() {
        assert_eq!(voter_ids([1]), [1]);
        assert_eq!(voter_ids([2, 1]), [1, 2]);
        assert_eq!(voter_ids([3, 1, 2]), [1, 2, 3]);
        assert_eq!(voter_ids([4, 3, 1, 2]), [1, 2, 3]);
        assert_eq!(voter_ids(1..=7), [1, 2, 3, 4, 5]);
    }
}
