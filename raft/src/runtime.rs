//! The node: every group, the transport, liveness and elections.
//!
//! [`RaftNode`] owns every task of this crate. It is started once and stopped
//! by [`RaftNode::shutdown`].

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use drave_storage::{GroupId, SharedStore};
use openraft::Raft;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use crate::blocking;
use crate::config::raft_config;
use crate::elections::TURN;
use crate::group::{Group, GroupInner};
use crate::hand_over::{hand_over, run_balance, successor};
use crate::inbound::LateReceiver;
use crate::leaders::Leaders;
use crate::log_store::GroupLog;
use crate::machine::StateMachine;
use crate::net::Network;
use crate::node::{NodeInner, run_announcements, run_elections, run_greetings, run_purges};
use crate::nudge::run_nudges;
use crate::repairs::Repairs;
use crate::state_machine::{CheckpointPolicy, Driver};
use crate::transport::net::TcpListener;
use crate::transport::{Message, Transport, TransportConfig, TransportError};
use crate::types::{Leadership, ReplicaId};
use crate::wire::{self, kind};

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

/// The wait for a group that only its leader answers for: a notice of a commit
/// costs as much as a small entry, and under load the next one is near.
pub const COMMIT_NOTICE_WAIT: Duration = Duration::from_millis(50);

/// How a group is opened on this node.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The group.
    pub group: GroupId,
    /// The replicas that the group was made with, the preferred leader first:
    /// the voters that its first entry names, and the order of elections unless
    /// [`Group::prefer`] says another. Empty on every other replica: it waits to
    /// be added by the leader.
    pub voters: Vec<ReplicaId>,
    /// Bytes of log after which a lasting checkpoint of the machine is stored.
    /// In between, others make a restart quick.
    pub checkpoint_bytes: u64,
    /// After a checkpoint, entries before the one `n` checkpoints back are
    /// purged; `None`: only [`Group`]'s owner purges.
    pub purge_behind_checkpoints: Option<u32>,
    /// How long followers may be left without news of a commit when no new
    /// entry brings it; see [`COMMIT_NOTICE_WAIT`].
    pub commit_notice_wait: Duration,
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
    /// The connection ended before the answer: it may or may not have been carried out.
    #[error("broker {0} was lost before it answered")]
    Lost(u32),
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

/// How long a group that was just opened waits to hear who leads it.
pub(crate) const OPEN_GRACE: Duration = Duration::from_millis(300);
/// How long the other voters wait for the preferred leader to write the first entry.
const FIRST_ENTRY_GRACE: Duration = Duration::from_secs(2);
/// How often a node that has met nobody looks why.
const FOREIGN_POLL: Duration = Duration::from_millis(250);
/// Purges that wait at most; more are asked for again by later checkpoints.
const PURGES_MAX: usize = 1_024;
/// How long a stopping node waits for others to take over what it leads.
const HAND_OVER: Duration = Duration::from_secs(5);

/// One node of the cluster: all its groups and its connections to peers.
pub struct RaftNode {
    inner: Arc<NodeInner>,
    tasks: Mutex<JoinSet<()>>,
}

impl RaftNode {
    /// Starts the transport and liveness; no group is open yet.
    pub async fn start(config: NodeConfig, store: SharedStore) -> anyhow::Result<Arc<RaftNode>> {
        let (purge_due, purges) = mpsc::channel(PURGES_MAX);
        let (events_sender, events) = mpsc::channel(256);
        let transport_config = TransportConfig {
            local: config.replica,
            incarnation: rand::random(),
            cluster_id: config.cluster_id,
            peers: config.peers,
            dead_after: config.peer_dead_after,
            heartbeat_every: config.peer_dead_after / 10,
        };
        // The receiver finds the node by a weak reference, set right after.
        let slot: Arc<std::sync::OnceLock<std::sync::Weak<NodeInner>>> = Arc::default();
        let inbound = Arc::new(LateReceiver {
            slot: slot.clone(),
            receiver: Default::default(),
        });
        let sync_age = {
            let store = store.clone();
            Arc::new(move || store.last_sync_age_ms())
        };
        let transport =
            Transport::start(transport_config, config.listener, sync_age, inbound).await?;
        let inner = Arc::new(NodeInner {
            replica: config.replica,
            leaders: Leaders::default(),
            repairs: Repairs::new(store.clone(), transport.clone()),
            room: AtomicU64::new(u64::MAX),
            transport,
            elections: Arc::default(),
            store,
            groups: RwLock::default(),
            opening: (0..64).map(|_| tokio::sync::Mutex::new(())).collect(),
            services: RwLock::default(),
            purge_due,
            events: events_sender,
            up_since: Mutex::default(),
            raft_config: raft_config(),
        });
        slot.set(Arc::downgrade(&inner))
            .map_err(|_| anyhow!("the node was started twice"))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(run_elections(inner.clone()));
        tasks.spawn(run_announcements(inner.clone()));
        tasks.spawn(run_purges(inner.clone(), purges));
        tasks.spawn(run_greetings(inner.clone(), events));
        tasks.spawn(run_balance(inner.clone()));
        tasks.spawn(run_nudges(inner.clone()));
        Ok(Arc::new(RaftNode {
            inner,
            tasks: Mutex::new(tasks),
        }))
    }

