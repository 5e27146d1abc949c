//! One replica of one replicated log: the handle that the rest of the broker holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use drave_storage::{Entry, GroupId, SharedStore, StorageError};
use openraft::async_runtime::WatchReceiver;
use openraft::impls::EmptyNode;
use openraft::{ChangeMembers, Raft, ReadPolicy, ServerState};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::debug;

use crate::config::{LEASE, Types};
use crate::elections::Elections;
use crate::proposal::{PendingProposal, Proposed, Responder};
use crate::repairs::Repairs;
use crate::state_machine::{Driver, Progress};
use crate::types::{Command, Leadership, ReplicaId};
use crate::wire::RaftVote;

/// What a group looks like from this replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// The leader this replica knows of.
    pub leadership: Option<Leadership>,
    /// This replica leads and has applied an entry of its own term: only then
    /// may it serve reads and writes.
    pub ready: bool,
    /// Index of the last entry in the log.
    pub last_index: Option<u64>,
    /// Index of the last applied entry.
    pub applied: Option<u64>,
    /// Voters of the effective membership.
    pub voters: Vec<ReplicaId>,
    /// Learners of the effective membership.
    pub learners: Vec<ReplicaId>,
    /// On the leader: last index known to be stored by each replica.
    pub matched: Vec<(ReplicaId, Option<u64>)>,
}

/// Why a command was not, or may not have been, committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    /// This replica does not lead; nothing was appended.
    #[error("not the leader of the group")]
    NotLeader {
        /// Who does, if known.
        leadership: Option<Leadership>,
    },
    /// No quorum answered in time; the command may still be committed later.
    #[error("no quorum answered in time, the outcome is unknown")]
    Unknown,
    /// The group is closed on this node.
    #[error("the group is closed on this node")]
    Closed,
}

/// What a replica and its tasks share.
pub(crate) struct GroupInner {
    pub(crate) id: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) raft: Raft<Types, Driver>,
    /// It keeps records, as many as its owner wants; other groups purge what they need no more.
    pub(crate) grows: bool,
    /// The replicas that may write the group's first entry; empty on every other one.
    pub(crate) founders: Vec<ReplicaId>,
    /// The replicas as placed now, the preferred leader first; an order for elections.
    preferred: ArcSwap<Vec<ReplicaId>>,
    pub(crate) elections: Arc<Elections>,
    /// Nobody alive is known to lead: the leader's node died or restarted, or only
    /// the stored vote tells of one, from before this process.
    pub(crate) suspect: AtomicBool,
    /// Leadership is being handed over.
    pub(crate) transferring: AtomicBool,
    /// Fewer than a quorum of voters can be reached: what this replica leads, it leads in its own eyes only.
    cut_off: AtomicBool,
    /// Wakes whoever waits for a commit when that begins.
    pub(crate) lost_quorum: Arc<Notify>,
    /// Who led when the stored vote was written, which says nothing of now.
    pub(crate) recalled: Option<Leadership>,
    store: SharedStore,
    repairs: Arc<Repairs>,
    progress: Arc<Progress>,
    leadership: watch::Sender<Option<Leadership>>,
    epoch: Instant,
    /// Milliseconds after `epoch` at which a leader's append last arrived.
    append_ms: AtomicU64,
    /// Milliseconds after `epoch` at which a quorum is known to have followed; 0: unknown.
    quorum_ms: AtomicU64,
    confirming: tokio::sync::Mutex<()>,
    closed: watch::Sender<bool>,
}

impl GroupInner {
    pub(crate) fn new(
        id: GroupId,
        replica: ReplicaId,
        raft: Raft<Types, Driver>,
        founders: Vec<ReplicaId>,
        elections: Arc<Elections>,
        repairs: Arc<Repairs>,
        progress: Arc<Progress>,
    ) -> Self {
        GroupInner {
            id,
            replica,
            raft,
            preferred: ArcSwap::from_pointee(founders.clone()),
            founders,
            elections,
            suspect: AtomicBool::new(false),
            transferring: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            lost_quorum: Arc::default(),
            recalled: None,
            grows: false,
            store: repairs.store(),
            repairs,
            progress,
            leadership: watch::Sender::new(None),
            epoch: Instant::now(),
            append_ms: AtomicU64::new(0),
            quorum_ms: AtomicU64::new(0),
            confirming: tokio::sync::Mutex::new(()),
            closed: watch::Sender::new(false),
        }
    }

