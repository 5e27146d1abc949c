//! What a partition remembers of its idempotent producers: enough to answer a
//! repeated batch with the offset it got at first, and to refuse a gap.
//!
//! Owned by the partition's machine, and deterministic: time is the stamp of
//! the entry being applied.

use std::collections::BTreeMap;

use super::batches::Batch;
use super::encoding::{Malformed, Reader, Writer};

/// A producer is forgotten when it has not appended for this long; Kafka's
/// `producer.id.expiration.ms`.
pub const PRODUCER_IDLE_MAX_MS: i64 = 24 * 60 * 60 * 1000;
/// The least recently active producers are forgotten beyond this count.
pub const PRODUCERS_MAX: usize = 65_536;
/// The batches remembered of each producer; a client has at most as many in flight.
pub const BATCHES_REMEMBERED: usize = 5;
const SWEEP_EVERY_MS: i64 = 10 * 60 * 1000;

/// Why a batch was refused; every replica computes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its sequence numbers don't follow those of the producer's last batch.
    OutOfOrderSequence,
    /// Its producer has been replaced by one of a newer epoch.
    InvalidProducerEpoch,
    /// Its bytes are no batch.
    Malformed,
}

/// What is to become of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is new, and is appended.
    New,
    /// It was appended before.
    Duplicate {
        /// The offset that its first record got.
        base_offset: i64,
        /// The timestamp that was remembered with it.
        timestamp: i64,
    },
    /// It is not appended.
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Remembered {
    sequence_first: i32,
    sequence_last: i32,
    base_offset: i64,
    timestamp: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Stamp of its last append.
    active_at: i64,
    /// Ascending; only the first `count` are set.
    batches: [Remembered; BATCHES_REMEMBERED],
    count: usize,
}

impl Producer {
    fn batches(&self) -> &[Remembered] {
        &self.batches[..self.count]
    }

    fn remember(&mut self, batch: Remembered) {
        if self.count == BATCHES_REMEMBERED {
            self.batches.rotate_left(1);
            self.count -= 1;
        }
        self.batches[self.count] = batch;
        self.count += 1;
    }
}

/// The producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    by_id: BTreeMap<i64, Producer>,
    swept_at: i64,
}

impl Producers {
    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Decides on a batch by its producer's epoch and sequence numbers.
    pub fn judge(&self, batch: &Batch<'_>) -> Verdict {
        let id = batch.producer_id();
        if id < 0 {
            return Verdict::New;
        }
        // Nothing is known of it, maybe no longer: any sequence will do, as in Kafka.
        let Some(producer) = self.by_id.get(&id) else {
            return Verdict::New;
        };
        let (first, last) = (batch.sequence_first(), batch.sequence_last());
        if batch.producer_epoch() < producer.epoch {
            return Verdict::Refused(Refusal::InvalidProducerEpoch);
        }
        if batch.producer_epoch() > producer.epoch {
            if first != 0 {
                return Verdict::Refused(Refusal::OutOfOrderSequence);
            }
            return Verdict::New;
        }
        let same = |held: &&Remembered| held.sequence_first == first && held.sequence_last == last;
        if let Some(held) = producer.batches().iter().find(same) {
            return Verdict::Duplicate {
                base_offset: held.base_offset,
                timestamp: held.timestamp,
            };
        }
        match producer.batches().last() {
            Some(newest) if first != following(newest.sequence_last) => {
                Verdict::Refused(Refusal::OutOfOrderSequence)
            }
            _ => Verdict::New,
        }
    }

    /// Remembers a batch that is appended at `base_offset`.
    pub fn remember(&mut self, batch: &Batch<'_>, base_offset: i64, now: i64) {
        let id = batch.producer_id();
        if id < 0 {
            return;
        }
        let epoch = batch.producer_epoch();
        let producer = self.by_id.entry(id).or_default();
        if producer.epoch != epoch {
            *producer = Producer {
                epoch,
                ..Producer::default()
            };
        }
        producer.active_at = now;
        producer.remember(Remembered {
            sequence_first: batch.sequence_first(),
            sequence_last: batch.sequence_last(),
            base_offset,
            timestamp: batch.timestamp_max(),
        });
        if self.by_id.len() > PRODUCERS_MAX {
            self.forget_least_active();
        }
    }

    /// Forgets those that have been idle for too long, every now and then.
    pub fn sweep(&mut self, now: i64) {
        if now.saturating_sub(self.swept_at) < SWEEP_EVERY_MS {
            return;
        }
        self.swept_at = now;
        self.by_id
            .retain(|_, producer| now.saturating_sub(producer.active_at) < PRODUCER_IDLE_MAX_MS);
    }

    /// Forgets an eighth of the bound at once, so that this is rare.
    fn forget_least_active(&mut self) {
        let mut by_activity: Vec<(i64, i64)> = self
            .by_id
            .iter()
            .map(|(id, producer)| (producer.active_at, *id))
            .collect();
        by_activity.sort_unstable();
        for (_, id) in by_activity.into_iter().take(PRODUCERS_MAX / 8) {
            self.by_id.remove(&id);
        }
    }

    /// Writes them into a checkpoint.
    pub fn encode(&self, writer: &mut Writer) {
        writer.i64(self.swept_at);
        writer.count(self.by_id.len());
        for (id, producer) in &self.by_id {
            writer.i64(*id);
            writer.i16(producer.epoch);
            writer.i64(producer.active_at);
            writer.u8(producer.count as u8);
            for batch in producer.batches() {
                writer.i32(batch.sequence_first);
                writer.i32(batch.sequence_last);
                writer.i64(batch.base_offset);
                writer.i64(batch.timestamp);
            }
        }
    }

    /// Reads them from a checkpoint.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Producers, Malformed> {
        let mut producers = Producers {
            by_id: BTreeMap::new(),
            swept_at: reader.i64()?,
        };
        for _ in 0..reader.count()? {
            let id = reader.i64()?;
            let mut producer = Producer {
                epoch: reader.i16()?,
                active_at: reader.i64()?,
                ..Producer::default()
            };
            let count = usize::from(reader.u8()?);
            if count > BATCHES_REMEMBERED {
                return Err(Malformed("batches of a producer"));
            }
            for _ in 0..count {
                producer.remember(Remembered {
                    sequence_first: reader.i32()?,
                    sequence_last: reader.i32()?,
                    base_offset: reader.i64()?,
                    timestamp: reader.i64()?,
                });
            }
            producers.by_id.insert(id, producer);
        }
        Ok(producers)
    }
}

/// The sequence number after `sequence`.
fn following(sequence: i32) -> i32 {
    if sequence == i32::MAX {
        0
    } else {
        sequence + 1
    }
}
