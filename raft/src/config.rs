//! openraft's type parameters and settings, as this crate uses them.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use openraft::impls::{EmptyNode, leader_id_std};
use openraft::{EntryPayload, SnapshotPolicy};
use openraft_rt::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::TokioRuntime;

use crate::entry::LogEntry;
use crate::machine::Reply;
use crate::proposal::Responder;
use crate::types::{Command, ReplicaId};

/// How long a leader may count on its last quorum, and a follower on its
/// leader. An election can't be won before it has passed.
pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// How long a vote may take, its fsync included.
pub(crate) const VOTE_TIMEOUT: Duration = Duration::from_millis(1_000);

/// The types of every group. One instance for all kinds of state machines:
/// openraft is compiled once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types {}

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Reply;
    type NodeId = ReplicaId;
    type Node = EmptyNode;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
    type Vote = openraft::Vote<Self::LeaderId>;
    type Payload = EntryPayload<Command, ReplicaId, EmptyNode>;
    type Entry = LogEntry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Responder<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

/// openraft's settings for a group. Its own timers are off: liveness is per
/// node (`crate::elections`), so a group at rest costs nothing.
pub(crate) fn raft_config() -> Arc<openraft::Config> {
    let lease_ms = LEASE.as_millis() as u64;
    Arc::new(openraft::Config {
        cluster_name: "drave".into(),
        heartbeat_interval: 200,
        election_timeout_min: lease_ms - 50,
        election_timeout_max: lease_ms,
        enable_tick: false,
        enable_heartbeat: false,
        enable_elect: false,
        enable_pre_vote: Some(true),
        // A restarted leader asks for votes again like everyone else.
        enable_leader_restore: Some(false),
        max_payload_entries: 1_024,
        max_append_entries: Some(1_024),
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 0,
        purge_batch_size: 1,
        // A follower catches up by the log as long as the log is there.
        replication_lag_threshold: u64::MAX,
        install_snapshot_timeout: 10_000,
        api_channel_size: Some(4_096),
        notification_channel_size: Some(4_096),
        state_machine_channel_size: Some(1_024),
        ..openraft::Config::default()
    })
}

/// Tokio, with one difference: a sleep below a millisecond is a yield.
///
/// openraft's forwarder of completed I/O sleeps for a microsecond to batch
/// completions, which tokio's timer rounds up to about a millisecond.
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

/// A sleep of either kind.
pub(crate) type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        if duration < Duration::from_millis(1) {
            Box::pin(tokio::task::yield_now())
        } else {
            Box::pin(TokioRuntime::sleep(duration))
        }
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = <Self::Instant as openraft_rt::Instant>::now();
        if deadline < now + Duration::from_millis(1) {
            Box::pin(tokio::task::yield_now())
        } else {
            Box::pin(TokioRuntime::sleep_until(deadline))
        }
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}