    /// The replicas as placed, the preferred leader first.
    pub(crate) fn preferred(&self) -> Arc<Vec<ReplicaId>> {
        self.preferred.load_full()
    }

    /// One that keeps records, if `grows`.
    pub(crate) fn growing(mut self, grows: bool) -> Self {
        self.grows = grows;
        self
    }

    /// With the leadership that the stored vote tells of.
    pub(crate) fn recalling(mut self, recalled: Option<Leadership>) -> Self {
        self.suspect = AtomicBool::new(recalled.is_some());
        self.recalled = recalled;
        self
    }

    /// The published leadership: this replica only once it is ready.
    pub(crate) fn leadership(&self) -> Option<Leadership> {
        *self.leadership.borrow()
    }

    /// The leadership in openraft's eyes, this replica also while it is not ready.
    pub(crate) fn raw_leadership(&self) -> Option<Leadership> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let term = metrics.vote.leader_id.term;
        metrics
            .current_leader
            .map(|leader| Leadership { term, leader })
    }

    /// The voters of the effective membership.
    pub(crate) fn voters(&self) -> Vec<ReplicaId> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().voter_ids().collect()
    }

    /// The term that this replica leads, in openraft's eyes.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.vote.leader_id.term)
    }

    /// This replica's vote.
    pub(crate) fn vote(&self) -> RaftVote {
        let metrics = self.raft.server_metrics();
        metrics.borrow_watched().vote
    }

    pub(crate) fn ready_term(&self) -> Option<u64> {
        self.leading_term().filter(|term| {
            self.progress.applied_term() == *term && !self.cut_off.load(Ordering::Acquire)
        })
    }

    /// Whether this replica was found to be cut off from a quorum.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Acquire)
    }

    /// No quorum can be reached any more: if this replica leads, it stops saying
    /// so, and whoever waits for a commit is sent to look for another leader.
    pub(crate) fn quorum_lost(&self) {
        if !self.cut_off.swap(true, Ordering::AcqRel) {
            self.quorum_doubted();
            self.lost_quorum.notify_waiters();
            self.progress.look_at_leadership();
        }
    }

    /// A quorum can be reached again.
    pub(crate) fn quorum_regained(&self) {
        if self.cut_off.swap(false, Ordering::AcqRel) {
            self.progress.look_at_leadership();
        }
    }

    /// Publishes the leadership as it is now; returns it when it has changed.
    pub(crate) fn publish_leadership(&self) -> Option<Option<Leadership>> {
        let now = match (self.leading_term(), self.ready_term()) {
            (Some(_), None) => None,
            _ => self.raw_leadership(),
        };
        let changed = self.leadership.send_if_modified(|published| {
            let changed = *published != now;
            *published = now;
            changed
        });
        if changed && now.is_some() && now != self.recalled {
            self.suspect.store(false, Ordering::Release);
        }
        changed.then_some(now)
    }

    /// A live node says that it leads in `term`.
    pub(crate) fn leader_heard(&self, term: u64) {
        let known = [self.raw_leadership(), self.recalled];
        if known.iter().flatten().all(|known| known.term <= term) {
            self.suspect.store(false, Ordering::Release);
        }
    }

    /// Wakes when an entry of Raft itself was applied, which may make this replica ready.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Ends the tasks of this replica.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether the replica is closed on this node.
    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Waits until the replica is closed on this node.
    pub(crate) async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // An error would mean that the sender is gone, and with it this group.
        drop(closed.wait_for(|closed| *closed).await);
    }

    fn since_epoch(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis() as u64 + 1
    }

    /// A leader's append has arrived.
    pub(crate) fn append_arrived(&self) {
        self.append_ms
            .store(self.since_epoch(Instant::now()), Ordering::Relaxed);
    }

    /// When the lease that a leader has on this replica is over for sure.
    pub(crate) fn lease_end(&self) -> Instant {
        match self.append_ms.load(Ordering::Relaxed) {
            0 => self.epoch,
            ms => self.epoch + Duration::from_millis(ms) + LEASE,
        }
    }

    /// A quorum followed this leader at `at` or later.
    pub(crate) fn quorum_confirmed(&self, at: Instant) {
        self.quorum_ms
            .fetch_max(self.since_epoch(at), Ordering::Relaxed);
    }

    /// openraft says that the lease has expired.
    pub(crate) fn quorum_doubted(&self) {
        self.quorum_ms.store(0, Ordering::Relaxed);
    }

    fn quorum_is_fresh(&self) -> bool {
        let ms = self.quorum_ms.load(Ordering::Relaxed);
        ms != 0 && self.since_epoch(Instant::now()) < ms + LEASE.as_millis() as u64 / 2
    }

    /// Writes an entry of Raft's own; whether it was committed.
    pub(crate) async fn write_blank(&self) -> bool {
        self.confirm_quorum().await.is_ok() && self.raft.write_blank().await.is_ok()
    }

    /// Asks a quorum whether this replica still leads; openraft steps down when it hears of another.
    pub(crate) async fn doubt_leadership(&self) {
        self.quorum_doubted();
        let asked = tokio::time::timeout(LEASE, self.confirm_quorum()).await;
        if !matches!(asked, Ok(Ok(()))) {
            debug!(group = %self.id, "nobody confirms that this replica still leads");
        }
    }

    /// A leader at rest has an expired lease, and openraft refuses its writes:
    /// asks a quorum first, once for all that wait.
    async fn confirm_quorum(&self) -> Result<(), ProposeError> {
        if self.quorum_is_fresh() {
            return Ok(());
        }
        let _one_at_a_time = self.confirming.lock().await;
        if self.quorum_is_fresh() {
            return Ok(());
        }
        let asked = Instant::now();
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => {
                self.quorum_confirmed(asked);
                Ok(())
            }
            Err(_) => Err(ProposeError::NotLeader {
                leadership: self.leadership(),
            }),
        }
    }
}

