//! Drives a [`StateMachine`] from openraft, and keeps its checkpoints.
//!
//! The machine's state lives in memory. Every `checkpoint_bytes` of applied log
//! a checkpoint goes to the store, and more in between that each take the place
//! of the one before, unsynced: they can only be lost together with entries that
//! follow them. After a restart the newest checkpoint is restored
//! and the entries after it are applied again as they become committed.
//!
//! A snapshot for another replica is the checkpoint *at the purge boundary*,
//! not the newest one: a replica that starts from it still gets every entry
//! that this one has.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use drave_storage::{Checkpoint, GroupId, SharedStore, Write};
use futures_util::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine, SnapshotMeta};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::debug;

use crate::blocking;
use crate::checkpoints::Checkpoints;
use crate::config::Types;
use crate::entry::{EntryId, GroupMembership, decode_membership, encode_membership, entry_id};
use crate::machine::{Applied, StateMachine};
use crate::wire;

/// openraft's form of the last membership.
type Stored = StoredMembershipOf<Types>;
/// openraft's form of a snapshot of ours.
type GroupSnapshot = SnapshotOf<Types, Bytes>;

/// What others may see of the machine's progress, without asking its task.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Index of the last applied entry plus one; 0 for none.
    applied_next: AtomicU64,
    /// Its term.
    applied_term: AtomicU64,
    /// Raised when a new leader's first entry was applied, or its quorum was lost or found.
    raft_entry: Notify,
    /// The checkpoints held.
    pub(crate) checkpoints: Checkpoints,
}

impl Progress {
    /// Index of the last applied entry.
    pub(crate) fn applied(&self) -> Option<u64> {
        self.applied_next.load(Ordering::Acquire).checked_sub(1)
    }

    /// Term of the last applied entry.
    pub(crate) fn applied_term(&self) -> u64 {
        self.applied_term.load(Ordering::Acquire)
    }

    /// Waits until an entry of Raft itself is applied: a new leader's first one.
    pub(crate) async fn raft_entry_applied(&self) {
        self.raft_entry.notified().await;
    }

    /// Whether this replica may serve has changed for another reason.
    pub(crate) fn look_at_leadership(&self) {
        self.raft_entry.notify_one();
    }

    fn set(&self, id: &EntryId) {
        self.applied_term
            .store(id.committed_leader_id().term, Ordering::Release);
        self.applied_next.store(id.index() + 1, Ordering::Release);
    }
}

/// A checkpoint may now be the snapshot of its group, and entries up to it purged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PurgeDue {
    pub(crate) group: GroupId,
    pub(crate) index: u64,
}

/// A checkpoint as it is stored and sent.
#[derive(Serialize, Deserialize)]
pub(crate) struct CheckpointRecord<'a> {
    version: u8,
    membership_at: Option<wire::IdRecord>,
    #[serde(borrow)]
    membership: &'a [u8],
    #[serde(borrow)]
    machine: &'a [u8],
}

const CHECKPOINT_VERSION: u8 = 1;

/// How often checkpoints are stored and what they let go of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CheckpointPolicy {
    pub(crate) bytes: u64,
    pub(crate) purge_behind: Option<u32>,
}

/// Between two lasting checkpoints so many are stored for a restart, which
/// applies what follows the newest one again.
const RESTARTS_SHARE: u64 = 16;
/// Checkpoints for a restart take at most this part of what the entries do.
const CHECKPOINT_SHARE: u64 = 16;

/// Entries without much payload count as this many bytes towards a checkpoint.
const ENTRY_BYTES_MIN: u64 = 1024;

/// One group's machine and its checkpoints.
pub(crate) struct Driver {
    group: GroupId,
    store: SharedStore,
    machine: Box<dyn StateMachine>,
    policy: CheckpointPolicy,
    progress: Arc<Progress>,
    purge_due: mpsc::Sender<PurgeDue>,
    applied: Option<EntryId>,
    membership: Stored,
    /// Of entries applied since the last lasting checkpoint,
    bytes_since_lasting: u64,
    /// and since the last one of either kind.
    bytes_since_checkpoint: u64,
    /// The next one for a restart is due after this many.
    restart_bytes: u64,
}

