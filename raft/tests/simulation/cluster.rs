//! The simulated cluster: what runs on each node, and what outlives its process.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use drave_raft::runtime::COMMIT_NOTICE_WAIT;
use drave_raft::{
    Applied, Command, Group, GroupId, GroupSpec, MachineError, NodeConfig, RaftNode, ReplicaId,
    Reply, StateMachine,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::info;
use turmoil::net::TcpListener;

use super::disk::{Breakage, Disk};
use super::oracle::{CommandId, Oracle};
use super::trace::now_ms;

const PORT: u16 = 9000;
const TAG: u8 = 16;
/// Proposers of each group on each node.
const WRITERS: usize = 2;
const PAYLOAD_BYTES_MAX: usize = 3_000;
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Small, so that checkpoints and snapshots come often.
const CHECKPOINT_BYTES: u64 = 32 * 1024;
/// Entries that the owner of a group keeps when it purges.
const RETAINED_ENTRIES: u64 = 40;

/// What a seed's cluster is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) groups: u64,
    /// Voters of a group; where there are more nodes, groups move.
    pub(crate) voters: usize,
    /// How long a sync takes at most, as long as the disk is not slow.
    pub(crate) sync_ms: u64,
    /// How long a proposer waits at most until it proposes again.
    pub(crate) think_ms: u64,
    /// How long the network takes at most.
    pub(crate) latency_ms: u64,
    /// The longest wait for the next fault.
    pub(crate) fault_pause_ms: u64,
}

impl Shape {
    pub(crate) fn chosen(chance: &mut StdRng) -> Shape {
        let mut one_of = |choices: &[u64]| choices[chance.random_range(0..choices.len())];
        let (nodes, voters) = [(3, 3), (5, 5), (5, 3)][one_of(&[0, 0, 1, 2, 2]) as usize];
        Shape {
            nodes,
            voters,
            groups: one_of(&[1, 2, 3]),
            sync_ms: one_of(&[2, 8, 30, 80]),
            think_ms: one_of(&[30, 150]),
            latency_ms: one_of(&[1, 5, 20, 60]),
            fault_pause_ms: one_of(&[400, 1_200, 2_500]),
        }
    }
}

/// What outlives the processes, and what the outside knows.
pub(crate) struct Cluster {
    pub(crate) shape: Shape,
    pub(crate) addresses: OnceLock<Vec<(u32, SocketAddr)>>,
    /// How long a sync takes at most on each node, ms.
    pub(crate) sync_ms: Vec<AtomicU64>,
    /// Whether proposers propose.
    pub(crate) writing: AtomicBool,
    /// Whether groups move.
    pub(crate) moving: AtomicBool,
    /// Asks each node to stop in good order.
    pub(crate) stop: Vec<Notify>,
    /// The open replicas.
    replicas: Mutex<BTreeMap<(usize, u64), Group>>,
    disks: Vec<Mutex<Arc<Disk>>>,
    oracle: Mutex<Oracle>,
    chance: Mutex<StdRng>,
    commands: AtomicU64,
}

pub(crate) fn name(node: usize) -> String {
    format!("node{node}")
}

impl Cluster {
    pub(crate) fn new(seed: u64, shape: Shape, breakage: Breakage) -> Arc<Cluster> {
        let nodes = 0..shape.nodes;
        Arc::new(Cluster {
            shape,
            addresses: OnceLock::new(),
            sync_ms: nodes
                .clone()
                .map(|_| AtomicU64::new(shape.sync_ms))
                .collect(),
            writing: AtomicBool::new(true),
            moving: AtomicBool::new(shape.voters < shape.nodes),
            stop: nodes.clone().map(|_| Notify::new()).collect(),
            replicas: Mutex::default(),
            disks: nodes
                .map(|node| Mutex::new(Arc::new(Disk::new(node, breakage))))
                .collect(),
            oracle: Mutex::default(),
            chance: Mutex::new(StdRng::seed_from_u64(seed)),
            commands: AtomicU64::new(0),
        })
    }

