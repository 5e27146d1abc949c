//! The state machine of a partition: gives every batch its offset.
//!
//! Pure and deterministic: what it knows follows from the entries alone, and
//! time is the entries' stamp. A batch that is refused or was appended before
//! takes no offset; its bytes stay in the log and are never shown. Records are
//! not copied here: the log is the data, and this is its arithmetic.

use std::sync::Arc;

use bytes::Bytes;
use drave_raft::{Applied, MachineError, Reply, StateMachine};

use super::batches::Batches;
use super::command::{self, CommandTag};
use super::encoding::{Malformed, Reader, Writer};
use super::epochs::Epochs;
use super::index::{DeadBatches, Keys, OffsetIndex, Position};
use super::producers::{Producers, Refusal, Verdict};
use super::view::{Latest, PartitionView, Shared};
use crate::planted;

const CHECKPOINT_VERSION: u8 = 1;

/// What became of one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// It got offsets from here on.
    Appended {
        /// Offset of its first record.
        base_offset: i64,
    },
    /// It had been appended before, here.
    Duplicate {
        /// Offset of its first record.
        base_offset: i64,
        /// Its latest timestamp then.
        timestamp: i64,
    },
    /// Nothing was appended.
    Refused(Refusal),
}

/// The reply to an append: one outcome for each batch of the command, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// What became of the batches.
    pub outcomes: Vec<BatchOutcome>,
    /// The first offset that can be read.
    pub log_start_offset: i64,
}

/// The state machine of one partition.
pub struct PartitionMachine {
    view: Arc<PartitionView>,
    producers: Producers,
    /// The latest stamp so far: the machine's clock.
    now: i64,
    keys: Keys,
    /// Live bytes since waiters were last told.
    arrived_bytes: i64,
    leader_changed: bool,
}

impl PartitionMachine {
    /// An empty partition that shows itself through `view`.
    pub fn new(view: Arc<PartitionView>) -> PartitionMachine {
        PartitionMachine {
            view,
            producers: Producers::default(),
            now: 0,
            keys: Keys::new(),
            arrived_bytes: 0,
            leader_changed: false,
        }
    }

    fn append(&mut self, shared: &mut Shared, index: u64, stamp: i64, payload: &[u8]) -> Appended {
        self.now = self.now.max(stamp);
        self.producers.sweep(self.now);
        let position = Position {
            index,
            base_offset: shared.next_offset,
        };
        let timestamp_before = shared.latest.timestamp;
        let mut outcomes = Vec::with_capacity(1);
        let mut dead = Vec::new();
        let mut walked = 0;
        let mut live_bytes = 0;
        for (place, batch) in Batches::of(payload).enumerate() {
            walked = batch.start + batch.bytes.len();
            let base_offset = shared.next_offset;
            outcomes.push(match self.producers.judge(&batch) {
                Verdict::New => {
                    self.producers.remember(&batch, base_offset, self.now);
                    shared.next_offset += batch.offset_count();
                    live_bytes += batch.bytes.len() as u64;
                    if batch.timestamp_max() > shared.latest.timestamp {
                        let timestamp = batch.timestamp_max();
                        shared.latest = Latest {
                            timestamp,
                            base_offset,
                            position,
                        };
                    }
                    BatchOutcome::Appended { base_offset }
                }
                Verdict::Duplicate {
                    base_offset,
                    timestamp,
                } => {
                    dead.push(place);
                    BatchOutcome::Duplicate {
                        base_offset,
                        timestamp,
                    }
                }
                Verdict::Refused(refusal) => {
                    dead.push(place);
                    BatchOutcome::Refused(refusal)
                }
            });
        }
        if walked < payload.len() {
            // The leader validated it, so this is a fault: readers end their walk here too.
            outcomes.push(BatchOutcome::Refused(Refusal::Malformed));
        }
        if live_bytes > 0 {
            shared.index.add(
                position,
                timestamp_before,
                payload.len() as u64,
                &mut self.keys,
            );
            self.arrived_bytes += live_bytes as i64;
        } else {
            shared.index.step_over(payload.len() as u64);
        }
        if !dead.is_empty() {
            shared
                .index
                .add_dead(index, DeadBatches::of(&dead), &mut self.keys);
        }
        Appended {
            outcomes,
            log_start_offset: shared.log_start_offset,
        }
    }

