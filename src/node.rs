//! A broker: the only place that wires the parts.

use std::sync::Arc;

use drave_raft::RaftNode;
use drave_storage::SharedStore;

use crate::config::Config;
use crate::groups::Groups;
use crate::metadata::Metadata;
use crate::partition::Partitions;

/// What handlers need of a running broker.
pub struct Broker {
    /// Its settings.
    pub config: Arc<Config>,
    /// Its Raft groups and peers.
    pub raft: Arc<RaftNode>,
    /// Its disk.
    pub store: SharedStore,
    /// The cluster's metadata.
    pub metadata: Arc<Metadata>,
    /// The partitions whose replicas are here.
    pub partitions: Arc<Partitions>,
    /// The consumer groups, wherever they are coordinated.
    pub groups: Arc<Groups>,
}
