//! Connections to peers: one per pair and direction, carrying all groups.
//!
//! The transport knows frames, not what is in them: a kind, a group, a small
//! header and payload bytes that are never copied. Requests to one peer arrive
//! in the order in which they were sent.
//!
//! A node sends its requests on the connection that it dialed and gets their
//! replies on it; the peer dials its own for the other direction. Tasks: one
//! acceptor, one dialer per peer, a reader and a writer per connection, and one
//! liveness task. All belong to [`Transport`] and end with it.

mod accept;
mod connection;
mod dial;
pub(crate) mod handshake;
mod liveness;
pub(crate) mod net;
mod outbox;
mod peer;
mod pending;
pub(crate) mod reader;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::handshake::{Card, Identity, PROTOCOL_VERSION};
use self::net::TcpListener;
use self::peer::Peer;
use self::wire::{Frame, FrameType};
use crate::PeerStatus;
use crate::types::ReplicaId;

pub use self::connection::ReplySender;

/// Requests and notifications of a smaller kind are control frames: they
/// overtake bulk data that is queued for the same peer.
pub const BULK_KIND_MIN: u8 = 16;

/// How long [`Transport::shutdown`] waits for queued frames to leave.
const DRAIN: Duration = Duration::from_millis(200);

/// One request or reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it is; the meaning belongs to `crate::net`.
    pub kind: u8,
    /// The group it is for, 0 for the node.
    pub group: u64,
    /// Encoded head.
    pub header: Bytes,
    /// Bytes that follow the header, sent as they are; received as one slice.
    pub payload: Vec<Bytes>,
}

/// What the transport needs to know to start.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// This node.
    pub local: ReplicaId,
    /// The start of this process; another one with every start.
    pub incarnation: u64,
    /// The cluster, once known.
    pub cluster_id: Option<u128>,
    /// Brokers and their peer addresses; this node's own is ignored.
    pub peers: Vec<(u32, SocketAddr)>,
    /// A peer that is silent for this long is down.
    pub dead_after: Duration,
    /// How often peers hear of this node.
    pub heartbeat_every: Duration,
}

/// Receives what peers send.
pub trait Inbound: Send + Sync + 'static {
    /// A request or notification. Called on the connection's reader task, in
    /// the order in which the peer sent; must not block.
    fn on_request(&self, from: ReplicaId, message: Message, reply: ReplySender);
    /// A peer has come, gone or restarted; must not block.
    fn on_peer(&self, event: PeerEvent);
}

/// A change of a peer, told once and in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEvent {
    /// It is heard of, for the first time or again.
    Up {
        /// The peer.
        peer: ReplicaId,
        /// The start of its process.
        incarnation: u64,
    },
    /// Another process has taken its place before it was seen to be down.
    Restarted {
        /// The peer, perhaps with a new directory.
        peer: ReplicaId,
        /// The start of its process.
        incarnation: u64,
    },
    /// Its process has ended, or nothing was heard of it for too long.
    Down {
        /// Its broker id.
        broker: u32,
        /// Who it was.
        peer: Option<ReplicaId>,
    },
}

/// Why a request got no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// Not connected: the peer has not seen the request.
    #[error("the peer can't be reached")]
    Unreachable,
    /// The connection ended before the reply; the peer may have seen the request.
    #[error("the connection to the peer was lost")]
    Lost,
    /// No reply in time; the peer may have seen the request.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The peer dropped the request unanswered.
    #[error("the peer dropped the request")]
    Refused,
    /// Too many bytes wait for the peer already, or the message is too large.
    #[error("too many bytes wait for the peer")]
    Full,
}

