//! The node: every group, the transport, liveness and elections.
//!
//! [`RaftNode`] owns every task of this crate. It is started once and stopped
//! by [`RaftNode::shutdown`].

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use drave_storage::{GroupId, SharedStore};
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use openraft::impls::EmptyNode;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::config::raft_config;
use crate::elections::{Elections, RETRY, TURN};
use crate::group::{Group, GroupInner};
use crate::hand_over::{hand_over, run_balance, successor};
use crate::inbound::Receiver;
use crate::leaders::Leaders;
use crate::log_store::GroupLog;
use crate::machine::StateMachine;
use crate::net::Network;
use crate::state_machine::{CheckpointPolicy, Driver, PurgeDue};
use crate::transport::{Message, PeerEvent, Transport, TransportConfig, TransportError};
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

/// How a group is opened on this node.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// The group.
    pub group: GroupId,
    /// The replicas as placed, the preferred leader first: the first voters
    /// while the log is empty, and the order of elections. Empty: wait to be
    /// added by the leader.
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

/// How long a group that was just opened waits to hear who leads it.
const OPEN_GRACE: Duration = Duration::from_millis(300);
/// How long the other voters wait for the preferred leader to write the first entry.
const FIRST_ENTRY_GRACE: Duration = Duration::from_secs(2);
/// How often a node that has met nobody looks why.
const FOREIGN_POLL: Duration = Duration::from_millis(250);
/// Purges that wait at most; more are asked for again by later checkpoints.
const PURGES_MAX: usize = 1_024;
/// How long a stopping node waits for others to take over what it leads.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Shared by the node's tasks.
pub(crate) struct NodeInner {
    pub(crate) replica: ReplicaId,
    pub(crate) leaders: Leaders,
    transport: Arc<Transport>,
    elections: Arc<Elections>,
    store: SharedStore,
    groups: RwLock<HashMap<GroupId, Arc<GroupInner>>>,
    /// Serialises opening and closing of one group; groups share 64 of them.
    opening: Vec<tokio::sync::Mutex<()>>,
    services: RwLock<HashMap<u8, Service>>,
    purge_due: mpsc::Sender<PurgeDue>,
    events: mpsc::Sender<PeerEvent>,
    /// Since when each peer's process has been known.
    up_since: Mutex<HashMap<ReplicaId, Instant>>,
    raft_config: Arc<openraft::Config>,
}

impl NodeInner {
    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<GroupInner>> {
        self.groups
            .read()
            .expect("never poisoned")
            .get(&group)
            .cloned()
    }

    pub(crate) fn open_groups(&self) -> Vec<Arc<GroupInner>> {
        self.groups
            .read()
            .expect("never poisoned")
            .values()
            .cloned()
            .collect()
    }

    /// The group's leader, if its node is alive and is still the process that was elected.
    pub(crate) fn live_leader(&self, group: &GroupInner) -> Option<Leadership> {
        if group.suspect.load(Ordering::Acquire) {
            return None;
        }
        let here = group.raw_leadership();
        let heard = self.leaders.get(group.id);
        let newest = [here, heard]
            .into_iter()
            .flatten()
            .max_by_key(|known| known.term)?;
        let is_self = newest.leader.broker == self.replica.broker;
        let alive = if is_self {
            group.leading_term() == Some(newest.term)
        } else {
            self.transport.is_alive(newest.leader.broker)
        };
        alive.then_some(newest)
    }

    pub(crate) async fn answer(
        &self,
        from: ReplicaId,
        service: u8,
        request: Bytes,
    ) -> Option<Bytes> {
        let service = self
            .services
            .read()
            .expect("never poisoned")
            .get(&service)
            .cloned()?;
        Some(service(from, request).await)
    }

    pub(crate) fn is_alive(&self, broker: u32) -> bool {
        self.transport.is_alive(broker)
    }

    /// Whether the replica's process has been alive for that long.
    pub(crate) fn is_calm(&self, replica: ReplicaId, calm: Duration) -> bool {
        let up_since = self.up_since.lock().expect("never poisoned");
        let up = up_since
            .get(&replica)
            .is_some_and(|since| since.elapsed() >= calm);
        up && self.transport.is_alive(replica.broker)
    }

    /// Called by the transport; must not block.
    pub(crate) fn on_peer(&self, event: PeerEvent) {
        if let PeerEvent::Up { peer, .. } | PeerEvent::Restarted { peer, .. } = &event {
            let mut up_since = self.up_since.lock().expect("never poisoned");
            up_since.insert(*peer, Instant::now());
        }
        match &event {
            PeerEvent::Down { broker, .. } => self.leader_gone(*broker),
            PeerEvent::Restarted { peer, .. } => self.leader_gone(peer.broker),
            PeerEvent::Up { .. } => {}
        }
        if self.events.try_send(event).is_err() {
            warn!("too many peers come and go at once: an event is skipped");
        }
    }

