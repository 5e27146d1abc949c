//! A partition's log as one final read found it.

use std::borrow::Cow;

use super::index::name;
use super::verdict::{Findings, Kind};
use crate::history::Seen;

/// A log in ascending order of offsets.
pub(super) struct Log<'a> {
    /// Who served it.
    pub(super) from: &'a str,
    /// All of it.
    pub(super) seen: Cow<'a, [Seen]>,
}

impl<'a> Log<'a> {
    /// What a read of `partition` found; an order that is not ascending is a finding.
    pub(super) fn new(
        from: &'a str,
        partition: u32,
        seen: &'a [Seen],
        findings: &mut Findings,
    ) -> Self {
        let mut ascending = true;
        for pair in seen.windows(2) {
            let (before, after) = (pair[0].offset, pair[1].offset);
            if after <= before {
                ascending = false;
                findings.violation(Kind::OffsetsBackwards, || {
                    format!("partition {partition}: {from} gave offset {after} after {before}")
                });
            }
        }
        let mut seen = Cow::Borrowed(seen);
        if !ascending {
            seen.to_mut().sort_by_key(|it| it.offset);
        }
        Self { from, seen }
    }

    /// The place of an offset, or the one it would have. Quick if that is `near` or next to it.
    pub(super) fn place(&self, offset: i64, near: usize) -> Result<usize, usize> {
        for place in near..=near.saturating_add(1) {
            if self.seen.get(place).is_some_and(|it| it.offset == offset) {
                return Ok(place);
            }
        }
        self.seen.binary_search_by_key(&offset, |it| it.offset)
    }

    /// What is at an offset.
    pub(super) fn at(&self, offset: i64) -> Option<&Seen> {
        self.place(offset, 0).ok().map(|place| &self.seen[place])
    }

    /// What is at an offset, in words.
    pub(super) fn describe(&self, offset: i64) -> String {
        match self.at(offset).map(|it| &it.record) {
            Some(Ok(id)) => format!("{} has {} there", self.from, name(*id)),
            Some(Err(why)) => format!("{} has {why} there", self.from),
            None => match self.seen.last() {
                Some(last) if last.offset < offset => {
                    format!("the log of {} ends with offset {}", self.from, last.offset)
                }
                Some(_) => format!("{} has nothing there", self.from),
                None => format!("the log of {} is empty", self.from),
            },
        }
    }
}

/// What all logs of a partition have at an offset, in words.
pub(super) fn describe_all(logs: &[Log<'_>], offset: i64) -> String {
    let words: Vec<_> = logs.iter().map(|log| log.describe(offset)).collect();
    words.join(", ")
}
