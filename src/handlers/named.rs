//! What requests that name partitions have in common: finding them, and saying
//! who leads those that this broker doesn't.

use std::sync::Arc;

use kafka_protocol::ResponseError;

use crate::metadata::image::Image;
use crate::partition::registry::{PartitionSlot, Registry, TopicHandle};
use crate::partition::{Partition, Partitions};
use crate::protocol::wire::{CurrentLeader, NodeEndpoint, TopicRef};

/// The topic that a request names.
pub(super) fn topic<'a>(
    registry: &'a Registry,
    named: &TopicRef,
) -> Result<&'a Arc<TopicHandle>, ResponseError> {
    match named {
        TopicRef::Name(name) => registry
            .by_name(name)
            .ok_or(ResponseError::UnknownTopicOrPartition),
        TopicRef::Id(id) => registry.by_id(id).ok_or(ResponseError::UnknownTopicId),
    }
}

/// The partition's replica, if this broker may serve it, and the leader epoch.
pub(super) fn serving(slot: &PartitionSlot) -> Result<(Arc<Partition>, i32), ResponseError> {
    let replica = slot.replica().ok_or(ResponseError::NotLeaderOrFollower)?;
    let epoch = replica
        .serving_epoch()
        .ok_or(ResponseError::NotLeaderOrFollower)?;
    Ok((replica, epoch))
}

/// As [`serving`], if the client believes in the same epoch; -1 is no belief.
pub(super) fn serving_in(
    slot: &PartitionSlot,
    believed: i32,
) -> Result<(Arc<Partition>, i32), ResponseError> {
    let (replica, epoch) = serving(slot)?;
    match believed {
        0.. if believed < epoch => Err(ResponseError::FencedLeaderEpoch),
        0.. if believed > epoch => Err(ResponseError::UnknownLeaderEpoch),
        _ => Ok((replica, epoch)),
    }
}

/// Who leads instead, and where they listen, gathered for one reply.
pub(super) struct LeaderHints<'a> {
    partitions: &'a Partitions,
    image: Option<Arc<Image>>,
    /// The endpoints of all leaders named.
    pub(super) endpoints: Vec<NodeEndpoint>,
}

impl<'a> LeaderHints<'a> {
    pub(super) fn new(partitions: &'a Partitions) -> LeaderHints<'a> {
        LeaderHints {
            partitions,
            image: None,
            endpoints: Vec::new(),
        }
    }

    /// The leader of the partition, for an error that sends the client there.
    pub(super) fn of(&mut self, slot: &PartitionSlot, error: i16) -> Option<CurrentLeader> {
        let sent_away = error == ResponseError::NotLeaderOrFollower.code()
            || error == ResponseError::FencedLeaderEpoch.code();
        if !sent_away {
            return None;
        }
        let known = self.partitions.leadership(slot.group)?;
        let broker = known.leader.broker;
        // Sent back to this broker, which is not ready, a client would spin.
        let itself = broker == self.partitions.broker();
        if itself && error == ResponseError::NotLeaderOrFollower.code() {
            return None;
        }
        let image = self.image.get_or_insert_with(|| self.partitions.image());
        let registered = image
            .brokers
            .get(&broker)
            .filter(|registered| !registered.fenced)?;
        let node_id = broker as i32;
        if !self
            .endpoints
            .iter()
            .any(|endpoint| endpoint.node_id == node_id)
        {
            self.endpoints.push(NodeEndpoint {
                node_id,
                host: registered.host.clone(),
                port: i32::from(registered.port),
                rack: registered.rack.clone(),
            });
        }
        let leader_epoch = i32::try_from(known.term).unwrap_or(i32::MAX);
        Some(CurrentLeader {
            leader_id: node_id,
            leader_epoch,
        })
    }
}
