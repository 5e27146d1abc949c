//! The cluster as clients are shown it: the image, with what this broker knows
//! right now of leaders and of brokers' lives.

use std::collections::BTreeSet;
use std::sync::Arc;

use drave_raft::{GroupId, RaftNode, ReplicaId};

use super::image::{BrokerRegistration, Image, Placement};

/// A follower further behind its leader than this, in entries, is out of sync.
const IN_SYNC_LAG_ENTRIES_MAX: u64 = 1_000;

/// A moment of the cluster; make one for each request.
pub struct ClusterView<'a> {
    raft: &'a RaftNode,
    /// The metadata.
    pub image: Arc<Image>,
    /// The live processes' replicas: a broker with a new disk is not what it was.
    alive: BTreeSet<ReplicaId>,
}

/// A partition as clients are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionView {
    /// Broker and epoch of the leader, if there is one that clients can reach.
    pub leader: Option<(u32, i32)>,
    /// Brokers with a replica.
    pub replicas: Vec<i32>,
    /// Those of them that are alive and keep up.
    pub in_sync: Vec<i32>,
    /// Those of them that are dead.
    pub offline: Vec<i32>,
}

impl<'a> ClusterView<'a> {
    /// The cluster now.
    pub fn now(image: Arc<Image>, raft: &'a RaftNode) -> Self {
        let dead: BTreeSet<u32> = raft
            .peers()
            .iter()
            .filter(|peer| !peer.alive)
            .map(|peer| peer.broker)
            .collect();
        let alive = (image.brokers.values())
            .filter(|broker| !broker.fenced)
            .map(|broker| broker.replica)
            .filter(|replica| !dead.contains(&replica.broker) || *replica == raft.replica())
            .collect();
        Self { raft, image, alive }
    }

    /// The brokers that clients are told of.
    pub fn brokers(&self) -> impl Iterator<Item = &BrokerRegistration> {
        self.image
            .brokers
            .values()
            .map(Arc::as_ref)
            .filter(|broker| !broker.fenced)
    }

    /// The broker that clients are told is the controller.
    pub fn controller(&self) -> i32 {
        let leader = self
            .raft
            .leadership(super::image::METADATA_GROUP)
            .map(|known| known.leader);
        leader
            .filter(|leader| self.alive.contains(leader))
            .map_or(-1, |leader| leader.broker as i32)
    }

    /// A partition now.
    pub fn partition(&self, placement: &Placement) -> PartitionView {
        let group = GroupId(placement.group);
        let leader = (self.raft.leadership(group))
            .filter(|known| self.alive.contains(&known.leader))
            .map(|known| (known.leader.broker, known.term as i32));
        let lagging = match leader {
            Some((broker, _)) if broker == self.raft.replica().broker => self.lagging(placement),
            _ => Vec::new(),
        };
        let ids = |keep: &dyn Fn(&ReplicaId) -> bool| -> Vec<i32> {
            placement
                .replicas
                .iter()
                .filter(|r| keep(r))
                .map(|r| r.broker as i32)
                .collect()
        };
        let is_alive = |replica: &ReplicaId| self.alive.contains(replica);
        PartitionView {
            leader,
            replicas: ids(&|_| true),
            in_sync: ids(&|replica| is_alive(replica) && !lagging.contains(replica)),
            offline: ids(&|replica| !is_alive(replica)),
        }
    }

    /// Followers that the leader, which is here, knows to be far behind, and
    /// those that are new and don't vote yet.
    fn lagging(&self, placement: &Placement) -> Vec<ReplicaId> {
        let Some(group) = self.raft.group(GroupId(placement.group)) else {
            return Vec::new();
        };
        let status = group.status();
        let end = status.last_index.map_or(0, |index| index + 1);
        let behind = |matched: Option<u64>| end.saturating_sub(matched.map_or(0, |at| at + 1));
        let far = (status.matched.iter())
            .filter(|(replica, _)| *replica != self.raft.replica())
            .filter(|(_, matched)| behind(*matched) > IN_SYNC_LAG_ENTRIES_MAX)
            .map(|(replica, _)| *replica);
        let new = placement.replicas.iter().copied();
        far.chain(new.filter(|replica| !status.voters.contains(replica)))
            .collect()
    }
}
