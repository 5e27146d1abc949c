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

mod requests;
mod upkeep;
mod volatile;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drave_raft::{Group, ProposeError, ReplicaId};
use kafka_protocol::ResponseError;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use self::volatile::Volatile;
use super::command::{GroupCommand, GroupRecord, StoreGroup};
use super::machine::{Outcome, StateView};
use super::membership::{Effect, Limits, Membership, Millis, Then};

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

    fn now(&self) -> Millis {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Follows the group's leadership.
    pub(super) fn raft_group(&self) -> &Group {
        &self.group
    }
}
/// Milliseconds since 1970, for stamps of commands.
fn wall_clock() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
