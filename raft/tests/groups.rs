//! Three nodes in one process, over real sockets: groups elect, replicate,
//! survive the loss of a leader, and catch up after a restart.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use drave_raft::{
    Applied, Command, Group, GroupId, GroupSpec, MachineError, NodeConfig, ProposeError, RaftNode,
    ReplicaId, Reply, StateMachine,
};
use drave_storage::{Engine, EngineOptions, SharedStore};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

const TAG: u8 = 16;
const LONG: Duration = Duration::from_secs(20);

/// Keeps every payload that it was given.
#[derive(Default)]
struct Recorder {
    seen: Arc<Mutex<Vec<Bytes>>>,
}

impl StateMachine for Recorder {
    fn apply(&mut self, entry: Applied<'_>) -> Reply {
        let mut seen = self.seen.lock().unwrap();
        if let Some(command) = entry.command {
            seen.push(command.payload.clone());
        }
        Box::new(seen.len())
    }

    fn checkpoint(&self) -> Bytes {
        let mut bytes = Vec::new();
        for payload in self.seen.lock().unwrap().iter() {
            bytes.extend((payload.len() as u32).to_be_bytes());
            bytes.extend_from_slice(payload);
        }
        bytes.into()
    }

    fn restore(&mut self, _: u64, _: u64, mut bytes: &[u8]) -> Result<(), MachineError> {
        let mut seen = self.seen.lock().unwrap();
        seen.clear();
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let (payload, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
            seen.push(Bytes::copy_from_slice(payload));
            bytes = rest;
        }
        Ok(())
    }
}

struct Node {
    raft: Arc<RaftNode>,
    seen: Arc<Mutex<Vec<Bytes>>>,
}

struct Cluster {
    addresses: Vec<(u32, SocketAddr)>,
    directories: Vec<TempDir>,
    /// How often the disk of each node was lost.
    lost: Vec<u128>,
    nodes: Vec<Option<Node>>,
}