/// A handle to a replica; clones are cheap and refer to the same replica.
#[derive(Clone)]
pub struct Group {
    pub(crate) inner: Arc<GroupInner>,
}

impl Group {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Queues a command; commands are appended in the order of these calls.
    /// Await the result for its outcome.
    pub async fn submit(&self, command: Command) -> Result<PendingProposal, ProposeError> {
        assert!(
            command.tag >= Command::TAG_MIN,
            "tag {} belongs to Raft",
            command.tag
        );
        let inner = &self.inner;
        // From before the look at whether it is lost already: nothing comes in between.
        let mut lost_quorum = Box::pin(inner.lost_quorum.clone().notified_owned());
        if inner.leading_term().is_none() || inner.is_cut_off() {
            // Nobody may know of a leader because the group is at rest: wake it.
            inner.elections.look(inner.id);
            return Err(ProposeError::NotLeader {
                leadership: inner.leadership(),
            });
        }
        tokio::select! {
            confirmed = inner.confirm_quorum() => confirmed?,
            () = &mut lost_quorum => return Err(ProposeError::NotLeader { leadership: None }),
        }
        let submitted = Instant::now();
        let (responder, outcome) = Responder::new();
        match inner.raft.client_write_ff(command, Some(responder)).await {
            Ok(()) => Ok(PendingProposal {
                outcome,
                lost_quorum,
                group: inner.clone(),
                submitted,
            }),
            Err(_) => Err(ProposeError::Closed),
        }
    }

    /// Appends a command and waits until it is committed on a durable quorum
    /// and applied here.
    pub async fn propose(
        &self,
        command: Command,
        timeout: Duration,
    ) -> Result<Proposed, ProposeError> {
        let outcome = async { self.submit(command).await?.await };
        tokio::time::timeout(timeout, outcome)
            .await
            .unwrap_or(Err(ProposeError::Unknown))
    }

    /// The state now, without waiting.
    pub fn status(&self) -> GroupStatus {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        GroupStatus {
            leadership: self.inner.leadership(),
            ready: self.inner.ready_term().is_some(),
            last_index: metrics.last_log_index,
            applied: self.inner.progress.applied(),
            voters: membership.voter_ids().collect(),
            learners: membership.learner_ids().collect(),
            matched: matched
                .map(|(replica, id)| (*replica, id.as_ref().map(|id| id.index())))
                .collect(),
        }
    }

    /// `Some(term)` while this replica leads and may serve; cheap, for every request.
    pub fn ready_term(&self) -> Option<u64> {
        self.inner.ready_term()
    }

    /// Follows the leadership of the group; changes only.
    pub fn watch_leadership(&self) -> watch::Receiver<Option<Leadership>> {
        self.inner.leadership.subscribe()
    }

    /// Waits until this replica, as leader, has confirmed by a quorum that it
    /// still leads, and has applied everything committed before the call.
    pub async fn read_barrier(&self, timeout: Duration) -> Result<(), ProposeError> {
        let asked = Instant::now();
        let barrier = self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        match tokio::time::timeout(timeout, barrier).await {
            Ok(Ok(_)) => {
                self.inner.quorum_confirmed(asked);
                Ok(())
            }
            Ok(Err(_)) => Err(ProposeError::NotLeader {
                leadership: self.inner.leadership(),
            }),
            Err(_) => Err(ProposeError::Unknown),
        }
    }

