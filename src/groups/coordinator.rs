//! One coordinator on this broker: the live side of a coordinator group.
//!
//! Serves only while its Raft group is led here and ready. What must survive
//! is in the [`super::machine`]; memberships are volatile, kept per term, and
//! made anew from the machine's state by each new leader, so that members go
//! on with their generation. One task per coordinator holds the one timer for
//! all its members and topics; it sleeps when nothing is due.
//!
//! Invariant: `volatile` is only used in the term it was made for, and the
//! lock is never held across an await.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drave_raft::{Group, ProposeError, ReplicaId};
use kafka_protocol::ResponseError;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::command::{
    CommitOffsets, DeleteGroup, DeleteOffsets, DropTopics, ExpireOffsets, GroupCommand,
    GroupRecord, StoreGroup, TopicCommit,
};
use super::machine::{GroupState, Outcome, StateView};
use super::membership::{
    Answer, Effect, Identity, Join, JoinRefused, Joined, Limits, Membership, Millis, Sync, Synced,
    Then, Token,
};
use crate::metadata::image::Image;

/// How long a change may take to be stored on a quorum.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a deletion looks whether the group is settled.
const SETTLE_POLL: Duration = Duration::from_millis(5);
/// How often offsets are looked at for being too old.
pub(super) const EXPIRE_INTERVAL: Duration = Duration::from_secs(600);

/// A coordinator; see the module.
pub struct Coordinator {
    group: Group,
    here: ReplicaId,
    view: StateView,
    limits: Limits,
    volatile: Mutex<Volatile>,
    /// Rings when the task must look at its deadlines again.
    pub(super) rescheduled: Notify,
    epoch: Instant,
}

/// What a leader keeps for its term only.
#[derive(Default)]
struct Volatile {
    term: Option<u64>,
    groups: HashMap<String, Membership>,
    waiting: HashMap<Token, oneshot::Sender<Answer>>,
    last_token: Token,
    /// The next deadline of each group that has one.
    deadlines: BTreeSet<(Millis, String)>,
    deadline_of: HashMap<String, Millis>,
}

/// A group as tools see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// `Stable`, `Empty` and so on.
    pub state: &'static str,
    /// `consumer` for consumers; empty if it only has offsets.
    pub protocol_type: String,
    /// The chosen protocol, if there is one.
    pub protocol: String,
    /// Its members.
    pub members: Vec<super::command::MemberRecord>,
}

impl Coordinator {
    pub(super) fn new(
        group: Group,
        here: ReplicaId,
        view: StateView,
        limits: Limits,
    ) -> Arc<Coordinator> {
        Arc::new(Coordinator {
            group,
            here,
            view,
            limits,
            volatile: Mutex::default(),
            rescheduled: Notify::new(),
            epoch: Instant::now(),
        })
    }

    /// Joins a group, waiting for its rebalance to complete.
    pub async fn join(self: &Arc<Self>, group: &str, join: Join) -> Result<Joined, JoinRefused> {
        let member_id = join.identity.member_id.clone();
        let refused = |error| JoinRefused {
            error,
            member_id: member_id.clone(),
        };
        let answer = {
            let mut volatile = self.serving().map_err(refused)?;
            if !member_id.is_empty() && self.membership(&mut volatile, group).is_none() {
                return Err(refused(ResponseError::UnknownMemberId));
            }
            self.membership_or_new(&mut volatile, group);
            let (token, answer) = volatile.wait();
            self.with(&mut volatile, group, |membership, now| {
                membership.join(join, token, now)
            });
            answer
        };
        match answer.await {
            Ok(Answer::Join(answer)) => answer,
            _ => Err(refused(ResponseError::NotCoordinator)),
        }
    }

    /// Asks for the assignment, waiting for the leader's.
    pub async fn sync(self: &Arc<Self>, group: &str, sync: Sync) -> Result<Synced, ResponseError> {
        let answer = {
            let mut volatile = self.serving()?;
            self.membership(&mut volatile, group)
                .ok_or(ResponseError::UnknownMemberId)?;
            let (token, answer) = volatile.wait();
            self.with(&mut volatile, group, |membership, now| {
                membership.sync(sync, token, now)
            });
            answer
        };
        match answer.await {
            Ok(Answer::Sync(answer)) => answer,
            _ => Err(ResponseError::NotCoordinator),
        }
    }

    /// A member says that it is alive.
    pub fn heartbeat(
        self: &Arc<Self>,
        group: &str,
        identity: &Identity,
        generation: i32,
    ) -> Result<(), ResponseError> {
        let mut volatile = self.serving()?;
        let membership = self
            .membership(&mut volatile, group)
            .ok_or(ResponseError::UnknownMemberId)?;
        // A heartbeat only moves a deadline back, which the timer finds out by itself.
        membership.heartbeat(identity, generation, self.now())
    }

