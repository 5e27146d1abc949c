//! What the live consumers were given, and whether it held.

use std::collections::HashSet;

use super::Case;
use super::index::name;
use super::log::{Log, describe_all};
use super::verdict::{Findings, Kind};
use crate::history::{LiveRead, Seen};
use crate::record::RecordId;

impl<'a> Case<'a> {
    /// Goes through what every consumer was given.
    pub(super) fn follow_consumers(&mut self) {
        let logs = std::mem::take(&mut self.logs);
        // Several consumers may have seen the same.
        let mut dirty = HashSet::new();
        for live in &self.history.live {
            match logs.get(live.partition as usize) {
                Some(logs) => self.follow(live, logs, &mut dirty),
                None => self.findings.violation(Kind::BrokenHistory, || {
                    format!(
                        "consumer {} read partition {}",
                        live.consumer, live.partition
                    )
                }),
            }
        }
        self.logs = logs;
    }

    fn follow(
        &mut self,
        live: &'a LiveRead,
        logs: &[Log<'_>],
        dirty: &mut HashSet<(u32, i64, RecordId)>,
    ) {
        let mut path = Path::default();
        for (seen_us, seen) in &live.seen {
            path.step(live, seen, logs, &mut self.findings);
            let reader = || format!("consumer {}", live.consumer);
            let known = self.identify(live.partition, seen.offset, &seen.record, false, reader);
            let (Some(known), Ok(id)) = (known, &seen.record) else {
                continue;
            };
            self.fates[known.place].seen_live = true;
            if self.uncommitted(known.place, Some(*seen_us), reader) {
                continue;
            }
            let held = path.is_there(logs, seen);
            if !held && dirty.insert((live.partition, seen.offset, *id)) {
                self.findings.violation(Kind::DirtyRead, || {
                    format!(
                        "partition {} offset {}: consumer {} was given {} at {seen_us} µs; in the end {}",
                        live.partition,
                        seen.offset,
                        live.consumer,
                        name(*id),
                        describe_all(logs, seen.offset),
                    )
                });
            }
        }
    }
}

/// A consumer's way through a partition.
#[derive(Default)]
struct Path {
    /// The offset before.
    last: Option<i64>,
    /// The highest offset so far.
    highest: Option<i64>,
    /// Where the consumer is in the first log.
    place: usize,
}

impl Path {
    /// Checks the step to what was seen next.
    fn step(&mut self, live: &LiveRead, seen: &Seen, logs: &[Log<'_>], findings: &mut Findings) {
        let (consumer, partition) = (live.consumer, live.partition);
        let offset = seen.offset;
        if let Some(last) = self.last.filter(|last| offset <= *last) {
            findings.violation(Kind::OffsetsBackwards, || {
                format!("partition {partition}: consumer {consumer} was given offset {offset} after {last}")
            });
        }
        if let (Some(highest), Some((first, others))) = (self.highest, logs.split_first())
            && offset.checked_sub(1).is_some_and(|before| before > highest)
        {
            // What all replicas have is there for certain; where they differ, they disagree.
            let from = match first.place(highest, self.place) {
                Ok(place) => place + 1,
                Err(place) => place,
            };
            for missed in first.seen[from..]
                .iter()
                .take_while(|it| it.offset < offset)
            {
                if others.iter().all(|log| log.at(missed.offset).is_some()) {
                    findings.violation(Kind::RecordsSkipped, || {
                        format!(
                            "partition {partition} offset {}: consumer {consumer} went from {highest} to {offset}; {}",
                            missed.offset,
                            first.describe(missed.offset),
                        )
                    });
                }
            }
        }
        self.last = Some(offset);
        self.highest = self.highest.max(Some(offset));
        if let Some(first) = logs.first() {
            self.place = first
                .place(offset, self.place)
                .unwrap_or_else(|place| place);
        }
    }

    /// Whether what was seen is there in the end: in the log of a replica at least, or hidden
    /// by corrupted bytes, or in a partition of which nothing is known.
    fn is_there(&self, logs: &[Log<'_>], seen: &Seen) -> bool {
        let Some((first, others)) = logs.split_first() else {
            return true;
        };
        let same = |it: &Seen| {
            it.offset == seen.offset && (it.record == seen.record || it.record.is_err())
        };
        first.seen.get(self.place).is_some_and(same)
            || (others.iter()).any(|log| log.at(seen.offset).is_some_and(same))
    }
}