impl Driver {
    /// Restores `machine` from the newest checkpoint. Blocks on the store.
    pub(crate) fn open(
        group: GroupId,
        store: SharedStore,
        mut machine: Box<dyn StateMachine>,
        policy: CheckpointPolicy,
        purge_due: mpsc::Sender<PurgeDue>,
        state: &drave_storage::GroupState,
    ) -> Result<Self, String> {
        let mut applied = None;
        let mut membership = Stored::default();
        if let Some(&newest) = state.checkpoints.last() {
            let checkpoint = store
                .checkpoint(group, newest)
                .map_err(|error| error.to_string())?;
            let checkpoint = checkpoint.ok_or_else(|| format!("checkpoint {newest} is missing"))?;
            membership = restore(machine.as_mut(), &checkpoint)?;
            applied = Some(entry_id(checkpoint.term, checkpoint.index));
        }
        let progress = Arc::new(Progress::default());
        if let Some(id) = &applied {
            progress.set(id);
        }
        // A snapshot that was installed, while the log up to it is still to be purged:
        // openraft does that first.
        let last = state.last.map(|(index, term)| entry_id(term, index));
        let purged = match &applied {
            Some(id) if last.as_ref() < Some(id) => Some(id.index()),
            _ => state.purged.map(|(index, _)| index),
        };
        progress.checkpoints.open(&state.checkpoints, purged);
        Ok(Driver {
            group,
            store,
            machine,
            policy,
            progress,
            purge_due,
            applied,
            membership,
            bytes_since_lasting: 0,
            bytes_since_checkpoint: 0,
            restart_bytes: policy.bytes / RESTARTS_SHARE,
        })
    }

    /// Shared with readers.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    fn encode_checkpoint(&self) -> Option<Checkpoint> {
        let applied = self.applied.as_ref()?;
        let machine = self.machine.checkpoint();
        let record = CheckpointRecord {
            version: CHECKPOINT_VERSION,
            membership_at: self.membership.log_id().as_ref().map(wire::id_record),
            membership: &encode_membership(self.membership.membership()),
            machine: &machine,
        };
        Some(Checkpoint {
            index: applied.index(),
            term: applied.committed_leader_id().term,
            bytes: wire::encode(&record),
        })
    }

    /// Stores the checkpoint that is due, if one is.
    fn store_due_checkpoint(&mut self) {
        let lasting = self.bytes_since_lasting >= self.policy.bytes;
        if !lasting && self.bytes_since_checkpoint < self.restart_bytes {
            return;
        }
        let Some(checkpoint) = self.encode_checkpoint() else {
            return;
        };
        self.bytes_since_checkpoint = 0;
        self.restart_bytes = (self.policy.bytes / RESTARTS_SHARE)
            .max(checkpoint.bytes.len() as u64 * CHECKPOINT_SHARE);
        let (index, purge_behind) = (checkpoint.index, self.policy.purge_behind);
        let checkpoints = &self.progress.checkpoints;
        let keep = if lasting {
            self.bytes_since_lasting = 0;
            checkpoints.add(index, purge_behind)
        } else {
            checkpoints.add_for_restart(index)
        };
        let Some(keep) = keep else {
            return;
        };
        let progress = self.progress.clone();
        let done = Box::new(move |written: io::Result<()>| {
            if written.is_ok() {
                progress.checkpoints.stored(index);
            }
        });
        let write = Write::Checkpoint { checkpoint, keep };
        self.store.submit(self.group, write, Some(done));
        let boundary = self.progress.checkpoints.boundary();
        if lasting && let (Some(_), Some(index)) = (purge_behind, boundary) {
            let due = PurgeDue {
                group: self.group,
                index,
            };
            if self.purge_due.try_send(due).is_err() {
                debug!(group = %self.group, "purge queue is full: the next checkpoint asks again");
            }
        }
    }
}

/// Puts a checkpoint into a machine and returns its membership.
fn restore(machine: &mut dyn StateMachine, checkpoint: &Checkpoint) -> Result<Stored, String> {
    let record: CheckpointRecord<'_> = decode_checkpoint(&checkpoint.bytes)?;
    machine
        .restore(checkpoint.index, checkpoint.term, record.machine)
        .map_err(|error| error.to_string())?;
    let membership: GroupMembership = decode_membership(record.membership)?;
    Ok(Stored::new(
        record.membership_at.map(wire::id_from),
        membership,
    ))
}

pub(crate) fn decode_checkpoint(bytes: &[u8]) -> Result<CheckpointRecord<'_>, String> {
    let config = bincode::config::standard();
    let (record, _): (CheckpointRecord<'_>, usize) =
        bincode::serde::borrow_decode_from_slice(bytes, config)
            .map_err(|error| error.to_string())?;
    if record.version != CHECKPOINT_VERSION {
        return Err(format!("checkpoint version {} is unknown", record.version));
    }
    Ok(record)
}

