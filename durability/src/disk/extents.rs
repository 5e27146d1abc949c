//! Which pages of a file have space on the disk: ranges of page numbers.

use std::collections::BTreeMap;

/// Disjoint ranges of pages that never touch: start to end, the end excluded.
#[derive(Debug, Default)]
pub(super) struct Extents {
    ranges: BTreeMap<u64, u64>,
    pages: u64,
}

impl Extents {
    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// How many pages of `start..end` are missing.
    pub(super) fn missing(&self, start: u64, end: u64) -> u64 {
        let Some(wanted) = end.checked_sub(start) else {
            return 0;
        };
        let before = self.ranges.range(..start).next_back();
        let present: u64 = before
            .into_iter()
            .chain(self.ranges.range(start..end))
            .map(|(from, to)| (*to).min(end).saturating_sub((*from).max(start)))
            .sum();
        wanted - present
    }

    /// Adds `start..end`.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        while let Some((near_from, near_to)) = self.last_starting_by(to) {
            if near_to < from {
                break;
            }
            self.ranges.remove(&near_from);
            self.pages -= near_to - near_from;
            from = from.min(near_from);
            to = to.max(near_to);
        }
        self.ranges.insert(from, to);
        self.pages += to - from;
    }

    /// Removes `start..end`.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((from, to)) = self.last_starting_by(end - 1) {
            if to <= start {
                break;
            }
            self.ranges.remove(&from);
            self.pages -= to - from;
            // The part above is put back first: what is below may need another look.
            for (from, to) in [(end, to), (from, to.min(start))] {
                if from < to {
                    self.ranges.insert(from, to);
                    self.pages += to - from;
                }
            }
        }
    }

    fn last_starting_by(&self, start: u64) -> Option<(u64, u64)> {
        let (from, to) = self.ranges.range(..=start).next_back()?;
        Some((*from, *to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn extents_are_a_set_of_pages(
            steps in prop::collection::vec((any::<bool>(), 0..60_u64, 0..12_u64), 1..60),
            (from, length) in (0..60_u64, 0..20_u64),
        ) {
            let mut extents = Extents::default();
            let mut model = BTreeSet::new();
            for (insert, start, length) in steps {
                if insert {
                    extents.insert(start, start + length);
                    model.extend(start..start + length);
                } else {
                    extents.remove(start, start + length);
                    model.retain(|page| !(start..start + length).contains(page));
                }
                prop_assert_eq!(extents.pages(), model.len() as u64);
            }
            let missing = (from..from + length).filter(|page| !model.contains(page)).count();
            prop_assert_eq!(extents.missing(from, from + length), missing as u64);
            let mut ends = None;
            for (start, end) in &extents.ranges {
                prop_assert!(start < end && ends.is_none_or(|last| last < start));
                ends = Some(end);
            }
        }
    }
}
