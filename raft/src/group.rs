//! One replica of one replicated log.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use drave_storage::{Entry, GroupId, StorageError};
use tokio::sync::watch;

use crate::machine::Reply;
use crate::types::{Command, Leadership, ReplicaId};

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
    /// On the leader: last index known to be stored by each other replica.
    pub matched: Vec<(ReplicaId, Option<u64>)>,
}

/// A committed and applied command.
pub struct Proposed {
    /// Index of its entry.
    pub index: u64,
    /// Term of its entry.
    pub term: u64,
    /// What the state machine answered.
    pub reply: Reply,
}

/// A queued command: resolves when it is committed on a durable quorum and
/// applied here, or when that can no longer be known.
pub struct PendingProposal {
    _private: (),
}

impl Future for PendingProposal {
    type Output = Result<Proposed, ProposeError>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
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

/// A handle to a replica; clones are cheap and refer to the same replica.
#[derive(Clone)]
pub struct Group {
    _inner: Arc<()>,
}

impl Group {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        unimplemented!()
    }

    /// Queues a command; commands are appended in the order of these calls.
    /// Await the result for its outcome.
    pub async fn submit(&self, _command: Command) -> Result<PendingProposal, ProposeError> {
        unimplemented!()
    }

    /// Appends a command and waits until it is committed on a durable quorum
    /// and applied here.
    pub async fn propose(
        &self,
        _command: Command,
        _timeout: Duration,
    ) -> Result<Proposed, ProposeError> {
        unimplemented!()
    }

    /// The state now, without waiting.
    pub fn status(&self) -> GroupStatus {
        unimplemented!()
    }

    /// `Some(term)` while this replica leads and may serve; cheap, for every request.
    pub fn ready_term(&self) -> Option<u64> {
        unimplemented!()
    }

    /// Follows the leadership of the group; changes only.
    pub fn watch_leadership(&self) -> watch::Receiver<Option<Leadership>> {
        unimplemented!()
    }

    /// Waits until this replica, as leader, has confirmed by a quorum that it
    /// still leads, and has applied everything committed before the call.
    pub async fn read_barrier(&self, _timeout: Duration) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Entries of `from..to` from memory; see `LogStore::read_tail`. Only
    /// applied entries may be shown to anyone.
    pub fn read_tail(&self, _from: u64, _to: u64, _bytes_max: usize) -> Option<Vec<Entry>> {
        unimplemented!()
    }

    /// Entries of `from..to` from memory or disk; see `LogStore::read`. Blocks.
    pub fn read_blocking(
        &self,
        _from: u64,
        _to: u64,
        _bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        unimplemented!()
    }

    /// Hands leadership to another voter, if this replica leads. Returns when asked, not when done.
    pub async fn transfer_leadership(&self, _to: ReplicaId) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Makes `voters` the group's voters: new ones first learn the log, then vote, then the old ones go.
    pub async fn change_voters(
        &self,
        _voters: Vec<ReplicaId>,
        _timeout: Duration,
    ) -> Result<(), ProposeError> {
        unimplemented!()
    }

    /// Adds learners that don't vote.
    pub async fn add_learners(
        &self,
        _learners: Vec<ReplicaId>,
        _timeout: Duration,
    ) -> Result<(), ProposeError> {
        unimplemented!()
    }
}