    /// This node.
    pub fn replica(&self) -> ReplicaId {
        self.inner.replica
    }

    /// Opens a replica here and starts it. Opening it twice returns the open one.
    pub async fn open_group(
        &self,
        spec: GroupSpec,
        machine: Box<dyn StateMachine>,
    ) -> anyhow::Result<Group> {
        let inner = &self.inner;
        let id = spec.group;
        let _one_at_a_time = inner.opening[id.0 as usize % inner.opening.len()]
            .lock()
            .await;
        if let Some(open) = inner.group(id) {
            return Ok(Group { inner: open });
        }
        let policy = CheckpointPolicy {
            bytes: spec.checkpoint_bytes,
            purge_behind: spec.purge_behind_checkpoints,
        };
        let purge_due = inner.purge_due.clone();
        let life = inner.repairs.opening(id);
        let (repairs, lived) = (inner.repairs.clone(), life.clone());
        let opened = blocking::run(&inner.store, move |store| {
            let state = store.open_group(id).map_err(|error| error.to_string())?;
            let log = GroupLog::new(id, store.clone(), repairs, lived, &state)?;
            let driver = Driver::open(id, store.clone(), machine, policy, purge_due, &state)?;
            Ok::<_, String>((log, driver, state.last.is_none()))
        });
        let opened = match opened.await {
            Ok(opened) => opened.map_err(|reason| anyhow!("{id} can't be opened: {reason}")),
            Err(error) => Err(error.into()),
        };
        let (log, driver, is_empty) = opened.inspect_err(|_| inner.repairs.close(id))?;
        let progress = driver.progress();
        let recalled = log.recalled_leadership();
        let network = Network {
            group: id,
            transport: inner.transport.clone(),
            commit_notice_wait: spec.commit_notice_wait,
        };
        let raft = Raft::new(
            inner.replica,
            inner.raft_config.clone(),
            network,
            log,
            driver,
        )
        .await;
        let raft = match raft {
            Ok(raft) => raft,
            Err(error) => {
                inner.repairs.close(id);
                return Err(error.into());
            }
        };
        life.opened();
        let is_first = spec.voters.first() == Some(&inner.replica);
        let is_alone = spec.voters == [inner.replica];
        let grows = spec.purge_behind_checkpoints.is_none();
        let group = GroupInner::new(
            id,
            inner.replica,
            raft,
            spec.voters,
            inner.elections.clone(),
            inner.repairs.clone(),
            progress,
        );
        let group = Arc::new(group.recalling(recalled).growing(grows));
        inner
            .groups
            .write()
            .expect("never poisoned")
            .insert(id, group.clone());
        if let Some(heard) = inner.leaders.get(id) {
            group.leader_heard(heard.term);
        }
        let (node, followed) = (inner.clone(), group.clone());
        tokio::spawn(async move { node.follow(&followed).await });
        let now = Instant::now();
        let turn = TURN * inner.turn(&group);
        inner.elections.look_at(
            id,
            match (is_empty, is_first) {
                (true, true) => now,
                (true, false) => now + FIRST_ENTRY_GRACE + turn,
                // There is nobody to hear from. (Should others have been added since, they deny its pre-vote.)
                (false, _) if is_alone => now,
                (false, _) => now + OPEN_GRACE + turn,
            },
        );
        Ok(Group { inner: group })
    }

    /// Stops a replica here; with `erase`, also forgets its data.
    pub async fn close_group(&self, group: GroupId, erase: bool) {
        let inner = &self.inner;
        let _one_at_a_time = inner.opening[group.0 as usize % inner.opening.len()]
            .lock()
            .await;
        let open = inner.groups.write().expect("never poisoned").remove(&group);
        if let Some(open) = open {
            stop(inner, &open).await;
        }
        if erase {
            inner.leaders.forget_group(group);
            inner.store.submit(group, drave_storage::Write::Drop, None);
        }
    }

    /// An open replica.
    pub fn group(&self, group: GroupId) -> Option<Group> {
        self.inner.group(group).map(|inner| Group { inner })
    }

    /// The groups that this node leads and may serve.
    pub fn groups_led(&self) -> Vec<GroupId> {
        let open = self.inner.open_groups().into_iter();
        open.filter(|group| group.ready_term().is_some())
            .map(|group| group.id)
            .collect()
    }

    /// Changes whenever this node has won the leadership of a group.
    pub fn watch_groups_led(&self) -> watch::Receiver<u64> {
        self.inner.leaders.watch_won()
    }