    /// Entries of `from..to` from memory; see `LogStore::read_tail`. Only
    /// applied entries may be shown to anyone.
    pub fn read_tail(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        self.inner
            .store
            .read_tail(self.inner.id, from, to, bytes_max)
    }

    /// Entries of `from..to` from memory or disk; see `LogStore::read`. Blocks.
    /// While a damaged entry is being healed, nothing is read.
    pub fn read_blocking(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.sound(|store, group| store.read(group, from, to, bytes_max))
    }

    /// Payload bytes from `index` on; see `LogStore::bytes_from`. Blocks.
    pub fn bytes_from_blocking(&self, index: u64) -> Result<u64, StorageError> {
        self.sound(|store, group| store.bytes_from(group, index))
    }

    /// Reads from disk unless a damaged entry is being healed; what is damaged
    /// now begins to be.
    fn sound<T>(
        &self,
        read: impl FnOnce(&SharedStore, GroupId) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let inner = &self.inner;
        if let Some(refusal) = inner.repairs.refusal(inner.id) {
            return Err(refusal);
        }
        let read = read(&inner.store, inner.id);
        if let Err(damage) = &read {
            drop(inner.repairs.begin(damage));
        }
        read
    }

    /// Purges this replica's log up to the newest checkpoint before the entry at
    /// `index`, in the background; whether there is something to purge. Nobody
    /// may need the entries before `index` any more.
    pub async fn purge_before(&self, index: u64) -> bool {
        let inner = &self.inner;
        let moved = inner.progress.checkpoints.choose_before(index);
        moved && inner.raft.trigger().snapshot().await.is_ok()
    }

    /// Says where the group is placed, the preferred leader first: the order in
    /// which replicas stand for election. Whoever votes, stays.
    pub fn prefer(&self, replicas: Vec<ReplicaId>) {
        if *self.inner.preferred() != replicas {
            self.inner.preferred.store(Arc::new(replicas));
        }
    }

    /// Makes `voters` the group's voters: new ones first learn the log, then
    /// vote, then the old ones go.
    pub async fn change_voters(
        &self,
        voters: Vec<ReplicaId>,
        timeout: Duration,
    ) -> Result<(), ProposeError> {
        let known: BTreeSet<ReplicaId> = self.members();
        let new = voters
            .iter()
            .filter(|replica| !known.contains(replica))
            .copied()
            .collect();
        self.add_learners(new, timeout).await?;
        let voters: BTreeSet<ReplicaId> = voters.into_iter().collect();
        self.change_membership(ChangeMembers::ReplaceAllVoters(voters), timeout)
            .await
    }

    /// Adds learners that don't vote.
    pub async fn add_learners(
        &self,
        learners: Vec<ReplicaId>,
        timeout: Duration,
    ) -> Result<(), ProposeError> {
        if learners.is_empty() {
            return Ok(());
        }
        let nodes: BTreeMap<_, _> = learners
            .into_iter()
            .map(|replica| (replica, EmptyNode::new()))
            .collect();
        self.change_membership(ChangeMembers::AddNodes(nodes), timeout)
            .await
    }

    /// Lets learners go that are not to vote any more.
    pub async fn remove_learners(
        &self,
        learners: Vec<ReplicaId>,
        timeout: Duration,
    ) -> Result<(), ProposeError> {
        let learners: BTreeSet<ReplicaId> = learners.into_iter().collect();
        self.change_membership(ChangeMembers::RemoveNodes(learners), timeout)
            .await
    }

    fn members(&self) -> BTreeSet<ReplicaId> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics
            .membership_config
            .membership()
            .nodes()
            .map(|(replica, _)| *replica)
            .collect()
    }

    async fn change_membership(
        &self,
        change: ChangeMembers<ReplicaId, EmptyNode>,
        timeout: Duration,
    ) -> Result<(), ProposeError> {
        self.inner.confirm_quorum().await?;
        let change = self.inner.raft.change_membership(change, false);
        match tokio::time::timeout(timeout, change).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                debug!(group = %self.inner.id, %error, "members not changed");
                Err(ProposeError::NotLeader {
                    leadership: self.inner.leadership(),
                })
            }
            Err(_) => Err(ProposeError::Unknown),
        }
    }
}
