//! What a write does to a group's state: pure, shared by every [`crate::LogStore`].
//!
//! Misuse by the caller (a hole, a term that goes back, an index written twice)
//! is a bug and panics here, before anything reaches the disk.

use crate::log::{GroupId, GroupState, TermStart, Write};

/// Records to change beside those that the write itself names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Term starts to put.
    pub(crate) term_starts: Vec<TermStart>,
    /// Terms whose start goes.
    pub(crate) terms_gone: Vec<u64>,
    /// Indexes of checkpoints that go.
    pub(crate) checkpoints_gone: Vec<u64>,
    /// Entries of `from..to` that go.
    pub(crate) entries_gone: Option<(u64, u64)>,
}

impl GroupState {
    /// The index that the next entry must have.
    pub fn next_index(&self) -> u64 {
        self.last.map_or(0, |(index, _)| index + 1)
    }

    /// The first index that may be held.
    pub fn first_index(&self) -> u64 {
        self.purged.map_or(0, |(index, _)| index + 1)
    }

    /// The term of an entry held, or of the last purged one.
    pub fn term_at(&self, index: u64) -> Option<u64> {
        if let Some((purged, term)) = self.purged
            && index == purged
        {
            return Some(term);
        }
        if index < self.first_index() || index >= self.next_index() {
            return None;
        }
        let after = self
            .term_starts
            .partition_point(|start| start.index <= index);
        Some(self.term_starts[after.checked_sub(1)?].term)
    }

    /// Applies a write and says which records change with it.
    pub(crate) fn apply(&mut self, group: GroupId, write: &Write) -> Effects {
        match write {
            Write::Append(entries) => self.append(group, entries),
            Write::Truncate { last } => self.truncate(group, *last),
            Write::Vote(vote) => {
                self.vote = Some(vote.clone());
                Effects::default()
            }
            Write::Purge { index, term } => self.purge(group, *index, *term),
            Write::Checkpoint { checkpoint, keep } => self.keep_checkpoint(checkpoint.index, keep),
            Write::Keys(_) | Write::Repair(_) => Effects::default(),
            Write::Drop => {
                *self = GroupState::default();
                Effects::default()
            }
        }
    }

    fn append(&mut self, group: GroupId, entries: &[crate::Entry]) -> Effects {
        let mut effects = Effects::default();
        for entry in entries {
            assert_eq!(entry.index, self.next_index(), "{group}: log hole");
            assert!(entry.index < u64::MAX - 1, "{group}: log is full");
            let last_term = self.last.map_or(0, |(_, term)| term);
            assert!(entry.term >= last_term, "{group}: term goes back");
            if self.term_starts.last().map(|start| start.term) != Some(entry.term) {
                let start = TermStart {
                    term: entry.term,
                    index: entry.index,
                };
                self.term_starts.push(start);
                effects.term_starts.push(start);
            }
            self.last = Some((entry.index, entry.term));
        }
        effects
    }

    fn truncate(&mut self, group: GroupId, last: Option<u64>) -> Effects {
        let next = last.map_or(0, |index| index + 1).max(match last {
            // Forgetting all leaves the purge point.
            None => self.first_index(),
            Some(_) => 0,
        });
        assert!(next >= self.first_index(), "{group}: truncate below purge");
        let end = self.next_index();
        if next >= end {
            return Effects::default();
        }
        self.last = match next {
            next if next == self.first_index() => self.purged,
            next => self.term_at(next - 1).map(|term| (next - 1, term)),
        };
        let kept = self.term_starts.partition_point(|start| start.index < next);
        let gone = self.term_starts.split_off(kept);
        Effects {
            terms_gone: gone.iter().map(|start| start.term).collect(),
            entries_gone: Some((next, end)),
            ..Effects::default()
        }
    }

