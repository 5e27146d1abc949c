//! The judge: which promises of a log did a history see broken?
//!
//! It knows nothing but the [`History`]. What was promised depends on the producer:
//!
//! - Acknowledged with `acks=-1`: the record is there in the end, at the offset that was told.
//!   With `acks=1` a loss or another offset is told as tolerated.
//! - An idempotent producer's record is there at most once, acknowledged or given up, and its
//!   records are in each partition in the order in which they were sent. Duplicates and another
//!   order of a producer without idempotence are told as tolerated.
//! - To everybody: what a consumer was given stays at its offset; offsets only rise, and pass
//!   over no record; nothing is there that nobody sent there; bytes are those that were sent;
//!   every replica can be read in the end, and all have the same.
//! - Of a transaction, as all readers read what is committed only: if it was committed, its
//!   records are there as any others; if its commit was asked for and not answered, all of its
//!   acknowledged records are there or none; before its commit was asked for, and for ever if
//!   it never was, no reader is given any of them. What is missing of a committed transaction
//!   is lost, and if something else of it is there, that is half a transaction as well.
//!
//! And of operations, for each topic name and each offset of a group by itself:
//!
//! - What CreateTopics, DeleteTopics, OffsetCommit and OffsetFetch were answered must be
//!   linearizable: there is an order of the calls, which keeps the order of those that did not
//!   overlap, in which an object that is asked one thing after the other answers just so. A call
//!   without an answer may take effect once, at any later time, or never.
//! - Metadata is promised to catch up, no more: if only its answers are in the way of such an
//!   order, they are told as tolerated.
//! - The search is bounded. What it does not decide is a violation too: nobody knows that it is none.
//!
//! A record is lost when no replica has it: if only some lack it, they disagree. A record whose
//! acknowledged offset holds corrupted bytes counts as corrupted, not as lost as well. If
//! nothing of a partition could be read, that it is unreadable is all that is said of its end.
//!
//! Time and memory are linear in the writes and reads, with some twenty bytes for each write; for
//! operations they are bounded, and linear as long as few of them overlap.

mod finals;
mod index;
mod live;
mod log;
mod models;
mod operations;
mod transactions;
mod verdict;
mod words;

use std::collections::{HashMap, HashSet};

use crate::history::{Ending, History, Outcome, Write};
use crate::operation::Answer;
use crate::record::RecordId;
use index::{Index, Known, name};
use log::{Log, describe_all};
use transactions::{Presence, Transactions};
use verdict::Findings;

pub use verdict::{Counts, Finding, Kind, SAMPLES_MAX, Verdict};

/// Judges a history.
pub fn judge(history: &History) -> Verdict {
    let mut findings = Findings::default();
    let index = Index::new(history, &mut findings);
    let transactions = Transactions::new(history, &mut findings);
    let mut case = Case {
        history,
        index,
        transactions,
        findings,
        fates: vec![Fate::default(); history.writes.len()],
        logs: (0..history.partitions).map(|_| Vec::new()).collect(),
        corrupted: HashMap::new(),
        from_nowhere: HashSet::new(),
    };
    case.open_finals();
    case.read_finals();
    case.compare_replicas();
    case.follow_consumers();
    case.settle_writes();
    case.settle_transactions();
    case.settle_corrupted();
    case.check_operations();
    let counts = case.counts();
    case.findings.verdict(counts)
}

/// A history under judgement.
struct Case<'a> {
    history: &'a History,
    index: Index<'a>,
    transactions: Transactions<'a>,
    findings: Findings,
    /// By place among the writes.
    fates: Vec<Fate>,
    /// By partition, all of its final reads that succeeded.
    logs: Vec<Vec<Log<'a>>>,
    /// By partition and offset.
    corrupted: HashMap<(u32, i64), Corrupted>,
    /// Records that nobody sent there, by partition.
    from_nowhere: HashSet<(u32, RecordId)>,
}

/// What became of a write.
#[derive(Clone, Copy, Default)]
struct Fate {
    /// The last final read that had it, counted from 1.
    read: u32,
    /// Whether a final read had it at the acknowledged offset.
    at_acknowledged_offset: bool,
    /// Whether a final read had it more than once.
    duplicated: bool,
    /// Whether a final read had it after a later one.
    reordered: bool,
    /// Whether a live consumer was given it.
    seen_live: bool,
    /// Whether a reader was given it before its transaction was to be committed.
    read_uncommitted: bool,
}

/// Bytes that nobody sent.
struct Corrupted {
    /// Who was given them, in words.
    reader: String,
    /// What is wrong with them.
    why: String,
    /// Whether they are there in the end.
    in_the_end: bool,
    /// The record that should be there.
    expected: Option<RecordId>,
}