/// Builds openraft's snapshot from a stored checkpoint.
fn snapshot_of(checkpoint: Checkpoint) -> Result<GroupSnapshot, String> {
    let record = decode_checkpoint(&checkpoint.bytes)?;
    let membership = decode_membership(record.membership)?;
    Ok(GroupSnapshot {
        meta: SnapshotMeta {
            last_log_id: Some(entry_id(checkpoint.term, checkpoint.index)),
            last_membership: Stored::new(record.membership_at.map(wire::id_from), membership),
        },
        snapshot: checkpoint.bytes,
    })
}

/// Hands out the checkpoint at the boundary; or the newest, where there is none
/// yet. It was read when this was made, between two applies: later the boundary
/// may have moved, and the checkpoint may be gone.
pub(crate) struct SnapshotBuilder {
    checkpoint: Option<io::Result<Checkpoint>>,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<GroupSnapshot> {
        let checkpoint = self.checkpoint.take().unwrap_or_else(|| {
            Err(io::Error::other(
                "a group that has applied nothing has no snapshot",
            ))
        })?;
        snapshot_of(checkpoint).map_err(io::Error::other)
    }
}

async fn read_checkpoint(
    store: &SharedStore,
    group: GroupId,
    index: u64,
) -> io::Result<Option<Checkpoint>> {
    let read = blocking::run(store, move |store| store.checkpoint(group, index));
    read.await?.map_err(io::Error::other)
}

impl RaftStateMachine<Types> for Driver {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<EntryId>, Stored)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut replies = Vec::new();
        let mut raft_entry = false;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let id = entry.log_id();
            if let Some(membership) = entry.get_membership() {
                self.membership = Stored::new(Some(id), membership);
            }
            let command = entry.command();
            raft_entry |= command.is_none();
            let reply = self.machine.apply(Applied {
                index: id.index(),
                term: id.committed_leader_id().term,
                command: command.as_ref(),
            });
            self.applied = Some(id);
            let bytes = ENTRY_BYTES_MIN.max(entry.weight() as u64);
            self.bytes_since_lasting += bytes;
            self.bytes_since_checkpoint += bytes;
            if let Some(responder) = responder {
                replies.push((responder, reply));
            }
        }
        let keys = self.machine.take_keys();
        if !keys.is_empty() {
            self.store.submit(self.group, Write::Keys(keys), None);
        }
        if let Some(id) = &self.applied {
            self.progress.set(id);
        }
        self.machine.applied_batch();
        if raft_entry {
            self.progress.raft_entry.notify_one();
        }
        // Whoever is answered finds its command applied and visible.
        for (responder, reply) in replies {
            responder.send(reply);
        }
        self.store_due_checkpoint();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        let checkpoint = match self.progress.checkpoints.boundary() {
            None => self.encode_checkpoint().map(Ok),
            Some(index) => match read_checkpoint(&self.store, self.group, index).await {
                Ok(Some(stored)) => Some(Ok(stored)),
                // The whole state stands for the log, unless the log is the data.
                Ok(None) if self.policy.purge_behind.is_some() => self.encode_checkpoint().map(Ok),
                Ok(None) => Some(Err(io::Error::other("the boundary's checkpoint is gone"))),
                Err(error) => Some(Err(error)),
            },
        };
        SnapshotBuilder { checkpoint }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<Types>,
        snapshot: Bytes,
    ) -> io::Result<()> {
        let Some(last) = meta.last_log_id else {
            return Err(io::Error::other("a snapshot of nothing"));
        };
        let (index, term) = (last.index(), last.committed_leader_id().term);
        let checkpoint = Checkpoint {
            index,
            term,
            bytes: snapshot,
        };
        self.membership = restore(self.machine.as_mut(), &checkpoint).map_err(io::Error::other)?;
        self.applied = Some(last);
        self.progress.set(&last);
        self.machine.applied_batch();
        let (done, synced) = oneshot::channel();
        let write = Write::Checkpoint {
            checkpoint,
            keep: Vec::new(),
        };
        let done = Box::new(move |result| drop(done.send(result)));
        self.store.submit(self.group, write, Some(done));
        synced.await.map_err(io::Error::other)??;
        self.progress.checkpoints.replace(index);
        self.bytes_since_lasting = 0;
        self.bytes_since_checkpoint = 0;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<GroupSnapshot>> {
        let Some(index) = self.progress.checkpoints.boundary() else {
            return Ok(None);
        };
        let Some(checkpoint) = read_checkpoint(&self.store, self.group, index).await? else {
            return Ok(None);
        };
        snapshot_of(checkpoint).map(Some).map_err(io::Error::other)
    }
}
