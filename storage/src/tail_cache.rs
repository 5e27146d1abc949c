//! The newest entries of every group, in memory.
//!
//! A [`Tail`] belongs to its group and is guarded by the group's lock; entries
//! are in it before `submit` returns. The [`Evictor`] belongs to the writer
//! thread, which is why an entry can't leave before it is written: only what
//! has been written enters the evictor's window. The window is the newest so
//! many bytes written over all groups, in the order of writing.
//!
//! Entries hold the `Bytes` they came with. Those may pin a larger receive
//! buffer; what is counted is the entry's own weight.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::group_log::GroupLog;
use crate::log::Entry;

/// One cached entry.
struct Slot {
    entry: Entry,
    /// Payload bytes of the log up to the end of this entry.
    end: u64,
    /// The submission of the group that brought the entry.
    submission: u64,
}

/// The newest entries of one group, without holes.
#[derive(Default)]
pub(crate) struct Tail {
    slots: VecDeque<Slot>,
}

impl Tail {
    /// Index of the oldest entry held.
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.entry.index)
    }

    pub(crate) fn push(&mut self, entry: Entry, end: u64, submission: u64) {
        if let Some(last) = self.slots.back() {
            assert_eq!(entry.index, last.entry.index + 1, "hole in the tail");
        }
        self.slots.push_back(Slot {
            entry,
            end,
            submission,
        });
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        let offset = index.checked_sub(self.first_index()?)?;
        self.slots.get(usize::try_from(offset).ok()?)
    }

    /// Where the payload of an entry starts and ends in the log's bytes.
    pub(crate) fn position(&self, index: u64) -> Option<(u64, u64)> {
        self.slot(index)
            .map(|slot| (slot.end - slot.entry.payload.len() as u64, slot.end))
    }

    /// Adds entries of `from..to` to `out` until it weighs `bytes_max`, but at
    /// least one if `out` is empty; `false` if `from` is not held.
    pub(crate) fn read(
        &self,
        from: u64,
        to: u64,
        bytes_max: usize,
        bytes: &mut usize,
        out: &mut Vec<Entry>,
    ) -> bool {
        let Some(offset) = self
            .first_index()
            .and_then(|first| from.checked_sub(first))
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| *offset < self.slots.len())
        else {
            return false;
        };
        for slot in self.slots.range(offset..) {
            if slot.entry.index >= to {
                break;
            }
            let weight = slot.entry.weight();
            if !out.is_empty() && *bytes + weight > bytes_max {
                break;
            }
            *bytes += weight;
            out.push(slot.entry.clone());
        }
        true
    }

    /// Forgets the entries from `next` on.
    pub(crate) fn cut_from(&mut self, next: u64) {
        while self
            .slots
            .back()
            .is_some_and(|slot| slot.entry.index >= next)
        {
            self.slots.pop_back();
        }
        self.release();
    }

    /// Forgets the entries up to and including `index`.
    pub(crate) fn cut_to(&mut self, index: u64) {
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.entry.index <= index)
        {
            self.slots.pop_front();
        }
        self.release();
    }

    pub(crate) fn clear(&mut self) {
        self.slots = VecDeque::new();
    }

    /// Moves out what came with `submission` or earlier, to be dropped by the
    /// caller after it has released the group.
    fn evict(&mut self, submission: u64, out: &mut Vec<Entry>) {
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.submission <= submission)
        {
            out.extend(self.slots.pop_front().map(|slot| slot.entry));
        }
        self.release();
    }

    /// An idle group keeps no memory.
    fn release(&mut self) {
        if self.slots.is_empty() {
            self.slots = VecDeque::new();
        } else if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 8 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }
}

/// One written append.
struct Run {
    group: Arc<GroupLog>,
    submission: u64,
    bytes: usize,
}

/// Keeps the tails of all groups together within a budget of bytes.
pub(crate) struct Evictor {
    runs: VecDeque<Run>,
    bytes: usize,
    bytes_max: usize,
    evicted: Vec<Entry>,
}

impl Evictor {
    pub(crate) fn new(bytes_max: usize) -> Evictor {
        Evictor {
            runs: VecDeque::new(),
            bytes: 0,
            bytes_max,
            evicted: Vec::new(),
        }
    }

    /// An append was written: it may be evicted from now on.
    pub(crate) fn written(&mut self, group: Arc<GroupLog>, submission: u64, bytes: usize) {
        self.bytes += bytes;
        self.runs.push_back(Run {
            group,
            submission,
            bytes,
        });
    }

    /// Evicts the oldest entries until the rest fits.
    pub(crate) fn evict(&mut self) {
        while self.bytes > self.bytes_max
            && let Some(run) = self.runs.pop_front()
        {
            self.bytes -= run.bytes;
            run.group
                .lock()
                .tail
                .evict(run.submission, &mut self.evicted);
            self.evicted.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(index: u64, len: usize) -> Entry {
        Entry {
            index,
            term: 1,
            tag: 0,
            stamp: 0,
            checksum: 0,
            payload: Bytes::from(vec![0; len]),
        }
    }

    fn tail_of(indexes: std::ops::Range<u64>) -> Tail {
        let mut tail = Tail::default();
        for index in indexes {
            tail.push(entry(index, 10), (index + 1) * 10, index);
        }
        tail
    }

    fn indexes(tail: &Tail, from: u64, to: u64, bytes_max: usize) -> Option<Vec<u64>> {
        let mut out = Vec::new();
        tail.read(from, to, bytes_max, &mut 0, &mut out)
            .then(|| out.iter().map(|entry| entry.index).collect())
    }

    #[test]
    fn a_read_gives_what_is_held_within_its_bounds() {
        let tail = tail_of(5..10);
        assert_eq!(indexes(&tail, 5, 8, 10_000), Some(vec![5, 6, 7]));
        assert_eq!(indexes(&tail, 8, 100, 10_000), Some(vec![8, 9]));
        assert_eq!(indexes(&tail, 6, 10, 1), Some(vec![6]), "at least one");
        assert_eq!(indexes(&tail, 6, 10, 2 * 74), Some(vec![6, 7]));
        assert_eq!(indexes(&tail, 4, 10, 10_000), None);
        assert_eq!(indexes(&tail, 10, 11, 10_000), None);
    }

    #[test]
    fn the_evictor_takes_the_oldest_first_and_spares_what_was_written_again() {
        let (a, b) = (GroupLog::for_tests(1), GroupLog::for_tests(2));
        for index in 0..4 {
            a.lock().tail.push(entry(index, 36), 0, index + 1);
        }
        b.lock().tail.push(entry(0, 36), 0, 1);
        let mut evictor = Evictor::new(250);
        for submission in 1..=2 {
            evictor.written(a.clone(), submission, 100);
        }
        evictor.written(b.clone(), 1, 100);
        // Entry 1 is truncated and written again, by a submission still queued.
        a.lock().tail.cut_from(1);
        a.lock().tail.push(entry(1, 36), 0, 9);
        evictor.evict();
        assert_eq!(a.lock().tail.first_index(), Some(1));
        evictor.written(b.clone(), 2, 200);
        evictor.evict();
        assert_eq!(a.lock().tail.first_index(), Some(1), "not yet written");
        assert_eq!(b.lock().tail.first_index(), None);
    }
}