/// All connections of this node to its peers.
pub struct Transport {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the transport's tasks share.
struct Shared {
    config: TransportConfig,
    cluster_id: Mutex<Option<u128>>,
    started: Instant,
    peers: ArcSwap<HashMap<u32, Arc<Peer>>>,
    peers_change: Mutex<()>,
    statuses: watch::Sender<Vec<PeerStatus>>,
    /// Makes the liveness task look again.
    look: Notify,
    sync_age_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    inbound: Arc<dyn Inbound>,
}

impl Transport {
    /// Starts to listen, to dial and to watch the peers.
    pub async fn start(
        config: TransportConfig,
        listener: TcpListener,
        sync_age_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
        inbound: Arc<dyn Inbound>,
    ) -> anyhow::Result<Arc<Transport>> {
        anyhow::ensure!(
            !config.dead_after.is_zero(),
            "peers need time to be heard of"
        );
        anyhow::ensure!(
            !config.heartbeat_every.is_zero(),
            "heartbeats need an interval"
        );
        let peers = config.peers.clone();
        let shared = Arc::new(Shared {
            cluster_id: Mutex::new(config.cluster_id),
            config,
            started: Instant::now(),
            peers: ArcSwap::default(),
            peers_change: Mutex::new(()),
            statuses: watch::Sender::new(Vec::new()),
            look: Notify::new(),
            sync_age_ms,
            inbound,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept::run(shared.clone(), listener));
        tasks.spawn(liveness::run(shared.clone()));
        let transport = Arc::new(Transport {
            shared,
            tasks: Mutex::new(tasks),
        });
        transport.set_peers(peers);
        Ok(transport)
    }

    /// Queues a request at once; requests to one peer leave in the order of
    /// these calls, those of control kinds before bulk ones. Resolves with the
    /// reply. Never blocks: `Full` beyond the byte bound, `Unreachable` at once
    /// while not connected.
    pub fn request(
        &self,
        to: u32,
        message: Message,
        timeout: Duration,
    ) -> impl Future<Output = Result<Message, TransportError>> + Send + use<> {
        let queued = self.queue_request(to, message, timeout);
        async move { queued?.await.unwrap_or(Err(TransportError::Lost)) }
    }

    fn queue_request(
        &self,
        to: u32,
        message: Message,
        timeout: Duration,
    ) -> Result<pending::ReplyReceiver, TransportError> {
        let peer = self.shared.peer(to).ok_or(TransportError::Unreachable)?;
        let link = peer.outgoing.load();
        let link = link.as_ref().ok_or(TransportError::Unreachable)?;
        let (id, receiver) = link.pending.add(timeout)?;
        let control = message.kind < BULK_KIND_MIN;
        let frame = Frame {
            frame_type: FrameType::Request,
            id,
            message,
        };
        if let Err(error) = link.outbox.push(frame, control) {
            link.pending.resolve(id, Err(error));
        }
        Ok(receiver)
    }

    /// Queues a message that wants no reply. Whether it was queued.
    pub fn notify(&self, to: u32, message: Message) -> bool {
        let Some(peer) = self.shared.peer(to) else {
            return false;
        };
        let control = message.kind < BULK_KIND_MIN;
        let frame = Frame {
            frame_type: FrameType::Notify,
            id: 0,
            message,
        };
        peer.outgoing
            .load()
            .as_ref()
            .is_some_and(|link| link.outbox.push(frame, control).is_ok())
    }

    /// Waits while `bytes` more would exceed what may wait for the peer.
    /// Returns at once when it is not connected.
    pub async fn ready_for(&self, to: u32, bytes: usize) {
        let link = self
            .shared
            .peer(to)
            .and_then(|peer| peer.outgoing.load_full());
        if let Some(link) = link {
            link.outbox
                .room_for(bytes.saturating_add(wire::HEAD_BYTES + wire::LENGTH_BYTES))
                .await;
        }
    }

    /// This node.
    pub fn local(&self) -> ReplicaId {
        self.shared.config.local
    }

    /// Every known broker, this one included.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.current_statuses()
    }

    /// The other brokers, and the bytes that wait to be sent to each.
    pub fn queued_bytes(&self) -> Vec<(u32, usize)> {
        let peers = self.shared.peers.load();
        let queued = |peer: &Arc<Peer>| (peer.broker, peer.queued_bytes());
        peers.values().map(queued).collect()
    }

    /// Changes whenever a peer comes, goes or restarts.
    pub fn watch_peers(&self) -> watch::Receiver<Vec<PeerStatus>> {
        self.shared.statuses.subscribe()
    }

    /// Whether the broker was heard of in time; true for this node.
    pub fn is_alive(&self, broker: u32) -> bool {
        broker == self.shared.config.local.broker
            || self.shared.peer(broker).is_some_and(|peer| peer.is_alive())
    }

