//! A partition's records between `send` and their report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::batch::BatchBuilder;

/// A partition's records between `send` and their report.
pub(super) struct Accumulator {
    pub(super) leader: i32,
    pub(super) open: Option<Open>,
    pub(super) full: VecDeque<Open>,
    /// To be repeated, by sequence or order of sending.
    pub(super) repeat: BTreeMap<u64, Batch>,
    /// The order after the last batch that ever had to be repeated.
    repeated_end: u64,
    pub(super) not_before: Option<Instant>,
    /// Sent and not answered yet, by order.
    pub(super) under_way: BTreeSet<u64>,
    pub(super) under_way_to: i32,
    /// Its leader knows the producer. Until then batches go one by one: Kafka
    /// takes any sequence for the first, so a second one that overtakes a
    /// refused first one would leave that one out for good.
    pub(super) introduced: bool,
    pub(super) sent: u64,
    pub(super) last_bytes: usize,
}

pub(super) struct Open {
    pub(super) builder: BatchBuilder,
    /// What its records count in [`State::buffered`].
    pub(super) buffered: usize,
    pub(super) appended_at: Vec<Instant>,
}

/// A batch that is sent or about to be.
pub(super) struct Batch {
    pub(super) partition: usize,
    /// Records of the partition sent before it: its sequence, not wrapped.
    pub(super) order: u64,
    pub(super) buffered: usize,
    pub(super) bytes: Bytes,
    pub(super) appended_at: Vec<Instant>,
}

impl Accumulator {
    pub(super) fn new(leader: i32) -> Accumulator {
        Accumulator {
            leader,
            open: None,
            full: VecDeque::new(),
            repeat: BTreeMap::new(),
            repeated_end: 0,
            not_before: None,
            under_way: BTreeSet::new(),
            under_way_to: -1,
            introduced: false,
            sent: 0,
            last_bytes: 0,
        }
    }

    /// Whether a batch of it may go to its leader now; otherwise the time when one may.
    pub(super) fn ready(&self, now: Instant, linger: Duration) -> Result<(), Option<Instant>> {
        if self.leader < 0 || (!self.under_way.is_empty() && self.under_way_to != self.leader) {
            return Err(None);
        }
        if !self.introduced && !self.under_way.is_empty() {
            return Err(None);
        }
        if let Some(not_before) = self.not_before.filter(|time| *time > now) {
            return Err(Some(not_before));
        }
        // Its answer is awaited before anything follows a batch that is repeated: it may be on the
        // partition already, and the leader knows only a producer's last few batches again.
        let repeating = self.under_way.first();
        if repeating.is_some_and(|order| *order < self.repeated_end) {
            return Err(None);
        }
        if !self.repeat.is_empty() {
            return if self.under_way.is_empty() {
                Ok(())
            } else {
                Err(None)
            };
        }
        if !self.full.is_empty() {
            return Ok(());
        }
        match &self.open {
            None => Err(None),
            Some(open) => match open.appended_at[0] + linger {
                due if due <= now => Ok(()),
                due => Err(Some(due)),
            },
        }
    }

    /// Has a batch sent again, once nothing else is under way.
    pub(super) fn repeat(&mut self, batch: Batch) {
        self.repeated_end = self.repeated_end.max(batch.order + 1);
        self.repeat.insert(batch.order, batch);
    }

    /// Whether a batch sent before this one has not arrived yet, as far as is
    /// known: answers may be seen in another order than they were given.
    pub(super) fn follows_another(&self, order: u64) -> bool {
        let earlier = ..order;
        self.repeat.range(earlier).next().is_some()
            || self.under_way.range(earlier).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(order: u64) -> Batch {
        Batch {
            partition: 0,
            order,
            buffered: 0,
            bytes: Bytes::new(),
            appended_at: Vec::new(),
        }
    }

    /// With more records to send, and batches 0 to 2 answered or to be repeated.
    fn accumulator(now: Instant) -> Accumulator {
        let mut accumulator = Accumulator::new(1);
        accumulator.introduced = true;
        accumulator.under_way_to = 1;
        accumulator.sent = 3;
        accumulator.full.push_back(Open {
            builder: BatchBuilder::with_capacity(0),
            buffered: 0,
            appended_at: vec![now],
        });
        accumulator
    }

    #[test]
    fn nothing_new_overtakes_a_batch_that_is_repeated() {
        let now = Instant::now();
        let ready = |accumulator: &Accumulator| accumulator.ready(now, Duration::ZERO);
        let mut accumulator = accumulator(now);
        assert_eq!(ready(&accumulator), Ok(()));
        accumulator.under_way.insert(2);
        assert_eq!(ready(&accumulator), Ok(()), "several are under way");
        accumulator.repeat(batch(1));
        assert_eq!(ready(&accumulator), Err(None), "until all are answered");
        accumulator.under_way.clear();
        assert_eq!(ready(&accumulator), Ok(()));
        let repeated = accumulator.repeat.pop_first().expect("batch 1").0;
        accumulator.under_way.insert(repeated);
        assert_eq!(ready(&accumulator), Err(None), "until it is answered");
        accumulator.under_way.clear();
        assert_eq!(ready(&accumulator), Ok(()));
        accumulator.under_way.insert(3);
        assert_eq!(ready(&accumulator), Ok(()), "several again");
    }
}