impl Case<'_> {
    /// Which write a reader was given; `None`: it is none, which has been noted.
    fn identify(
        &mut self,
        partition: u32,
        offset: i64,
        record: &Result<RecordId, String>,
        in_the_end: bool,
        reader: impl FnOnce() -> String,
    ) -> Option<Known> {
        let id = match record {
            Ok(id) => *id,
            Err(why) => {
                // The final reads come first, so that what is noted already holds.
                let at = (partition, offset);
                self.corrupted.entry(at).or_insert_with(|| Corrupted {
                    reader: reader(),
                    why: why.clone(),
                    in_the_end,
                    expected: None,
                });
                return None;
            }
        };
        let found = self.index.find(id);
        let sent_to = found.map(|it| self.history.writes[it.place].partition);
        if sent_to == Some(partition) {
            return found;
        }
        if self.from_nowhere.insert((partition, id)) {
            self.findings.violation(Kind::FromNowhere, || {
                let sent = match sent_to {
                    Some(sent_to) => format!("to partition {sent_to}"),
                    None => "by nobody".to_owned(),
                };
                format!(
                    "{} is in partition {partition} at offset {offset} as {} saw it, but was sent {sent}",
                    name(id),
                    reader(),
                )
            });
        }
        None
    }

    /// Looks for every write that was acknowledged.
    fn settle_writes(&mut self) {
        for (place, write) in self.history.writes.iter().enumerate() {
            let Some(logs) = self.logs.get(write.partition as usize) else {
                self.findings.violation(Kind::BrokenHistory, || {
                    format!(
                        "{} was sent to partition {}",
                        name(write.id),
                        write.partition
                    )
                });
                continue;
            };
            let Outcome::Acknowledged { offset } = write.outcome else {
                continue;
            };
            let Some(known) = self.index.find(write.id).filter(|it| it.place == place) else {
                // Sent twice, which has been told: the first one stands for both.
                continue;
            };
            let fate = self.fates[place];
            let at = offset.map(|offset| (write.partition, offset));
            let mut corrupted = at.and_then(|at| self.corrupted.get_mut(&at));
            if let Some(corrupted) = &mut corrupted
                && fate.read == 0
            {
                corrupted.expected = Some(write.id);
            }
            if logs.is_empty() {
                continue;
            }
            let promised = self.index.kind(known.slot).acks == -1;
            let presence = self.transactions.presence(write);
            if fate.read == 0 {
                if presence == Presence::There && !corrupted.is_some_and(|it| it.in_the_end) {
                    let kind = Kind::AcknowledgedAndLost;
                    (self.findings).add(kind, promised, || describe_lost(write, offset, logs));
                }
            } else if presence != Presence::NotThere
                && let Some(offset) = offset
                && !fate.at_acknowledged_offset
            {
                let kind = Kind::AcknowledgedAtAnotherOffset;
                (self.findings).add(kind, promised, || describe_moved(write, offset, logs));
            }
        }
    }

    /// Tells of all corrupted bytes, in the order of partitions and offsets.
    fn settle_corrupted(&mut self) {
        let mut corrupted: Vec<_> = self.corrupted.drain().collect();
        corrupted.sort_unstable_by_key(|(at, _)| *at);
        for ((partition, offset), it) in corrupted {
            self.findings.violation(Kind::Corrupted, || {
                let expected = match it.expected {
                    Some(id) => format!("where {} was acknowledged", name(id)),
                    None => "where no missing record was acknowledged".to_owned(),
                };
                let Corrupted { reader, why, .. } = it;
                format!(
                    "partition {partition} offset {offset}: {reader} was given {why}, {expected}"
                )
            });
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (write, fate) in self.history.writes.iter().zip(&self.fates) {
            counts.sent += 1;
            match write.outcome {
                Outcome::Acknowledged { .. } => counts.acknowledged += 1,
                Outcome::GivenUp { .. } => counts.given_up += 1,
            }
            counts.read_back += u64::from(fate.read > 0);
            counts.seen_live += u64::from(fate.seen_live);
        }
        for transaction in &self.history.transactions {
            match transaction.ending {
                Ending::Committed { .. } => counts.transactions_committed += 1,
                Ending::Aborted => counts.transactions_aborted += 1,
                Ending::Unknown { .. } => counts.transactions_unknown += 1,
            }
        }
        for operation in &self.history.operations {
            counts.operations += 1;
            counts.operations_unknown += u64::from(matches!(operation.answer, Answer::Unknown(_)));
        }
        counts
    }
}

fn describe_lost(write: &Write, offset: Option<i64>, logs: &[Log<'_>]) -> String {
    let (record, partition) = (name(write.id), write.partition);
    match offset {
        Some(offset) => format!(
            "{record} was acknowledged in partition {partition} at offset {offset} at {} µs and is not there: {}",
            write.answered_us,
            describe_all(logs, offset),
        ),
        None => format!(
            "{record} was acknowledged in partition {partition} at {} µs and is not there",
            write.answered_us
        ),
    }
}

fn describe_moved(write: &Write, offset: i64, logs: &[Log<'_>]) -> String {
    let mut found = logs.iter().flat_map(|log| log.seen.iter());
    let found = found.find(|it| it.record == Ok(write.id));
    let found = found.map_or("elsewhere".to_owned(), |it| format!("at {}", it.offset));
    format!(
        "{} was acknowledged in partition {} at offset {offset} and is {found}; {}",
        name(write.id),
        write.partition,
        describe_all(logs, offset),
    )
}