    /// Brokers that belong to another cluster; `None` once any peer was met, or
    /// when there is none.
    pub fn foreign_peers(&self) -> Option<Vec<u32>> {
        let peers = self.shared.peers.load();
        if peers.is_empty() || peers.values().any(|peer| peer.identity().is_some()) {
            return None;
        }
        let foreign = peers
            .values()
            .filter(|peer| peer.foreign.load(Ordering::Acquire));
        Some(foreign.map(|peer| peer.broker).collect())
    }

    /// The whole identity of a broker that has ever said hello.
    pub fn replica_of(&self, broker: u32) -> Option<ReplicaId> {
        if broker == self.shared.config.local.broker {
            return Some(self.shared.config.local);
        }
        self.shared
            .peer(broker)?
            .identity()
            .map(|identity| identity.replica)
    }

    /// Whether the broker is alive, on this very directory.
    pub fn is_there(&self, replica: ReplicaId) -> bool {
        self.is_alive(replica.broker) && self.replica_of(replica.broker) == Some(replica)
    }

    /// Adds peers, or moves them to other addresses; forgets none.
    pub fn set_peers(&self, peers: Vec<(u32, SocketAddr)>) {
        let mut tasks = lock(&self.tasks);
        for (broker, address) in peers {
            if broker == self.shared.config.local.broker {
                continue;
            }
            let peer = self.shared.peer_or_insert(broker);
            if peer.move_to(address) {
                tasks.spawn(dial::run(self.shared.clone(), peer));
            }
        }
        self.shared.publish();
    }

    /// The cluster is formed: peers of any other are refused from now on.
    pub fn set_cluster_id(&self, cluster_id: u128) {
        *lock(&self.shared.cluster_id) = Some(cluster_id);
        for peer in self.shared.peers.load().values() {
            self.shared.recheck_cluster(peer);
        }
    }

    /// Lets queued frames leave, for a moment, then ends every task.
    pub async fn shutdown(&self) {
        let give_up = Instant::now() + DRAIN;
        while Instant::now() < give_up
            && !self
                .shared
                .peers
                .load()
                .values()
                .all(|peer| peer.is_drained())
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        tasks.shutdown().await;
    }
}

impl Shared {
    fn peer(&self, broker: u32) -> Option<Arc<Peer>> {
        self.peers.load().get(&broker).cloned()
    }

    fn peer_or_insert(&self, broker: u32) -> Arc<Peer> {
        let _change = lock(&self.peers_change);
        if let Some(peer) = self.peer(broker) {
            return peer;
        }
        let peer = Arc::new(Peer::new(broker));
        let mut peers = HashMap::clone(&self.peers.load());
        peers.insert(broker, peer.clone());
        self.peers.store(Arc::new(peers));
        peer
    }

    /// Milliseconds since the start, never 0.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64 + 1
    }

    /// Ends connections whose handshake took place before this node knew its
    /// cluster. Called when it learns it, and when a connection is taken up.
    fn recheck_cluster(&self, peer: &Peer) {
        let cluster_id = *lock(&self.cluster_id);
        if let Some(cluster_id) = cluster_id {
            peer.close_other_clusters(cluster_id);
        }
    }

    /// What this node says of itself in a handshake.
    fn card(&self, subject: u32) -> Card {
        Card {
            version: PROTOCOL_VERSION,
            cluster_id: *lock(&self.cluster_id),
            identity: Identity {
                replica: self.config.local,
                incarnation: self.config.incarnation,
            },
            subject,
        }
    }

    fn current_statuses(&self) -> Vec<PeerStatus> {
        let mut statuses: Vec<_> = self
            .peers
            .load()
            .values()
            .map(|peer| peer.status())
            .collect();
        statuses.push(PeerStatus {
            broker: self.config.local.broker,
            replica: Some(self.config.local),
            alive: true,
            incarnation: self.config.incarnation,
            sync_age_ms: (self.sync_age_ms)(),
        });
        statuses.sort_by_key(|status| status.broker);
        statuses
    }

    /// Tells watchers how the peers are now.
    fn publish(&self) {
        self.statuses
            .send_modify(|statuses| *statuses = self.current_statuses());
    }
}

/// Locks; the state behind these locks is valid at every step, so a panic
/// elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
