//! Who votes in the metadata group and who only learns it.
//!
//! One task on every broker, active while that broker leads the group. Voters
//! are the first brokers of the static configuration (see
//! [`super::bootstrap::voter_ids`]); every other broker is a learner. A voter
//! that comes back with an empty disk is another replica: it replaces the one
//! that it was.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use drave_raft::{GroupStatus, PeerStatus, ReplicaId};
use tokio::time::interval;
use tracing::{info, warn};

use super::Metadata;
use super::bootstrap::voter_ids;

const TICK: Duration = Duration::from_secs(1);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Keeps the group's membership as it should be.
pub(super) async fn run(metadata: Arc<Metadata>) {
    let voters = voter_ids(metadata.settings.peers.iter().map(|(id, _)| *id));
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(group) = metadata.leading() else {
            continue;
        };
        let peers = metadata.raft.peers();
        let status = group.status();
        if let Some(wanted) = wanted_voters(&voters, &peers, &status) {
            info!(?wanted, "replacing a voter of the metadata group");
            if let Err(error) = group.change_voters(wanted, CHANGE_TIMEOUT).await {
                warn!(%error, "the metadata group's voters could not be changed");
            }
            continue;
        }
        let learners = wanted_learners(&voters, &peers, &status);
        if !learners.is_empty() {
            info!(?learners, "adding learners to the metadata group");
            if let Err(error) = group.add_learners(learners, CHANGE_TIMEOUT).await {
                warn!(%error, "learners could not be added to the metadata group");
            }
        }
        let gone = gone_learners(&peers, &status);
        if !gone.is_empty() {
            info!(
                ?gone,
                "removing learners whose disks are gone from the metadata group"
            );
            if let Err(error) = group.remove_learners(gone, CHANGE_TIMEOUT).await {
                warn!(%error, "learners could not be removed from the metadata group");
            }
        }
    }
}

/// The voters as they should be, if they are not.
fn wanted_voters(
    voters: &[u32],
    peers: &[PeerStatus],
    status: &GroupStatus,
) -> Option<Vec<ReplicaId>> {
    let wanted: Option<Vec<ReplicaId>> = (voters.iter())
        .map(|&voter| {
            let alive = peers.iter().find(|peer| peer.broker == voter && peer.alive);
            let known = || {
                status
                    .voters
                    .iter()
                    .find(|known| known.broker == voter)
                    .copied()
            };
            alive.and_then(|peer| peer.replica).or_else(known)
        })
        .collect();
    let sorted = |replicas: &[ReplicaId]| replicas.iter().copied().collect::<BTreeSet<_>>();
    wanted.filter(|wanted| sorted(wanted) != sorted(&status.voters) && !status.voters.is_empty())
}

/// Live brokers that are not members yet.
fn wanted_learners(voters: &[u32], peers: &[PeerStatus], status: &GroupStatus) -> Vec<ReplicaId> {
    (peers.iter())
        .filter(|peer| peer.alive && !voters.contains(&peer.broker))
        .filter_map(|peer| peer.replica)
        .filter(|replica| !status.voters.contains(replica) && !status.learners.contains(replica))
        .collect()
}

/// Learners whose broker is there, on another directory.
fn gone_learners(peers: &[PeerStatus], status: &GroupStatus) -> Vec<ReplicaId> {
    let is_another = |learner: &ReplicaId| {
        let mut peers = peers.iter().filter(|peer| peer.alive);
        peers.any(|peer| peer.broker == learner.broker && peer.replica != Some(*learner))
    };
    let learners = status.learners.iter().copied();
    learners.filter(is_another).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(broker: u32, directory: u128) -> ReplicaId {
        ReplicaId { broker, directory }
    }

    fn peer(broker: u32, directory: u128, alive: bool) -> PeerStatus {
        let replica = Some(replica(broker, directory));
        PeerStatus {
            broker,
            replica,
            alive,
            incarnation: 1,
            sync_age_ms: 0,
        }
    }

    #[test]
    fn a_voter_with_a_new_disk_replaces_its_predecessor() {
        let status = GroupStatus {
            voters: vec![replica(1, 1), replica(2, 1), replica(3, 1)],
            ..GroupStatus::default()
        };
        let unchanged = [peer(1, 1, true), peer(2, 1, true), peer(3, 1, false)];
        assert_eq!(wanted_voters(&[1, 2, 3], &unchanged, &status), None);
        let dead = [peer(1, 1, true), peer(2, 1, true), peer(3, 9, false)];
        assert_eq!(
            wanted_voters(&[1, 2, 3], &dead, &status),
            None,
            "only a live one"
        );
        let wiped = [peer(1, 1, true), peer(2, 1, true), peer(3, 9, true)];
        let wanted = vec![replica(1, 1), replica(2, 1), replica(3, 9)];
        assert_eq!(wanted_voters(&[1, 2, 3], &wiped, &status), Some(wanted));
    }

    #[test]
    fn brokers_that_do_not_vote_learn() {
        let status = GroupStatus {
            voters: vec![replica(1, 1)],
            learners: vec![replica(5, 1)],
            ..GroupStatus::default()
        };
        let peers = [
            peer(1, 1, true),
            peer(4, 1, true),
            peer(5, 1, true),
            peer(6, 1, false),
        ];
        assert_eq!(wanted_learners(&[1], &peers, &status), [replica(4, 1)]);
    }

    #[test]
    fn a_learner_with_a_new_disk_leaves_the_old_one_behind() {
        let status = GroupStatus {
            voters: vec![replica(1, 1)],
            learners: vec![replica(1, 8), replica(4, 1), replica(5, 1), replica(6, 1)],
            ..GroupStatus::default()
        };
        let peers = [
            peer(1, 1, true),
            peer(4, 9, true),
            peer(5, 1, true),
            peer(6, 9, false),
        ];
        let gone = [replica(1, 8), replica(4, 1)];
        assert_eq!(gone_learners(&peers, &status), gone);
        assert_eq!(wanted_learners(&[1], &peers, &status), [replica(4, 9)]);
    }
}