    /// Every group that the broker led has to look for another leader.
    fn leader_gone(&self, broker: u32) {
        self.leaders.forget_broker(broker);
        let now = Instant::now();
        let mut orphans = 0u32;
        for group in self.open_groups() {
            if group
                .raw_leadership()
                .is_none_or(|known| known.leader.broker == broker)
            {
                group.suspect.store(true, Ordering::Release);
                let lease = group.lease_end() + Duration::from_millis(5);
                // Batches of 50 groups, so that thousands don't stand at once.
                let batch = Duration::from_millis(u64::from(orphans / 50) * 10);
                let at = lease.max(now) + TURN * self.turn(&group) + batch;
                self.elections.look_at(group.id, at);
                orphans += 1;
            }
        }
        info!(broker, groups = orphans, "a leader's node is gone");
    }

    /// How many live replicas stand before this one: in the order of the
    /// placement, or where it is not known, of the voters, rotated by group.
    fn turn(&self, group: &GroupInner) -> u32 {
        let mut order = group.preferred.clone();
        if !order.contains(&self.replica) {
            order = group.voters();
            if !order.is_empty() {
                let first = group.id.0 as usize % order.len();
                order.rotate_left(first);
            }
        }
        let before = order.iter().take_while(|replica| **replica != self.replica);
        before
            .filter(|replica| self.transport.is_alive(replica.broker))
            .count() as u32
    }

    /// A peer is (back) here: tell it what is led here, and go on replicating to it.
    async fn greet(&self, peer: ReplicaId) {
        self.send_leads(peer.broker, self.leaders.led_by(self.replica))
            .await;
        for group in self.open_groups() {
            if group.leading_term().is_some() {
                if let Err(error) = group.raft.trigger().reset_backoff([peer]).await {
                    debug!(group = %group.id, %error, "group is closing");
                }
            } else if self.live_leader(&group).is_none() {
                self.elections
                    .look_at(group.id, Instant::now() + TURN * self.turn(&group));
            }
        }
    }

