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

    /// Whether a batch sent before this one has not arrived yet, as far as is
    /// known: answers may be seen in another order than they were given.
    pub(super) fn follows_another(&self, order: u64) -> bool {
        let earlier = ..order;
        self.repeat.range(earlier).next().is_some()
            || self.under_way.range(earlier).next().is_some()
    }
}