    pub(crate) fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap()
    }

    /// The nodes that hold each group, as its leader says; `None` while one has no leader.
    pub(crate) fn members(&self) -> Option<Vec<(usize, u64)>> {
        let replicas = self.replicas.lock().unwrap();
        let mut members = Vec::new();
        for group in 1..=self.shape.groups {
            let open = replicas.iter().filter(|((_, open), _)| *open == group);
            let leader = open.max_by_key(|(_, replica)| replica.ready_term());
            let status = leader.map(|(_, replica)| replica.status());
            let status = status.filter(|status| status.ready)?;
            let all = status.voters.iter().chain(&status.learners);
            members.extend(all.map(|replica| (replica.broker as usize - 1, group)));
        }
        Some(members)
    }

    /// The replicas of the process before this one are gone.
    fn forget_replicas(&self, node: usize) {
        let mut replicas = self.replicas.lock().unwrap();
        replicas.retain(|(of, _), _| *of != node);
    }

    fn add_replica(&self, node: usize, open: Group) {
        let mut replicas = self.replicas.lock().unwrap();
        replicas.insert((node, open.id().0), open);
    }

    /// Voters of a group from now on.
    fn some_voters(&self) -> Vec<ReplicaId> {
        let mut all: Vec<_> = (0..self.shape.nodes).map(replica).collect();
        let mut chance = self.chance.lock().unwrap();
        while all.len() > self.shape.voters {
            let gone = chance.random_range(0..all.len());
            all.swap_remove(gone);
        }
        all
    }

    /// The same place for every process of the node, another disk after each crash.
    pub(crate) fn disk(&self, node: usize) -> MutexGuard<'_, Arc<Disk>> {
        self.disks[node].lock().unwrap()
    }

    pub(crate) fn address_of(address: std::net::IpAddr) -> SocketAddr {
        SocketAddr::new(address, PORT)
    }

    /// A number of milliseconds from a range, by the seed.
    fn some_ms(&self, from: u64, to: u64) -> Duration {
        let ms = self.chance.lock().unwrap().random_range(from..=to);
        Duration::from_millis(ms)
    }

    fn new_command(&self) -> (CommandId, Command) {
        let id = self.commands.fetch_add(1, Ordering::Relaxed);
        let padding = self
            .chance
            .lock()
            .unwrap()
            .random_range(0..PAYLOAD_BYTES_MAX);
        let mut payload = id.to_be_bytes().to_vec();
        payload.resize(payload.len() + padding, id as u8);
        let command = Command {
            tag: TAG,
            stamp: now_ms() as i64,
            payload: payload.into(),
        };
        (id, command)
    }
}

fn replica(node: usize) -> ReplicaId {
    ReplicaId {
        broker: node as u32 + 1,
        directory: 100 + node as u128,
    }
}

/// A process of a node, until it is crashed.
pub(crate) async fn run_node(cluster: Arc<Cluster>, node: usize) -> turmoil::Result {
    let disk = cluster.disk(node).clone();
    cluster.forget_replicas(node);
    let config = NodeConfig {
        replica: replica(node),
        cluster_id: Some(7),
        peers: cluster.addresses.get().expect("all are named").clone(),
        listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?,
        peer_dead_after: Duration::from_secs(1),
    };
    let syncing = cluster.clone();
    tokio::spawn(
        disk.clone()
            .run(move || syncing.some_ms(0, syncing.sync_ms[node].load(Ordering::Relaxed))),
    );
    let raft = RaftNode::start(config, disk).await?;
    for group in 1..=cluster.shape.groups {
        let open = open(&cluster, &raft, node, group).await?;
        for _ in 0..WRITERS {
            tokio::spawn(write(cluster.clone(), open.clone(), node));
        }
        tokio::spawn(read(cluster.clone(), open.clone(), node));
        tokio::spawn(watch(cluster.clone(), open.clone(), node));
        tokio::spawn(move_about(cluster.clone(), open.clone(), node));
        if group % 3 == 0 {
            tokio::spawn(purge(cluster.clone(), open.clone()));
        }
        cluster.add_replica(node, open);
    }
    cluster.stop[node].notified().await;
    raft.hand_over().await;
    raft.shutdown().await;
    info!(target: "simulation", node, "stopped");
    std::future::pending().await
}

/// Groups are of three kinds: those that keep their log, those that purge behind
/// checkpoints, and those that their owner purges.
async fn open(
    cluster: &Arc<Cluster>,
    raft: &RaftNode,
    node: usize,
    group: u64,
) -> anyhow::Result<Group> {
    let mut voters: Vec<_> = (0..cluster.shape.nodes).map(replica).collect();
    voters.rotate_left(group as usize % cluster.shape.nodes);
    voters.truncate(cluster.shape.voters);
    if !voters.contains(&replica(node)) {
        // It waits to be added.
        voters.clear();
    }
    let spec = GroupSpec {
        group: GroupId(group),
        voters,
        checkpoint_bytes: CHECKPOINT_BYTES,
        purge_behind_checkpoints: (group % 3 == 2).then_some(1),
        commit_notice_wait: match group % 2 {
            0 => COMMIT_NOTICE_WAIT,
            _ => Duration::ZERO,
        },
    };
    cluster.oracle().opened(node, group);
    let machine = Machine {
        cluster: cluster.clone(),
        node,
        group,
        commands: Vec::new(),
    };
    raft.open_group(spec, Box::new(machine)).await
}

