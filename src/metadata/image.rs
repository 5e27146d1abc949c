//! The cluster's metadata as every broker sees it: an immutable snapshot,
//! replaced as a whole when the metadata group has applied something.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use drave_raft::{GroupId, ReplicaId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The metadata group's own id.
pub const METADATA_GROUP: GroupId = GroupId(1);
/// Ids of the coordinator groups start here; see [`Image::coordinators`].
pub const COORDINATOR_GROUP_MIN: u64 = 16;
/// Ids of partitions' groups start here and are never reused.
pub const PARTITION_GROUP_MIN: u64 = 1024;

/// A snapshot of the metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Id of the cluster; nil until the first command is applied.
    pub cluster_id: Uuid,
    /// Registered brokers by id.
    pub brokers: BTreeMap<u32, Arc<BrokerRegistration>>,
    /// Topics by name.
    pub topics: BTreeMap<String, Arc<Topic>>,
    /// Names of topics by their id.
    pub topic_names: BTreeMap<Uuid, String>,
    /// The coordinator groups, group id `COORDINATOR_GROUP_MIN + position`.
    pub coordinators: Vec<Placement>,
    /// Dynamic configs of brokers; key `""` is the cluster-wide default.
    pub broker_configs: BTreeMap<String, BTreeMap<String, String>>,
    /// Index of the last applied entry of the metadata group.
    pub applied_index: u64,
}

impl Image {
    /// Every group but the metadata group, and where it lives.
    pub fn placements(&self) -> impl Iterator<Item = &Placement> {
        let partitions = self.topics.values().flat_map(|topic| &topic.partitions);
        self.coordinators.iter().chain(partitions)
    }

    /// Makes every placement name the replicas that the brokers are now.
    pub(super) fn update_placements(&mut self) {
        let brokers = &self.brokers;
        for placement in &mut self.coordinators {
            placement.update(brokers);
        }
        for topic in self.topics.values_mut() {
            if (topic.partitions.iter()).any(|placement| placement.is_outdated(brokers)) {
                for placement in &mut Arc::make_mut(topic).partitions {
                    placement.update(brokers);
                }
            }
        }
    }
}

/// A broker as it registered itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BrokerRegistration {
    /// Broker id and directory id.
    pub replica: ReplicaId,
    /// Names its process: another one with every start, in no order.
    pub incarnation: u64,
    /// Host that clients are told.
    pub host: String,
    /// Port that clients are told.
    pub port: u16,
    /// Address of its peer listener.
    pub peer_address: SocketAddr,
    /// Its rack, if it has one.
    pub rack: Option<String>,
    /// A fenced broker is not alive: it gets no new replicas and is not shown to clients.
    pub fenced: bool,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Topic {
    /// Its id; a topic created again under the same name has another one.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Its partitions, by partition index.
    pub partitions: Vec<Placement>,
    /// Its config overrides.
    pub configs: BTreeMap<String, String>,
}

/// Where a partition or a coordinator lives.
///
/// A replica is a broker on one directory. When the broker comes back on
/// another one, which is empty, its replica is another one too and takes the
/// place of the one that is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Its Raft group.
    pub group: GroupNumber,
    /// Its replicas now, the preferred leader first.
    pub replicas: Vec<ReplicaId>,
    /// Those that it was made with, once it has ever changed. Only they may
    /// write the group's first entry, and all of them the same one.
    pub founders: Option<Vec<ReplicaId>>,
}

impl Placement {
    /// The placement of a group that is new.
    pub fn new(group: GroupNumber, replicas: Vec<ReplicaId>) -> Self {
        Self {
            group,
            replicas,
            founders: None,
        }
    }

    /// The replicas that it was made with.
    pub fn founders(&self) -> &[ReplicaId] {
        self.founders.as_ref().unwrap_or(&self.replicas)
    }

    /// The voters with which `replica` opens the group: none unless it is a founder.
    pub fn first_voters(&self, replica: ReplicaId) -> Vec<ReplicaId> {
        match self.founders() {
            founders if founders.contains(&replica) => founders.to_vec(),
            _ => Vec::new(),
        }
    }

    /// Whether `broker` has a replica, on whatever directory.
    pub fn is_on(&self, broker: u32) -> bool {
        self.replicas.iter().any(|replica| replica.broker == broker)
    }

    /// Whether a replica that it names is not the one that its broker is on now.
    pub fn is_outdated(&self, brokers: &BTreeMap<u32, Arc<BrokerRegistration>>) -> bool {
        (self.replicas.iter()).any(|replica| present(*replica, brokers) != *replica)
    }

    /// Puts the replicas that the registered brokers are now in the place of
    /// those that they were.
    pub fn update(&mut self, brokers: &BTreeMap<u32, Arc<BrokerRegistration>>) {
        let replicas = self.replicas.iter();
        let replicas: Vec<_> = replicas.map(|was| present(*was, brokers)).collect();
        if replicas == self.replicas {
            return;
        }
        let before = std::mem::replace(&mut self.replicas, replicas);
        self.founders.get_or_insert(before);
    }
}

/// What the broker of a replica is now, as far as it is registered.
fn present(was: ReplicaId, brokers: &BTreeMap<u32, Arc<BrokerRegistration>>) -> ReplicaId {
    brokers.get(&was.broker).map_or(was, |known| known.replica)
}

/// A group id as it is persisted.
pub type GroupNumber = u64;
