//! What a replicated log drives: a deterministic state machine.

use std::any::Any;

use bytes::Bytes;

use crate::types::Command;

/// What `apply` answers to whoever proposed the command; see [`crate::Group::propose`].
pub type Reply = Box<dyn Any + Send + Sync>;

/// A committed entry on its way into a state machine.
#[derive(Debug)]
pub struct Applied<'a> {
    /// Its index in the log.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// The command; `None` for entries of Raft itself (a new leader's first
    /// entry, membership changes), which take an index and nothing else.
    pub command: Option<&'a Command>,
}

/// A checkpoint that can't be restored.
#[derive(Debug, thiserror::Error)]
#[error("state machine checkpoint: {0}")]
pub struct MachineError(pub String);

/// A deterministic state machine.
///
/// `apply` sees every committed entry once, in order. It may not look at a
/// clock, a random source or the result of I/O: a refusal that every replica
/// computes alike is a reply. The state lives in memory; the group stores a
/// checkpoint of it now and then, and after a restart applies the entries that
/// follow the newest checkpoint.
pub trait StateMachine: Send + Sync + 'static {
    /// Applies one entry. The reply goes to the proposer, on the leader that
    /// proposed it; elsewhere it is dropped. Called from async code: must not block.
    fn apply(&mut self, entry: Applied<'_>) -> Reply;

    /// Called after the entries that were committed together were applied, so
    /// that waiting readers are woken once and not per entry.
    fn applied_batch(&mut self) {}

    /// Pairs to put into the group's own key space with what was just applied
    /// (see `LogStore::get`); they may be lost in a crash together with later
    /// entries, and are then produced again when those are applied again.
    fn take_keys(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        Vec::new()
    }

    /// The whole state after the last applied entry, versioned by its owner.
    fn checkpoint(&self) -> Bytes;

    /// Replaces the state by a checkpoint, taken here or on another replica.
    /// `index` and `term` are those of the last entry that it contains.
    fn restore(&mut self, index: u64, term: u64, bytes: &[u8]) -> Result<(), MachineError>;
}
