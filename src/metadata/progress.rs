//! How much of what is placed on this broker is there.

use drave_raft::{GroupId, RaftNode};

use super::image::{Image, METADATA_GROUP};
use crate::protocol::replica_progress::ReplicaProgress;

/// What this broker can say of its own replicas; nothing as long as its image
/// may be older than its process. Takes time in proportion to the replicas here.
pub fn of_this_broker(image: &Image, raft: &RaftNode) -> Option<ReplicaProgress> {
    let itself = raft.replica();
    let registered = image.brokers.get(&itself.broker)?;
    let process = raft
        .peers()
        .into_iter()
        .find(|peer| peer.broker == itself.broker)?;
    if registered.replica != itself || registered.incarnation != process.incarnation {
        return None;
    }
    let placed = image
        .placements()
        .filter(|placement| placement.replicas.contains(&itself));
    let groups = placed.map(|placement| GroupId(placement.group));
    let mut progress = ReplicaProgress::default();
    for group in groups.chain([METADATA_GROUP]) {
        progress.placed += 1;
        progress.catching_up += u32::from(!is_there(raft, group));
    }
    Some(progress)
}

/// Whether the replica here takes full part in its group. A leader makes a
/// replica a voter when it has caught up; brokers that don't vote in the
/// metadata group learn it.
fn is_there(raft: &RaftNode, group: GroupId) -> bool {
    let Some(open) = raft.group(group) else {
        return false;
    };
    let (status, itself) = (open.status(), raft.replica());
    let learns = group == METADATA_GROUP && status.learners.contains(&itself);
    raft.leadership(group).is_some() && (learns || status.voters.contains(&itself))
}
