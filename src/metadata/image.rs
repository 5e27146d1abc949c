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
    /// Replicas of each coordinator group, group id `COORDINATOR_GROUP_MIN + position`.
    pub coordinators: Vec<Vec<ReplicaId>>,
    /// Dynamic configs of brokers; key `""` is the cluster-wide default.
    pub broker_configs: BTreeMap<String, BTreeMap<String, String>>,
    /// Index of the last applied entry of the metadata group.
    pub applied_index: u64,
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
    pub partitions: Vec<PartitionPlacement>,
    /// Its config overrides.
    pub configs: BTreeMap<String, String>,
}

/// Where a partition lives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionPlacement {
    /// Its Raft group.
    pub group: GroupNumber,
    /// Its replicas, the preferred leader first.
    pub replicas: Vec<ReplicaId>,
}

/// A group id as it is persisted.
pub type GroupNumber = u64;
