//! What the engine holds of one group in memory.
//!
//! One lock per group guards its state, its tail and the order of its
//! submissions. Lock order: the group, then the writer's queue.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::log::{GroupId, GroupState};
use crate::tail_cache::Tail;

/// A group in memory.
pub(crate) struct GroupLog {
    pub(crate) id: GroupId,
    inner: Mutex<Inner>,
}

/// What the group's lock guards.
#[derive(Default)]
pub(crate) struct Inner {
    /// As of the last submission, written or not.
    pub(crate) state: GroupState,
    pub(crate) tail: Tail,
    /// Payload bytes of the log up to its end, since it was opened empty.
    pub(crate) end: u64,
    /// The same up to its first entry; looked up when asked for after a purge.
    pub(crate) start: Option<u64>,
    /// Counts truncations and drops: a read that sees it change starts over.
    pub(crate) cuts: u64,
    /// Number of the last submission of this group.
    pub(crate) submission: u64,
    /// Place in the writer's queue of the last change to anything but entries.
    pub(crate) state_ticket: u64,
    /// Dropped, written and taken out of the engine's map.
    pub(crate) gone: bool,
}

impl GroupLog {
    pub(crate) fn new(id: GroupId, state: GroupState, start: Option<u64>, end: u64) -> Arc<Self> {
        Arc::new(GroupLog {
            id,
            inner: Mutex::new(Inner {
                state,
                start,
                end,
                ..Inner::default()
            }),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: u64) -> Arc<Self> {
        GroupLog::new(GroupId(id), GroupState::default(), Some(0), 0)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a group's invariant was broken")
    }
}