    async fn send_leads(&self, broker: u32, groups: Vec<(u64, u64)>) {
        for part in groups.chunks(4_096) {
            let leads = wire::Leads {
                groups: part.to_vec(),
            };
            let header = wire::encode(&leads);
            let message = Message {
                kind: kind::LEADS,
                header,
                ..Message::default()
            };
            // A full queue empties or its connection ends, and then all is sent anew.
            while self.transport.is_alive(broker) && !self.transport.notify(broker, message.clone())
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Looks whether a group has a live leader, and stands for election if not.
    async fn look(&self, group: &Arc<GroupInner>) {
        if self.live_leader(group).is_some() || group.leading_term().is_some() {
            return;
        }
        let now = Instant::now();
        let lease_end = group.lease_end() + Duration::from_millis(5);
        if lease_end > now {
            return self.elections.look_at(group.id, lease_end);
        }
        let is_voter = group.voters().contains(&self.replica);
        let is_empty = group
            .raft
            .metrics()
            .borrow_watched()
            .last_log_index
            .is_none();
        if is_empty && !group.preferred.is_empty() {
            self.write_first_entry(group).await;
        } else if is_voter {
            debug!(group = %group.id, "standing for election");
            if group.raft.trigger().elect(true).await.is_err() {
                return;
            }
        } else {
            return;
        }
        let jitter = Duration::from_millis(rand::random_range(0..100));
        let again = now + RETRY + jitter + TURN / 3 * self.turn(group);
        self.elections.look_at(group.id, again);
    }

    async fn write_first_entry(&self, group: &GroupInner) {
        let nodes = group
            .preferred
            .iter()
            .map(|replica| (*replica, EmptyNode::new()));
        let nodes: std::collections::BTreeMap<_, _> = nodes.collect();
        if let Err(error) = group.raft.initialize(nodes).await {
            debug!(group = %group.id, %error, "first entry not written");
        }
    }

    /// Publishes changes of a group's leadership until the group is closed.
    async fn follow(&self, group: &Arc<GroupInner>) {
        let mut metrics = group.raft.server_metrics();
        loop {
            match group.publish_leadership() {
                Some(Some(leadership)) if leadership.leader == self.replica => {
                    debug!(group = %group.id, term = leadership.term, "leads");
                    self.leaders.announce(group.id, leadership);
                }
                Some(Some(leadership)) => self.leaders.learn(group.id, leadership),
                Some(None) if group.leading_term().is_none() => {
                    let at = Instant::now() + RETRY + TURN * self.turn(group);
                    self.elections.look_at(group.id, at);
                }
                _ => {}
            }
            let changed = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                () = group.progress().raft_entry_applied() => true,
                () = group.closed() => false,
            };
            if group.is_closed() {
                return;
            }
            let ended = group
                .raft
                .metrics()
                .borrow_watched()
                .running_state
                .clone()
                .err();
            if ended.is_some() || !changed {
                // Others count on this node for the group: a broker that goes
                // on without it would neither serve it nor let it be served.
                error!(group = %group.id, ?ended, "a group's Raft has failed, the process ends");
                std::process::abort();
            }
        }
    }
}

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
        let (store, purge_due) = (inner.store.clone(), inner.purge_due.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let state = store.open_group(id).map_err(|error| error.to_string())?;
            let log = GroupLog::new(id, store.clone(), &state)?;
            let driver = Driver::open(id, store, machine, policy, purge_due, &state)?;
            Ok::<_, String>((log, driver, state.last.is_none()))
        });
        let (log, driver, is_empty) = opened
            .await?
            .map_err(|reason| anyhow!("{id} can't be opened: {reason}"))?;
        let progress = driver.progress();
        let network = Network {
            group: id,
            transport: inner.transport.clone(),
        };
        let raft = Raft::new(
            inner.replica,
            inner.raft_config.clone(),
            network,
            log,
            driver,
        )
        .await?;
        let is_first = spec.voters.first() == Some(&inner.replica);
        let group = Arc::new(GroupInner::new(
            id,
            inner.replica,
            raft,
            spec.voters,
            inner.elections.clone(),
            inner.store.clone(),
            progress,
        ));
        inner
            .groups
            .write()
            .expect("never poisoned")
            .insert(id, group.clone());
        let (node, followed) = (inner.clone(), group.clone());
        tokio::spawn(async move { node.follow(&followed).await });
        let now = Instant::now();
        let turn = TURN * inner.turn(&group);
        inner.elections.look_at(
            id,
            match (is_empty, is_first) {
                (true, true) => now,
                (true, false) => now + FIRST_ENTRY_GRACE + turn,
                (false, _) if group.voters() == [inner.replica] => now,
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
            stop(&open).await;
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

    /// Who leads a group, also one that has no replica here: nodes tell each
    /// other what they lead. The highest term wins.
    pub fn leadership(&self, group: GroupId) -> Option<Leadership> {
        let here = self.inner.group(group).and_then(|open| open.leadership());
        let heard = self.inner.leaders.get(group);
        let known = [here, heard].into_iter().flatten();
        let newest = known.max_by_key(|known| known.term)?;
        self.inner
            .transport
            .is_alive(newest.leader.broker)
            .then_some(newest)
    }

    /// Every peer of the cluster, this node included.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.inner.transport.peers()
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
            stop(&group).await;
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("never poisoned"));
        tasks.shutdown().await;
        self.inner.transport.shutdown().await;
        let store = self.inner.store.clone();
        match tokio::task::spawn_blocking(move || store.flush()).await {
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

async fn stop(group: &GroupInner) {
    group.close();
    if let Err(error) = group.raft.shutdown().await {
        warn!(group = %group.id, %error, "group did not stop cleanly");
    }
}

async fn run_elections(node: Arc<NodeInner>) {
    loop {
        let id = node.elections.next().await;
        if let Some(group) = node.group(id) {
            node.look(&group).await;
        }
    }
}

async fn run_announcements(node: Arc<NodeInner>) {
    loop {
        let groups = node.leaders.unannounced().await;
        for peer in node.transport.peers() {
            if peer.alive && peer.broker != node.replica.broker {
                node.send_leads(peer.broker, groups.clone()).await;
            }
        }
        // Leaderships come in bursts: gather the next ones.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn run_greetings(node: Arc<NodeInner>, mut events: mpsc::Receiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Up { peer, .. } | PeerEvent::Restarted { peer, .. } => {
                node.greet(peer).await
            }
            PeerEvent::Down { .. } => {}
        }
    }
}

/// Makes checkpoints the snapshots of their groups; openraft then purges up to them.
async fn run_purges(node: Arc<NodeInner>, mut purges: mpsc::Receiver<PurgeDue>) {
    while let Some(due) = purges.recv().await {
        let Some(group) = node.group(due.group) else {
            continue;
        };
        debug!(group = %due.group, index = due.index, "purging");
        if let Err(error) = group.raft.trigger().snapshot().await {
            debug!(group = %due.group, %error, "group is closing");
        }
    }
}

/// The transport starts before the node exists, and may already deliver.
struct LateReceiver {
    slot: Arc<std::sync::OnceLock<std::sync::Weak<NodeInner>>>,
    receiver: std::sync::OnceLock<Receiver>,
}

impl LateReceiver {
    fn receiver(&self) -> Option<&Receiver> {
        let node = self.slot.get()?;
        Some(self.receiver.get_or_init(|| Receiver::new(node.clone())))
    }
}

impl crate::transport::Inbound for LateReceiver {
    fn on_request(&self, from: ReplicaId, message: Message, reply: crate::transport::ReplySender) {
        if let Some(receiver) = self.receiver() {
            receiver.on_request(from, message, reply);
        }
    }

    fn on_peer(&self, event: PeerEvent) {
        if let Some(receiver) = self.receiver() {
            receiver.on_peer(event);
        }
    }
}