    /// Members go. The answer is per member: the id of the one that went.
    pub fn leave(
        self: &Arc<Self>,
        group: &str,
        members: &[Identity],
    ) -> Result<Vec<Result<String, ResponseError>>, ResponseError> {
        let mut volatile = self.serving()?;
        let leave = |identity: &Identity| {
            self.membership(&mut volatile, group)
                .ok_or(ResponseError::UnknownMemberId)?;
            self.with(&mut volatile, group, |membership, now| {
                membership.leave(identity, now)
            })
            .unwrap_or(Err(ResponseError::UnknownMemberId))
        };
        Ok(members.iter().map(leave).collect())
    }

    /// Commits offsets of a member, or of a consumer without membership (generation -1).
    pub async fn commit(
        &self,
        group: &str,
        identity: &Identity,
        generation: i32,
        topics: Vec<TopicCommit>,
    ) -> Result<(), ResponseError> {
        {
            let mut volatile = self.serving()?;
            match self.membership(&mut volatile, group) {
                Some(membership) => membership.check_commit(identity, generation, self.now())?,
                None if generation >= 0 => return Err(ResponseError::IllegalGeneration),
                None => {}
            }
        }
        if topics.is_empty() {
            return Ok(());
        }
        let commit = CommitOffsets {
            group: group.to_string(),
            generation,
            topics,
        };
        match self.propose(GroupCommand::CommitOffsets(commit)).await? {
            Outcome::StaleGeneration => Err(ResponseError::IllegalGeneration),
            _ => Ok(()),
        }
    }

    /// Looks at what a group has committed, after making sure that this broker still leads.
    pub async fn read<T>(
        &self,
        group: &str,
        look: impl FnOnce(Option<&GroupState>) -> T,
    ) -> Result<T, ResponseError> {
        drop(self.serving()?);
        self.group
            .read_barrier(STORE_TIMEOUT)
            .await
            .map_err(|error| self.refusal(&error))?;
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        Ok(look(state.groups.get(group)))
    }

    /// What tools want to know of a group; none if there is no such group.
    pub fn describe(&self, group: &str) -> Result<Option<Description>, ResponseError> {
        let mut volatile = self.serving()?;
        Ok(self.describe_in(&mut volatile, group))
    }

    /// Every group of this coordinator.
    pub fn list(&self) -> Result<Vec<(String, Description)>, ResponseError> {
        let mut volatile = self.serving()?;
        let mut ids: BTreeSet<String> = volatile.groups.keys().cloned().collect();
        ids.extend(
            self.view
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .groups
                .keys()
                .cloned(),
        );
        let describe = |id: String| {
            self.describe_in(&mut volatile, &id)
                .map(|description| (id, description))
        };
        Ok(ids.into_iter().filter_map(describe).collect())
    }