    /// Who leads a group, also one that has no replica here: nodes tell each
    /// other what they lead. The highest term wins.
    pub fn leadership(&self, group: GroupId) -> Option<Leadership> {
        let here = self.inner.group(group).and_then(|open| open.leadership());
        let heard = self.inner.leaders.get(group);
        let known = [here, heard].into_iter().flatten();
        let newest = known.max_by_key(|known| known.term)?;
        let is_there = self.inner.is_there(newest.leader);
        is_there.then_some(newest)
    }

    /// Every peer of the cluster, this node included.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.inner.transport.peers()
    }

    /// The other brokers, and the bytes that wait to be sent to each.
    pub fn queued_bytes(&self) -> Vec<(u32, usize)> {
        self.inner.transport.queued_bytes()
    }

    /// Changes whenever a peer comes, goes or restarts.
    pub fn watch_peers(&self) -> watch::Receiver<Vec<PeerStatus>> {
        self.inner.transport.watch_peers()
    }

    /// Adds or moves peers, as brokers register.
    pub fn set_peers(&self, peers: Vec<(u32, SocketAddr)>) {
        self.inner.transport.set_peers(peers);
    }

    /// The cluster is formed: from now on peers of any other cluster are refused.
    pub fn set_cluster_id(&self, cluster_id: u128) {
        self.inner.transport.set_cluster_id(cluster_id);
    }

    /// Resolves when this data directory is clearly in the wrong cluster: no
    /// peer was met since the start, and most of them refuse it as a stranger.
    pub async fn refused_by_cluster(&self) -> Vec<u32> {
        while let Some(foreign) = self.inner.transport.foreign_peers() {
            let others = self.peers().len() - 1;
            if foreign.len() * 2 > others {
                return foreign;
            }
            tokio::time::sleep(FOREIGN_POLL).await;
        }
        std::future::pending().await
    }

    /// Says how many bytes of records the disk has room for. Appends of other
    /// nodes that go beyond are not taken, and will be sent again; what is small
    /// goes on.
    pub fn set_room(&self, bytes: u64) {
        self.inner.room.store(bytes, Ordering::Release);
    }

    /// Registers the handler of a service.
    pub fn serve(&self, service: u8, handler: Service) {
        self.inner
            .services
            .write()
            .expect("never poisoned")
            .insert(service, handler);
    }

    /// Calls a service of a peer; calling this node itself works too.
    pub async fn call(
        &self,
        broker: u32,
        service: u8,
        request: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        if broker == self.inner.replica.broker {
            let answer = self.inner.answer(self.inner.replica, service, request);
            let answer = tokio::time::timeout(timeout, answer).await;
            let answer = answer.map_err(|_| CallError::TimedOut(broker))?;
            return answer.ok_or(CallError::UnknownService(broker, service));
        }
        let message = Message {
            kind: kind::CALL,
            group: u64::from(service),
            header: Bytes::new(),
            payload: vec![request],
        };
        match self.inner.transport.request(broker, message, timeout).await {
            Ok(answer) => Ok(wire::joined(&answer.payload)),
            Err(TransportError::TimedOut) => Err(CallError::TimedOut(broker)),
            Err(TransportError::Lost) => Err(CallError::Lost(broker)),
            Err(TransportError::Refused) => Err(CallError::UnknownService(broker, service)),
            Err(TransportError::Unreachable | TransportError::Full) => {
                Err(CallError::Unreachable(broker))
            }
        }
    }

    /// Stops every group, task and connection. Hand over first.
    pub async fn shutdown(&self) {
        let open: Vec<_> = {
            let mut groups = self.inner.groups.write().expect("never poisoned");
            groups.drain().map(|(_, group)| group).collect()
        };
        for group in open {
            stop(&self.inner, &group).await;
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("never poisoned"));
        tasks.shutdown().await;
        self.inner.repairs.shutdown().await;
        self.inner.transport.shutdown().await;
        match blocking::run(&self.inner.store, |store| store.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "last flush failed"),
            Err(error) => warn!(%error, "last flush failed"),
        }
    }

    /// Asks a live voter of every group led here to take over, and waits
    /// (bounded) until others lead.
    pub async fn hand_over(&self) {
        let mut transfers = JoinSet::new();
        for group in self.inner.open_groups() {
            if group.leading_term().is_some()
                && let Some(to) = successor(&self.inner, &group)
            {
                transfers.spawn(hand_over(self.inner.clone(), group, to));
            }
        }
        let all = async { while transfers.join_next().await.is_some() {} };
        if tokio::time::timeout(HAND_OVER, all).await.is_err() {
            warn!("some leaderships could not be handed over in time");
        }
    }
}

async fn stop(node: &NodeInner, group: &GroupInner) {
    group.close();
    node.repairs.close(group.id);
    if let Err(error) = group.raft.shutdown().await {
        warn!(group = %group.id, %error, "group did not stop cleanly");
    }
}