impl Cluster {
    async fn start(count: u32) -> Cluster {
        let mut listeners = Vec::new();
        for _ in 0..count {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<_> = listeners
            .iter()
            .enumerate()
            .map(|(i, l)| (i as u32 + 1, l.local_addr().unwrap()))
            .collect();
        let mut cluster = Cluster {
            addresses,
            directories: (0..count).map(|_| TempDir::new().unwrap()).collect(),
            lost: vec![0; count as usize],
            nodes: (0..count).map(|_| None).collect(),
        };
        for (at, listener) in listeners.into_iter().enumerate() {
            cluster.start_node(at, listener).await;
        }
        cluster
    }

    async fn start_node(&mut self, at: usize, listener: TcpListener) {
        // The tasks of a stopped node let go of its disk one by one.
        let deadline = Instant::now() + LONG;
        let store: SharedStore = loop {
            match Engine::open(self.directories[at].path(), EngineOptions::default()) {
                Ok(engine) => break engine,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            sleep(Duration::from_millis(50)).await;
        };
        let config = NodeConfig {
            replica: self.replica(at),
            cluster_id: Some(7),
            peers: self.addresses.clone(),
            listener,
            peer_dead_after: Duration::from_secs(1),
        };
        let raft = RaftNode::start(config, store).await.unwrap();
        self.nodes[at] = Some(Node {
            raft,
            seen: Arc::default(),
        });
    }

    async fn restart_node(&mut self, at: usize) {
        let listener = TcpListener::bind(self.addresses[at].1).await.unwrap();
        self.start_node(at, listener).await;
    }

    /// Stops without handing anything over.
    async fn stop_node(&mut self, at: usize) {
        if let Some(node) = self.nodes[at].take() {
            node.raft.shutdown().await;
        }
    }

    fn replica(&self, at: usize) -> ReplicaId {
        ReplicaId {
            broker: at as u32 + 1,
            directory: 100 + at as u128 + 1_000 * self.lost[at],
        }
    }

    /// The replicas before any disk was lost.
    fn founders(&self) -> Vec<ReplicaId> {
        let founder = |at| ReplicaId {
            broker: at as u32 + 1,
            directory: 100 + at as u128,
        };
        (0..self.nodes.len()).map(founder).collect()
    }

    /// Stops a node and gives it an empty disk.
    async fn lose_disk(&mut self, at: usize) {
        self.stop_node(at).await;
        self.directories[at] = TempDir::new().unwrap();
        self.lost[at] += 1;
    }

    /// Makes the present replicas the voters of the group, wherever it is led.
    async fn replace_voters(&self, group: u64) {
        let wanted: Vec<_> = (0..self.nodes.len()).map(|at| self.replica(at)).collect();
        let deadline = Instant::now() + LONG;
        loop {
            for node in self.running() {
                let open = node.raft.group(GroupId(group)).unwrap();
                if open.status().ready {
                    let changed = open.change_voters(wanted.clone(), LONG).await;
                    let status = open.status();
                    if changed.is_ok() && status.voters == wanted {
                        assert_eq!(status.learners, []);
                        let known: Vec<_> = status.matched.iter().map(|known| known.0).collect();
                        assert!(
                            known.iter().all(|known| wanted.contains(known)),
                            "{known:?}"
                        );
                        return;
                    }
                }
            }
            assert!(Instant::now() < deadline, "the voters are not replaced");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn open(&self, at: usize, group: u64, purge_behind: Option<u32>) -> Group {
        let node = self.nodes[at].as_ref().unwrap();
        let mut founders = self.founders();
        if !founders.contains(&self.replica(at)) {
            founders.clear();
        }
        let spec = GroupSpec {
            group: GroupId(group),
            voters: founders,
            checkpoint_bytes: 20 * 1024,
            purge_behind_checkpoints: purge_behind,
            commit_notice_wait: Duration::ZERO,
        };
        let machine = Box::new(Recorder {
            seen: node.seen.clone(),
        });
        node.raft.open_group(spec, machine).await.unwrap()
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// Proposes at whichever node leads, until it is committed.
    async fn write(&self, group: u64, payload: &str) {
        let deadline = Instant::now() + LONG;
        loop {
            for node in self.running() {
                let Some(open) = node.raft.group(GroupId(group)) else {
                    continue;
                };
                let payload = Bytes::copy_from_slice(payload.as_bytes());
                let command = Command {
                    tag: TAG,
                    stamp: 1,
                    payload,
                };
                match open.propose(command, Duration::from_secs(5)).await {
                    Ok(_) => return,
                    Err(ProposeError::NotLeader { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(Instant::now() < deadline, "no leader");
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn expect(&self, at: usize, expected: &[String]) {
        let deadline = Instant::now() + LONG;
        loop {
            let seen: Vec<String> = self.nodes[at]
                .as_ref()
                .unwrap()
                .seen
                .lock()
                .unwrap()
                .iter()
                .map(|payload| String::from_utf8(payload.to_vec()).unwrap())
                .collect();
            if seen == expected {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "node {at} has {} entries",
                seen.len()
            );
            sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_commits_every_node_applies_in_order() {
    let cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    let mut expected = Vec::new();
    for number in 0..50 {
        let payload = format!("payload {number}");
        cluster.write(7, &payload).await;
        expected.push(payload);
    }
    for at in 0..3 {
        cluster.expect(at, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_leads_itself_after_every_restart() {
    let mut cluster = Cluster::start(1).await;
    cluster.open(0, 7, None).await;
    cluster.write(7, "before").await;
    cluster.stop_node(0).await;
    cluster.restart_node(0).await;
    cluster.open(0, 7, None).await;
    cluster.write(7, "after").await;
    cluster.expect(0, &["before".into(), "after".into()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_is_replaced_as_leader_and_catches_up_when_it_is_back() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "one").await;
    let leader = cluster.nodes[0]
        .as_ref()
        .unwrap()
        .raft
        .leadership(GroupId(7))
        .unwrap()
        .leader;
    let at = leader.broker as usize - 1;
    cluster.stop_node(at).await;
    cluster.write(7, "two").await;
    cluster.restart_node(at).await;
    cluster.open(at, 7, None).await;
    cluster.write(7, "three").await;
    let expected = ["one", "two", "three"].map(String::from);
    for at in 0..3 {
        cluster.expect(at, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_missed_purged_entries_gets_a_checkpoint() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, Some(1)).await;
    }
    let mut expected = vec!["first".to_string()];
    cluster.write(7, "first").await;
    cluster.stop_node(2).await;
    for number in 0..100 {
        let payload = format!("payload {number}");
        cluster.write(7, &payload).await;
        expected.push(payload);
    }
    cluster.restart_node(2).await;
    cluster.open(2, 7, Some(1)).await;
    cluster.write(7, "last").await;
    expected.push("last".into());
    for at in 0..3 {
        cluster.expect(at, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_replica_that_is_no_founder_waits_to_be_added() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "one").await;
    for at in 0..2 {
        cluster.stop_node(at).await;
    }
    cluster.lose_disk(2).await;
    cluster.restart_node(2).await;
    let empty = cluster.open(2, 7, None).await;
    empty.prefer(vec![
        cluster.replica(2),
        cluster.replica(0),
        cluster.replica(1),
    ]);
    // Longer than a founder would wait before it writes the first entry.
    sleep(Duration::from_secs(4)).await;
    let status = empty.status();
    assert_eq!((status.last_index, status.leadership), (None, None));
    assert_eq!(status.voters, []);

    // Nor does it help one of three to a majority.
    cluster.restart_node(1).await;
    cluster.open(1, 7, None).await;
    sleep(Duration::from_secs(4)).await;
    for node in cluster.running() {
        assert_eq!(node.raft.leadership(GroupId(7)), None);
    }
    assert_eq!(empty.status().last_index, None);

    cluster.restart_node(0).await;
    cluster.open(0, 7, None).await;
    cluster.replace_voters(7).await;
    cluster.stop_node(0).await;
    cluster.write(7, "two").await;
    cluster.expect(2, &["one".into(), "two".into()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_lose_their_disks_in_turn_hold_everything_in_the_end() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, Some(1)).await;
    }
    let mut expected = Vec::new();
    for at in 0..2 {
        // Twice: what was added first is gone again before it votes.
        for _ in 0..2 {
            cluster.lose_disk(at).await;
            cluster.restart_node(at).await;
            cluster.open(at, 7, Some(1)).await;
        }
        for number in 0..60 {
            let payload = format!("payload {at} {number}");
            cluster.write(7, &payload).await;
            expected.push(payload);
        }
        cluster.replace_voters(7).await;
    }
    cluster.stop_node(2).await;
    cluster.write(7, "last").await;
    expected.push("last".into());
    for at in 0..2 {
        cluster.expect(at, &expected).await;
    }
}

/// What the others remember of the leader is no sign that it leads, when its
/// broker is back with another disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_lost_its_disk_is_replaced_also_when_all_nodes_start_again() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "one").await;
    let leadership = cluster.nodes[1]
        .as_ref()
        .unwrap()
        .raft
        .leadership(GroupId(7));
    let led = leadership.unwrap().leader.broker as usize - 1;
    for at in (0..3).filter(|at| *at != led) {
        cluster.stop_node(at).await;
    }
    cluster.lose_disk(led).await;
    for at in 0..3 {
        cluster.restart_node(at).await;
    }
    // They know each other before they open the group.
    sleep(Duration::from_secs(1)).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "two").await;
    cluster.replace_voters(7).await;
    cluster.expect(led, &["one".into(), "two".into()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_at_rest_takes_a_write_after_its_lease_is_over() {
    let cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "one").await;
    sleep(Duration::from_secs(2)).await;
    cluster.write(7, "two").await;
    cluster.expect(2, &["one".into(), "two".into()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_know_the_leaders_of_groups_that_they_do_not_hold() {
    let cluster = Cluster::start(3).await;
    let node = cluster.nodes[0].as_ref().unwrap();
    let spec = GroupSpec {
        group: GroupId(9),
        voters: vec![cluster.replica(0)],
        checkpoint_bytes: 1 << 20,
        purge_behind_checkpoints: None,
        commit_notice_wait: Duration::ZERO,
    };
    node.raft
        .open_group(spec, Box::new(Recorder::default()))
        .await
        .unwrap();
    let deadline = Instant::now() + LONG;
    let elsewhere = &cluster.nodes[2].as_ref().unwrap().raft;
    while elsewhere.leadership(GroupId(9)).map(|known| known.leader) != Some(cluster.replica(0)) {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
}

/// It has had nothing to write since it was started, and so does not know by itself how far its log is on disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_restarted_at_rest_takes_over_from_a_leader_that_stops() {
    let mut cluster = Cluster::start(3).await;
    for at in 0..3 {
        cluster.open(at, 7, None).await;
    }
    cluster.write(7, "one").await;
    for at in 0..3 {
        cluster.expect(at, &["one".into()]).await;
    }
    let first = cluster.nodes[0].as_ref().unwrap();
    let known = first.raft.leadership(GroupId(7)).unwrap();
    let leader = known.leader.broker as usize - 1;
    let (heir, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop_node(heir).await;
    cluster.restart_node(heir).await;
    let heirs = cluster.open(heir, 7, None).await;
    let deadline = Instant::now() + LONG;
    while heirs.status().leadership != Some(known) {
        assert!(
            Instant::now() < deadline,
            "the restarted node knows no leader"
        );
        sleep(Duration::from_millis(10)).await;
    }
    cluster.stop_node(other).await;
    cluster.nodes[leader]
        .as_ref()
        .unwrap()
        .raft
        .hand_over()
        .await;
    while heirs.ready_term().is_none() {
        assert!(
            Instant::now() < deadline,
            "the restarted node does not lead"
        );
        sleep(Duration::from_millis(10)).await;
    }
    cluster.write(7, "two").await;
    cluster.expect(heir, &["one".into(), "two".into()]).await;
}
