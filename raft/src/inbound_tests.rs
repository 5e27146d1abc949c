//! A leader that is played by hand, against a real follower.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::{Engine, EngineOptions, Entry, GroupId};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::entry::{LogEntry, entry_id};
use crate::machine::{Applied, MachineError, Reply, StateMachine};
use crate::runtime::{GroupSpec, NodeConfig, RaftNode};
use crate::transport::{Inbound, Message, PeerEvent, ReplySender, Transport, TransportConfig};
use crate::types::ReplicaId;
use crate::wire::{self, Append, AppendReply, RaftVote, kind};

const GROUP: GroupId = GroupId(1024);
const TERM: u64 = 3;
const SOON: Duration = Duration::from_secs(20);

/// A machine without a state.
struct Nothing;

impl StateMachine for Nothing {
    fn apply(&mut self, _: Applied<'_>) -> Reply {
        Box::new(())
    }

    fn checkpoint(&self) -> Bytes {
        Bytes::new()
    }

    fn restore(&mut self, _: u64, _: u64, _: &[u8]) -> Result<(), MachineError> {
        Ok(())
    }
}

/// Answers nothing: the follower asks nothing that matters here.
struct Deaf;

impl Inbound for Deaf {
    fn on_request(&self, _: ReplicaId, _: Message, _: ReplySender) {}
    fn on_peer(&self, _: PeerEvent) {}
}

fn replica(broker: u32) -> ReplicaId {
    let directory = u128::from(broker);
    ReplicaId { broker, directory }
}

/// Entries from `first` to `end`, after the one before `first`.
fn append(first: u64, end: u64) -> Message {
    let payload = Bytes::from(vec![7; 1 << 10]);
    let entry = |index| {
        LogEntry::from(Entry {
            index,
            term: TERM,
            tag: 16,
            stamp: 0,
            checksum: crc32c::crc32c(&payload),
            payload: payload.clone(),
        })
    };
    let append = Append {
        vote: RaftVote::new_committed(TERM, replica(1)),
        prev_log_id: first.checked_sub(1).map(|index| entry_id(TERM, index)),
        entries: (first..end).map(entry).collect(),
        leader_commit: None,
    };
    wire::encode_append(GROUP.0, replica(2), append)
}

/// A commit notice that overtook the entries it follows would be a conflict:
/// openraft's leader then gives up its stream and waits before the next one.
#[tokio::test(flavor = "multi_thread")]
async fn appends_without_entries_keep_their_place() {
    let bind = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (at_leader, at_follower) = (bind().await.expect("binds"), bind().await.expect("binds"));
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let peers = vec![(1, address(&at_leader)), (2, address(&at_follower))];
    let dir = tempfile::tempdir().expect("a directory");
    let store = Engine::open(dir.path(), EngineOptions::default()).expect("opens");
    let node = NodeConfig {
        replica: replica(2),
        cluster_id: Some(1),
        peers: peers.clone(),
        listener: at_follower,
        peer_dead_after: Duration::from_secs(1),
    };
    let follower = RaftNode::start(node, store).await.expect("starts");
    let spec = GroupSpec {
        group: GROUP,
        voters: Vec::new(),
        checkpoint_bytes: 1 << 30,
        purge_behind_checkpoints: None,
        commit_notice_wait: Duration::ZERO,
    };
    follower
        .open_group(spec, Box::new(Nothing))
        .await
        .expect("opens");
    let config = TransportConfig {
        local: replica(1),
        incarnation: 1,
        cluster_id: Some(1),
        peers,
        dead_after: Duration::from_secs(1),
        heartbeat_every: Duration::from_millis(100),
    };
    let leader = Transport::start(config, at_leader, Arc::new(|| 0), Arc::new(Deaf)).await;
    let leader = leader.expect("starts");
    let deadline = Instant::now() + SOON;
    while leader.request(2, append(0, 0), SOON).await.is_err() {
        assert!(Instant::now() < deadline, "the follower does not answer");
        sleep(Duration::from_millis(10)).await;
    }

    for round in 0..50u64 {
        let first = round * 20;
        let requests: Vec<_> = (first..first + 20)
            .flat_map(|index| [append(index, index + 1), append(index + 1, index + 1)])
            .map(|message| leader.request(2, message, SOON))
            .collect();
        for (nth, request) in requests.into_iter().enumerate() {
            let reply = request.await.expect("answered");
            assert_eq!(reply.kind, kind::APPEND);
            let reply: AppendReply = wire::decode(&reply.header).expect("an answer");
            let due = wire::id_record(&entry_id(TERM, first + nth as u64 / 2));
            assert!(
                matches!(reply, AppendReply::Stored(Some(id)) if id == due),
                "append {nth} of round {round}: {reply:?} where {due:?} was due"
            );
        }
    }
    leader.shutdown().await;
    follower.shutdown().await;
}
