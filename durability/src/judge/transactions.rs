//! Transactions: which of their records readers may be given, and that in the end it is all or none.

use std::collections::HashMap;

use super::Case;
use super::index::name;
use super::verdict::{Findings, Kind};
use crate::history::{Ending, History, Outcome, Transaction, Write};

/// The transactions of a history by their numbers.
pub(super) struct Transactions<'a> {
    listed: &'a [Transaction],
    /// Number to a place in `listed`.
    places: HashMap<u32, usize>,
}

impl<'a> Transactions<'a> {
    /// Indexes a history; what contradicts itself is a finding.
    pub(super) fn new(history: &'a History, findings: &mut Findings) -> Self {
        let mut transactions = Self {
            listed: &history.transactions,
            places: HashMap::new(),
        };
        for (place, transaction) in history.transactions.iter().enumerate() {
            let number = transaction.number;
            if transactions.places.insert(number, place).is_some() {
                findings.violation(Kind::BrokenHistory, || {
                    format!("transaction {number} is listed twice")
                });
            }
        }
        for write in &history.writes {
            let Some(number) = write.transaction else {
                continue;
            };
            let given_up = matches!(write.outcome, Outcome::GivenUp { .. });
            let contradiction = match transactions.of(write) {
                None => "is not listed",
                Some(it) if it.producer != write.id.producer => "is another producer's",
                Some(it) if given_up && it.ending != Ending::Aborted => {
                    "was to be committed without it"
                }
                Some(_) => continue,
            };
            findings.violation(Kind::BrokenHistory, || {
                let record = name(write.id);
                format!("{record} is in transaction {number}, which {contradiction}")
            });
        }
        transactions
    }

    /// The transaction of a write.
    pub(super) fn of(&self, write: &Write) -> Option<&'a Transaction> {
        self.place(write).map(|place| &self.listed[place])
    }

    fn place(&self, write: &Write) -> Option<usize> {
        self.places.get(&write.transaction?).copied()
    }

    /// Whether a record is to be there in the end, once it was acknowledged.
    pub(super) fn presence(&self, write: &Write) -> Presence {
        match self.of(write).map(|it| it.ending) {
            None | Some(Ending::Committed { .. }) => Presence::There,
            Some(Ending::Unknown { .. }) => Presence::Either,
            Some(Ending::Aborted) => Presence::NotThere,
        }
    }
}

/// Whether an acknowledged record is to be there in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is in no transaction, or in one that was committed.
    There,
    /// Its transaction's commit was not answered.
    Either,
    /// Its transaction was aborted.
    NotThere,
}

/// What is left of a transaction in the end.
#[derive(Clone, Copy, Default)]
struct Found {
    there: u64,
    missing: u64,
    /// The first record of either, as a place among the writes.
    first_there: Option<usize>,
    first_missing: Option<usize>,
}

impl Found {
    fn count(&mut self, place: usize, there: bool) {
        let (count, first) = match there {
            true => (&mut self.there, &mut self.first_there),
            false => (&mut self.missing, &mut self.first_missing),
        };
        *count += 1;
        first.get_or_insert(place);
    }
}

impl Case<'_> {
    /// Notes that a reader was given a record before its transaction was to be committed,
    /// `at_us` or, if that is `None`, in the end. Whether it was.
    pub(super) fn uncommitted(
        &mut self,
        place: usize,
        at_us: Option<u64>,
        reader: impl FnOnce() -> String,
    ) -> bool {
        let write = &self.history.writes[place];
        let Some(transaction) = self.transactions.of(write) else {
            return false;
        };
        let asked_us = transaction.ending.asked_us();
        // What is read in the end is read after everything.
        let late_enough = asked_us.is_some_and(|asked| at_us.is_none_or(|at| at >= asked));
        if late_enough {
            return false;
        }
        let fate = &mut self.fates[place];
        if !std::mem::replace(&mut fate.read_uncommitted, true) {
            self.findings.violation(Kind::UncommittedRead, || {
                let when = at_us.map_or("in the end".to_owned(), |at| format!("at {at} µs"));
                let ending = match asked_us {
                    Some(asked) => format!("whose commit was first asked for at {asked} µs"),
                    None => "which was never committed".to_owned(),
                };
                format!(
                    "partition {}: {} was given {} {when}, of transaction {}, {ending}",
                    write.partition,
                    reader(),
                    name(write.id),
                    transaction.number,
                )
            });
        }
        true
    }

    /// Looks for transactions of which some records are there and others are not.
    pub(super) fn settle_transactions(&mut self) {
        let mut all = vec![Found::default(); self.transactions.listed.len()];
        for (place, write) in self.history.writes.iter().enumerate() {
            if let Some(transaction) = self.transactions.place(write)
                && let Some(there) = self.is_there(place, write)
            {
                all[transaction].count(place, there);
            }
        }
        for (transaction, found) in self.transactions.listed.iter().zip(all) {
            let ending = match transaction.ending {
                Ending::Committed { .. } => "which was committed",
                Ending::Unknown { .. } => "whose commit was never answered",
                // That a record of it is there at all has been told.
                Ending::Aborted => continue,
            };
            if let (Some(there), Some(missing)) = (found.first_there, found.first_missing) {
                self.findings.violation(Kind::HalfTransaction, || {
                    let record = |place: usize| {
                        let write = &self.history.writes[place];
                        format!("{} in partition {}", name(write.id), write.partition)
                    };
                    format!(
                        "transaction {}, {ending}: records that are there: {}, the first is {}; that are not: {}, the first is {}",
                        transaction.number,
                        found.there,
                        record(there),
                        found.missing,
                        record(missing),
                    )
                });
            }
        }
    }

    /// Whether an acknowledged record is there in the end; `None`: nobody can say, or
    /// nobody was told that it ever was.
    fn is_there(&self, place: usize, write: &Write) -> Option<bool> {
        let Outcome::Acknowledged { offset } = write.outcome else {
            return None;
        };
        let readable = self.logs.get(write.partition as usize);
        let readable = readable.is_some_and(|logs| !logs.is_empty());
        // Sent twice: the first one stands for both.
        let indexed = self
            .index
            .find(write.id)
            .is_some_and(|it| it.place == place);
        let hidden = offset.is_some_and(|offset| {
            let corrupted = self.corrupted.get(&(write.partition, offset));
            corrupted.is_some_and(|it| it.in_the_end)
        });
        let there = self.fates[place].read > 0;
        (readable && indexed && (there || !hidden)).then_some(there)
    }
}