/// Proposes wherever the group is led, and tries now and then where it is not.
async fn write(cluster: Arc<Cluster>, group: Group, node: usize) {
    let id = group.id().0;
    loop {
        sleep(cluster.some_ms(2, cluster.shape.think_ms)).await;
        if !cluster.writing.load(Ordering::Relaxed) {
            continue;
        }
        let (number, command) = cluster.new_command();
        let before = cluster.oracle().before(id, now_ms());
        match group.propose(command, PROPOSE_TIMEOUT).await {
            Ok(proposed) => cluster.oracle().acknowledged(
                node,
                id,
                (proposed.index, proposed.term),
                number,
                before,
            ),
            Err(_) => sleep(cluster.some_ms(50, 300)).await,
        }
    }
}

/// Asks whether reads may be answered.
async fn read(cluster: Arc<Cluster>, group: Group, node: usize) {
    let id = group.id().0;
    loop {
        sleep(cluster.some_ms(20, 400)).await;
        if group.ready_term().is_none() {
            continue;
        }
        let before = cluster.oracle().before(id, now_ms());
        if group.read_barrier(READ_TIMEOUT).await.is_ok() {
            cluster.oracle().may_read(node, id, before);
        }
    }
}

/// Tells when this node leads.
async fn watch(cluster: Arc<Cluster>, group: Group, node: usize) {
    let mut leadership = group.watch_leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if let Some(known) = now
            && known.leader == replica(node)
        {
            cluster.oracle().leads(node, group.id().0, known.term);
        }
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Gives the group other voters now and then, where it is led.
async fn move_about(cluster: Arc<Cluster>, group: Group, node: usize) {
    loop {
        sleep(cluster.some_ms(100, 4_000)).await;
        if !cluster.moving.load(Ordering::Relaxed) || group.ready_term().is_none() {
            continue;
        }
        let voters = cluster.some_voters();
        let moved = group.change_voters(voters.clone(), PROPOSE_TIMEOUT).await;
        let (group, ok) = (group.id().0, moved.is_ok());
        info!(target: "simulation", node, group, ?voters, ok, "moved");
    }
}

/// Keeps the newest entries only, as retention does.
async fn purge(cluster: Arc<Cluster>, group: Group) {
    loop {
        sleep(cluster.some_ms(200, 800)).await;
        let applied = group.status().applied.unwrap_or(0);
        if let Some(before) = applied.checked_sub(RETAINED_ENTRIES) {
            let purge = group.purge_before(before);
            // A node that is busy purges next time.
            timeout(READ_TIMEOUT, purge).await.ok();
        }
    }
}

/// Keeps the number of every command, and tells the oracle.
struct Machine {
    cluster: Arc<Cluster>,
    node: usize,
    group: u64,
    commands: Vec<(u64, CommandId)>,
}

impl StateMachine for Machine {
    fn apply(&mut self, entry: Applied<'_>) -> Reply {
        let id = entry.command.map(|command| {
            let head = command.payload.first_chunk().expect("a number");
            u64::from_be_bytes(*head)
        });
        self.commands.extend(id.map(|id| (entry.index, id)));
        let mut oracle = self.cluster.oracle();
        oracle.applied(self.node, self.group, entry.index, entry.term, id);
        Box::new(())
    }

    fn checkpoint(&self) -> Bytes {
        let numbers = self.commands.iter().flat_map(|(index, id)| [*index, *id]);
        numbers
            .flat_map(u64::to_be_bytes)
            .collect::<Vec<u8>>()
            .into()
    }

    fn restore(&mut self, index: u64, _: u64, bytes: &[u8]) -> Result<(), MachineError> {
        let (numbers, _) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = numbers
            .iter()
            .map(|bytes| u64::from_be_bytes(*bytes))
            .collect();
        let (pairs, _) = numbers.as_chunks::<2>();
        self.commands = pairs.iter().map(|[index, id]| (*index, *id)).collect();
        let mut oracle = self.cluster.oracle();
        oracle.restored(self.node, self.group, index, &self.commands);
        Ok(())
    }
}
