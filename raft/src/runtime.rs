//! The node: every group, the transport, liveness and elections.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::{GroupId, SharedStore};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::group::Group;
use crate::machine::StateMachine;
use crate::types::{Leadership, ReplicaId};

/// What a node needs to know to start.
pub struct NodeConfig {
    /// This node.
    pub replica: ReplicaId,
    /// The cluster this data directory belongs to, once known.
    pub cluster_id: Option<u128>,
    /// Brokers of the static configuration and their peer addresses, this one too.
    pub peers: Vec<(u32, SocketAddr)>,
    /// The bound peer listener.
    pub listener: TcpListener,
    /// A peer that is silent for this long is dead; default 1,000 ms.
    pub peer_dead_after: Duration,
}

/// How a group is opened on this node.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The group.
    pub group: GroupId,
    /// The first voters of the group, the preferred leader first; used only
    /// while the log is empty. Empty: wait to be added by the leader.
    pub voters: Vec<ReplicaId>,
    /// Bytes of log after which a checkpoint of the machine is stored.
    pub checkpoint_bytes: u64,
    /// After a checkpoint, entries before the one `n` checkpoints back are
    /// purged; `None`: only [`Group`]'s owner purges.
    pub purge_behind_checkpoints: Option<u32>,
}

/// A peer as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its broker id.
    pub broker: u32,
    /// Its whole identity, once it has said hello.
    pub replica: Option<ReplicaId>,
    /// Whether it was heard of within the time-out.
    pub alive: bool,
    /// The start of its process, as it says; changes with every restart.
    pub incarnation: u64,
    /// Age of its last fsync, ms, as it says.
    pub sync_age_ms: u64,
}

/// Why a call to a peer failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, so the peer has not seen the request.
    #[error("broker {0} can't be reached")]
    Unreachable(u32),
    /// It may or may not have been carried out.
    #[error("broker {0} did not answer in time")]
    TimedOut(u32),
    /// The peer has no handler for the service.
    #[error("broker {0} does not know service {1}")]
    UnknownService(u32, u8),
}

/// Answers calls of peers to one service.
pub type Service =
    Arc<dyn Fn(ReplicaId, Bytes) -> Pin<Box<dyn Future<Output = Bytes> + Send>> + Send + Sync>;

/// One node of the cluster: all its groups and its connections to peers.
pub struct RaftNode {
    _private: (),
}

impl RaftNode {
    /// Starts the transport and liveness; no group is open yet.
    pub async fn start(_config: NodeConfig, _store: SharedStore) -> anyhow::Result<Arc<RaftNode>> {
        unimplemented!()
    }

    /// This node.
    pub fn replica(&self) -> ReplicaId {
        unimplemented!()
    }

    /// Opens a replica here and starts it. Opening it twice returns the open one.
    pub async fn open_group(
        &self,
        _spec: GroupSpec,
        _machine: Box<dyn StateMachine>,
    ) -> anyhow::Result<Group> {
        unimplemented!()
    }

    /// Stops a replica here; with `erase`, also forgets its data.
    pub async fn close_group(&self, _group: GroupId, _erase: bool) {
        unimplemented!()
    }

    /// An open replica.
    pub fn group(&self, _group: GroupId) -> Option<Group> {
        unimplemented!()
    }

    /// Who leads a group, also one that has no replica here: nodes tell each
    /// other what they lead. The highest term wins.
    pub fn leadership(&self, _group: GroupId) -> Option<Leadership> {
        unimplemented!()
    }

    /// Every peer of the cluster, this node included.
    pub fn peers(&self) -> Vec<PeerStatus> {
        unimplemented!()
    }

    /// Changes whenever a peer comes, goes or restarts.
    pub fn watch_peers(&self) -> watch::Receiver<Vec<PeerStatus>> {
        unimplemented!()
    }

    /// Adds or moves peers, as brokers register.
    pub fn set_peers(&self, _peers: Vec<(u32, SocketAddr)>) {
        unimplemented!()
    }

    /// The cluster is formed: from now on peers of any other cluster are refused.
    pub fn set_cluster_id(&self, _cluster_id: u128) {
        unimplemented!()
    }

    /// Registers the handler of a service.
    pub fn serve(&self, _service: u8, _handler: Service) {
        unimplemented!()
    }

    /// Calls a service of a peer; calling this node itself works too.
    pub async fn call(
        &self,
        _broker: u32,
        _service: u8,
        _request: Bytes,
        _timeout: Duration,
    ) -> Result<Bytes, CallError> {
        unimplemented!()
    }

    /// Hands over leadership of every group led here, as far as other voters
    /// are alive, waits (bounded) until others lead, then stops everything.
    pub async fn shutdown(&self) {
        unimplemented!()
    }
}