    /// Deletes a group that has no members, with its offsets.
    pub async fn delete(&self, group: &str) -> Result<(), ResponseError> {
        let deadline = Instant::now() + STORE_TIMEOUT;
        while !self.is_settled_and_empty(group)? {
            // Its last member has left, and that is still on its way into the log.
            if Instant::now() > deadline {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
        let delete = DeleteGroup {
            group: group.to_string(),
        };
        match self.propose(GroupCommand::DeleteGroup(delete)).await? {
            Outcome::NotEmpty => Err(ResponseError::NonEmptyGroup),
            Outcome::UnknownGroup => Err(ResponseError::GroupIdNotFound),
            _ => Ok(()),
        }
    }

    /// Whether a group without members is stored as such; an error if it has some.
    fn is_settled_and_empty(&self, group: &str) -> Result<bool, ResponseError> {
        let mut volatile = self.serving()?;
        let settled = volatile.groups.get(group).is_none_or(Membership::is_idle);
        match self.describe_in(&mut volatile, group) {
            None => Err(ResponseError::GroupIdNotFound),
            Some(description) if description.state != "Empty" => Err(ResponseError::NonEmptyGroup),
            Some(_) => Ok(settled),
        }
    }

    /// Forgets what a group committed for some partitions, by topic id.
    pub async fn delete_offsets(
        &self,
        group: &str,
        topics: Vec<(uuid::Uuid, Vec<i32>)>,
    ) -> Result<(), ResponseError> {
        drop(self.serving()?);
        let delete = DeleteOffsets {
            group: group.to_string(),
            topics,
        };
        match self.propose(GroupCommand::DeleteOffsets(delete)).await? {
            Outcome::UnknownGroup => Err(ResponseError::GroupIdNotFound),
            _ => Ok(()),
        }
    }

    /// The volatile state, made for the present term; or why this broker does not serve.
    fn serving(&self) -> Result<MutexGuard<'_, Volatile>, ResponseError> {
        let Some(term) = self.group.ready_term() else {
            return Err(self.not_serving());
        };
        let mut volatile = self.volatile.lock().unwrap_or_else(PoisonError::into_inner);
        if volatile.term != Some(term) {
            self.load(&mut volatile, term);
        }
        Ok(volatile)
    }

    fn not_serving(&self) -> ResponseError {
        let leadership = *self.group.watch_leadership().borrow();
        match leadership {
            Some(leadership) if leadership.leader == self.here => {
                ResponseError::CoordinatorLoadInProgress
            }
            _ => ResponseError::NotCoordinator,
        }
    }

    /// Takes over the groups as they are stored; whoever waits is told to look for the coordinator.
    fn load(&self, volatile: &mut Volatile, term: u64) {
        *volatile = Volatile {
            term: Some(term),
            ..Volatile::default()
        };
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        for (id, group) in &state.groups {
            if let Some(record) = group
                .record
                .as_ref()
                .filter(|record| !record.members.is_empty())
            {
                volatile
                    .groups
                    .insert(id.clone(), Membership::restore(self.limits, record, now));
                volatile.reschedule(id);
            }
        }
        info!(
            coordinator = %self.group.id(), term, groups = volatile.groups.len(),
            "coordinator serves"
        );
        self.rescheduled.notify_one();
    }

    /// Looks at its leadership: loads the groups as a new leader, forgets them
    /// when deposed. False: leads, but must not serve yet.
    pub(super) fn follow_leadership(&self) -> bool {
        match self.serving() {
            Ok(_) => true,
            Err(ResponseError::CoordinatorLoadInProgress) => false,
            Err(_) => {
                *self.volatile.lock().unwrap_or_else(PoisonError::into_inner) = Volatile::default();
                true
            }
        }
    }

    /// A group's membership, from memory or restored from its record.
    fn membership<'a>(
        &self,
        volatile: &'a mut Volatile,
        group: &str,
    ) -> Option<&'a mut Membership> {
        if !volatile.groups.contains_key(group) {
            let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
            let record = state.groups.get(group)?.record.as_ref()?;
            let membership = Membership::restore(self.limits, record, self.now());
            volatile.groups.insert(group.to_string(), membership);
            if volatile.reschedule(group) {
                self.rescheduled.notify_one();
            }
        }
        volatile.groups.get_mut(group)
    }

    fn membership_or_new(&self, volatile: &mut Volatile, group: &str) {
        if self.membership(volatile, group).is_none() {
            volatile
                .groups
                .insert(group.to_string(), Membership::new(self.limits));
        }
    }

    /// Lets a membership act, then does what it wants done.
    fn with<T>(
        self: &Arc<Self>,
        volatile: &mut Volatile,
        group: &str,
        act: impl FnOnce(&mut Membership, Millis) -> T,
    ) -> Option<T> {
        let membership = volatile.groups.get_mut(group)?;
        let result = act(membership, self.now());
        let effects = membership.take_effects();
        let idle = membership.is_idle();
        for effect in effects {
            match effect {
                Effect::Answer(token, answer) => volatile.answer(token, answer),
                Effect::Store(record, then) => self.store(volatile.term, group, record, then),
            }
        }
        if idle {
            volatile.groups.remove(group);
        }
        if volatile.reschedule(group) {
            self.rescheduled.notify_one();
        }
        Some(result)
    }

    /// Replicates a group's record, then tells its membership.
    fn store(self: &Arc<Self>, term: Option<u64>, group: &str, record: GroupRecord, then: Then) {
        let coordinator = self.clone();
        let group = group.to_string();
        tokio::spawn(async move {
            let store = StoreGroup {
                group: group.clone(),
                record,
            };
            let stored = match coordinator.propose(GroupCommand::StoreGroup(store)).await {
                // Overtaken by a record whose fate was unknown.
                Ok(Outcome::StaleRecord) => Err(ResponseError::CoordinatorNotAvailable),
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = stored {
                warn!(coordinator = %coordinator.group.id(), group, %error, "group not stored");
            }
            if let Ok(mut volatile) = coordinator.serving()
                && volatile.term == term
            {
                coordinator.with(&mut volatile, &group, |membership, now| {
                    membership.stored(then, stored, now);
                });
            }
        });
    }

    /// When the timer has to ring next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let volatile = self.volatile.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, _) = volatile.deadlines.first()?;
        Some(self.epoch + Duration::from_millis(*at))
    }

    /// Lets every group act whose deadline has come.
    pub(super) fn tick(self: &Arc<Self>) {
        let Ok(mut volatile) = self.serving() else {
            self.follow_leadership();
            return;
        };
        let now = self.now();
        while let Some((at, group)) = volatile.deadlines.first().cloned() {
            if at > now {
                break;
            }
            volatile.deadlines.pop_first();
            volatile.deadline_of.remove(&group);
            debug!(coordinator = %self.group.id(), group, "group deadline");
            self.with(&mut volatile, &group, |membership, now| {
                membership.tick(now)
            });
        }
    }

    /// Forgets offsets that are older than `retention`, of groups without members.
    pub(super) async fn expire_offsets(&self, retention: Duration) {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let groups: Vec<String> = {
            let Ok(mut volatile) = self.serving() else {
                return;
            };
            volatile
                .groups
                .retain(|_, membership| !membership.is_idle());
            let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
            let now = wall_clock();
            let expired = state.groups.iter().filter(|(id, group)| {
                group.has_something_expired(now, retention_ms) && !volatile.groups.contains_key(*id)
            });
            expired.map(|(id, _)| id.clone()).collect()
        };
        if !groups.is_empty() {
            let count = groups.len();
            let expire = GroupCommand::ExpireOffsets(ExpireOffsets {
                retention_ms,
                groups,
            });
            let outcome = self.propose(expire).await;
            info!(coordinator = %self.group.id(), count, ?outcome, "old offsets expired");
        }
    }

    /// Forgets offsets of topics that are gone according to this metadata.
    pub(super) async fn drop_deleted_topics(&self, image: &Image) {
        let gone: BTreeSet<uuid::Uuid> = {
            let Ok(_volatile) = self.serving() else {
                return;
            };
            let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
            let topics = state.groups.values().flat_map(|group| &group.topics);
            topics
                .filter(|(id, topic)| {
                    topic.metadata_index <= image.applied_index
                        && !image.topic_names.contains_key(*id)
                })
                .map(|(id, _)| *id)
                .collect()
        };
        if !gone.is_empty() {
            let topics: Vec<_> = gone.into_iter().collect();
            let count = topics.len();
            let drop = GroupCommand::DropTopics(DropTopics { topics });
            let outcome = self.propose(drop).await;
            info!(coordinator = %self.group.id(), count, ?outcome, "offsets of deleted topics dropped");
        }
    }

    async fn propose(&self, command: GroupCommand) -> Result<Outcome, ResponseError> {
        let proposed = self
            .group
            .propose(command.encode(wall_clock()), STORE_TIMEOUT)
            .await
            .map_err(|error| self.refusal(&error))?;
        match proposed.reply.downcast::<Outcome>() {
            Ok(outcome) if *outcome != Outcome::Malformed => Ok(*outcome),
            _ => Err(ResponseError::UnknownServerError),
        }
    }

    fn refusal(&self, error: &ProposeError) -> ResponseError {
        match error {
            ProposeError::NotLeader { .. } | ProposeError::Closed => ResponseError::NotCoordinator,
            ProposeError::Unknown if self.group.ready_term().is_none() => {
                ResponseError::NotCoordinator
            }
            ProposeError::Unknown => ResponseError::CoordinatorNotAvailable,
        }
    }

    fn describe_in(&self, volatile: &mut Volatile, group: &str) -> Option<Description> {
        if let Some(membership) = self.membership(volatile, group) {
            let description = Description {
                state: membership.phase().name(),
                protocol_type: membership.protocol_type().to_string(),
                protocol: membership.protocol().unwrap_or_default().to_string(),
                members: membership.members().cloned().collect(),
            };
            if membership.is_idle() {
                volatile.groups.remove(group);
            }
            return Some(description);
        }
        // Known by its offsets alone.
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        state.groups.get(group).map(|_| Description {
            state: "Empty",
            ..Description::default()
        })
    }

    fn now(&self) -> Millis {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Follows the group's leadership.
    pub(super) fn raft_group(&self) -> &Group {
        &self.group
    }
}

impl Volatile {
    /// A request starts to wait.
    fn wait(&mut self) -> (Token, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        self.last_token += 1;
        self.waiting.insert(self.last_token, sender);
        (self.last_token, receiver)
    }

    fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&token) {
            // Nobody waits any more if the client has gone.
            drop(waiting.send(answer));
        }
    }

    /// Notes a group's next deadline; true if it is now the first of all.
    fn reschedule(&mut self, group: &str) -> bool {
        if let Some(old) = self.deadline_of.remove(group) {
            self.deadlines.remove(&(old, group.to_string()));
        }
        let Some(at) = self.groups.get(group).and_then(Membership::next_deadline) else {
            return false;
        };
        self.deadlines.insert((at, group.to_string()));
        self.deadline_of.insert(group.to_string(), at);
        self.deadlines
            .first()
            .is_some_and(|(_, first)| first == group)
    }
}

/// Milliseconds since 1970, for stamps of commands.
fn wall_clock() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