    fn purge(&mut self, group: GroupId, index: u64, term: u64) -> Effects {
        let mut effects = Effects::default();
        let first = self.first_index();
        if index < first {
            return effects;
        }
        assert!(index < u64::MAX - 1, "{group}: purge beyond every log");
        if let Some(found) = self.term_at(index) {
            assert_eq!(found, term, "{group}: purge of an entry of another term");
        }
        effects.entries_gone = Some((first, index + 1));
        let end = self.next_index();
        self.purged = Some((index, term));
        if index + 1 >= end {
            self.last = self.purged;
            effects.terms_gone = self.term_starts.drain(..).map(|start| start.term).collect();
        } else {
            let covering = self
                .term_starts
                .partition_point(|start| start.index <= index + 1)
                - 1;
            effects.terms_gone = self
                .term_starts
                .drain(..covering)
                .map(|start| start.term)
                .collect();
            let start = &mut self.term_starts[0];
            if start.index <= index {
                start.index = index + 1;
                effects.term_starts.push(*start);
            }
        }
        let kept = self.checkpoints.partition_point(|at| *at < index);
        effects.checkpoints_gone = self.checkpoints.drain(..kept).collect();
        effects
    }

    fn keep_checkpoint(&mut self, index: u64, keep: &[u64]) -> Effects {
        let first = self.first_index();
        let mut gone = Vec::new();
        self.checkpoints.retain(|at| {
            let goes = *at < index && *at >= first && !keep.contains(at);
            if goes {
                gone.push(*at);
            }
            !goes
        });
        if let Err(place) = self.checkpoints.binary_search(&index) {
            self.checkpoints.insert(place, index);
        }
        Effects {
            checkpoints_gone: gone,
            ..Effects::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Entry;

    const G: GroupId = GroupId(1);

    fn append(state: &mut GroupState, index: u64, term: u64) -> Effects {
        let entry = Entry {
            index,
            term,
            tag: 0,
            stamp: 0,
            checksum: 0,
            payload: Bytes::new(),
        };
        state.apply(G, &Write::Append(vec![entry]))
    }

    #[test]
    fn every_index_has_the_term_that_wrote_it() {
        let mut state = GroupState::default();
        for (index, term) in [1, 1, 2, 5, 5].into_iter().enumerate() {
            append(&mut state, index as u64, term);
        }
        let terms = |state: &GroupState| (0..6).map(|at| state.term_at(at)).collect::<Vec<_>>();
        assert_eq!(
            terms(&state),
            [Some(1), Some(1), Some(2), Some(5), Some(5), None]
        );
        let effects = state.apply(G, &Write::Purge { index: 1, term: 1 });
        assert_eq!(effects.terms_gone, [1]);
        assert_eq!(effects.term_starts, [], "term 2 starts where it did");
        assert_eq!(
            terms(&state),
            [None, Some(1), Some(2), Some(5), Some(5), None]
        );
        let effects = state.apply(G, &Write::Purge { index: 3, term: 5 });
        assert_eq!(effects.terms_gone, [2]);
        assert_eq!(effects.term_starts, [TermStart { term: 5, index: 4 }]);
        assert_eq!(terms(&state), [None, None, None, Some(5), Some(5), None]);
    }

    #[test]
    #[should_panic(expected = "log hole")]
    fn a_hole_is_a_bug() {
        let mut state = GroupState::default();
        append(&mut state, 0, 1);
        append(&mut state, 2, 1);
    }

    #[test]
    #[should_panic(expected = "log hole")]
    fn an_index_is_not_written_again_before_it_is_truncated() {
        let mut state = GroupState::default();
        append(&mut state, 0, 1);
        append(&mut state, 0, 2);
    }

    #[test]
    #[should_panic(expected = "term goes back")]
    fn a_term_that_goes_back_is_a_bug() {
        let mut state = GroupState::default();
        append(&mut state, 0, 2);
        append(&mut state, 1, 1);
    }

    #[test]
    #[should_panic(expected = "truncate below purge")]
    fn a_truncation_below_the_purge_point_is_a_bug() {
        let mut state = GroupState::default();
        append(&mut state, 0, 1);
        append(&mut state, 1, 1);
        state.apply(G, &Write::Purge { index: 1, term: 1 });
        state.apply(G, &Write::Truncate { last: Some(0) });
    }
}