    fn decode(&mut self, index: u64, bytes: &[u8]) -> Result<Shared, Malformed> {
        let mut reader = Reader::of(bytes);
        if reader.u8()? != CHECKPOINT_VERSION {
            return Err(Malformed("version of a partition's checkpoint"));
        }
        self.now = reader.i64()?;
        let shared = Shared {
            next_offset: reader.i64()?,
            log_start_offset: reader.i64()?,
            latest: Latest {
                timestamp: reader.i64()?,
                base_offset: reader.i64()?,
                position: Position {
                    index: reader.u64()?,
                    base_offset: reader.i64()?,
                },
            },
            epochs: Epochs::decode(&mut reader)?,
            index: OffsetIndex::decode(index, &mut reader)?,
            applied_end: index + 1,
        };
        self.producers = Producers::decode(&mut reader)?;
        reader.finish()?;
        Ok(shared)
    }
}

/// Lets the log start later, never beyond its end; returns where it starts.
fn trim(shared: &mut Shared, payload: &[u8]) -> i64 {
    if let Ok(offset) = command::trimmed_to(payload) {
        let offset = offset.min(shared.next_offset);
        shared.log_start_offset = shared.log_start_offset.max(offset);
    }
    shared.log_start_offset
}

impl StateMachine for PartitionMachine {
    fn apply(&mut self, entry: Applied<'_>) -> Reply {
        let view = Arc::clone(&self.view);
        let mut shared = view.write();
        // Kafka's epochs are 31 bits wide; at one election a second that is 68 years.
        let epoch = i32::try_from(entry.term).unwrap_or(i32::MAX);
        let next_offset = shared.next_offset;
        if shared.epochs.observe(epoch, next_offset) {
            self.leader_changed = true;
            if planted::FORGET_PRODUCERS.is_planted() {
                self.producers = Producers::default();
            }
        }
        let reply: Reply = match entry.command {
            Some(command) if command::is_append(command.tag) => {
                Box::new(self.append(&mut shared, entry.index, command.stamp, &command.payload))
            }
            Some(command) if command.tag == CommandTag::TrimPrefix as u8 => {
                Box::new(trim(&mut shared, &command.payload))
            }
            _ => Box::new(()),
        };
        shared.applied_end = entry.index + 1;
        view.publish(&shared);
        reply
    }

    fn applied_batch(&mut self) {
        if std::mem::take(&mut self.leader_changed) {
            self.arrived_bytes = 0;
            self.view.waiters.wake_all();
        } else if self.arrived_bytes > 0 {
            self.view
                .waiters
                .arrived(std::mem::take(&mut self.arrived_bytes));
        }
    }

    fn take_keys(&mut self) -> Keys {
        std::mem::take(&mut self.keys)
    }

    fn checkpoint(&self) -> Bytes {
        let shared = self.view.read();
        let mut writer = Writer::default();
        writer.u8(CHECKPOINT_VERSION);
        writer.i64(self.now);
        writer.i64(shared.next_offset);
        writer.i64(shared.log_start_offset);
        writer.i64(shared.latest.timestamp);
        writer.i64(shared.latest.base_offset);
        writer.u64(shared.latest.position.index);
        writer.i64(shared.latest.position.base_offset);
        shared.epochs.encode(&mut writer);
        shared.index.encode(&mut writer);
        self.producers.encode(&mut writer);
        writer.finish()
    }

    fn restore(&mut self, index: u64, _term: u64, bytes: &[u8]) -> Result<(), MachineError> {
        let restored = self
            .decode(index, bytes)
            .map_err(|error| MachineError(error.to_string()))?;
        self.keys.clear();
        let mut shared = self.view.write();
        *shared = restored;
        // What is before may be gone from this replica's log, or never have been in it.
        let position = Position {
            index: index + 1,
            base_offset: shared.next_offset,
        };
        let timestamp = shared.latest.timestamp;
        shared.index.add_point(position, timestamp, &mut self.keys);
        self.view.publish(&shared);
        drop(shared);
        self.view.waiters.wake_all();
        Ok(())
    }
}
