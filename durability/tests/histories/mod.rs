//! Histories of runs that never happened: clean ones, and [`defects`] to plant in them.

pub(crate) mod defects;
mod transactions;

use drave_durability::history::{
    Ending, FinalRead, History, LiveRead, Outcome, ProducerKind, Seen, Transaction, Write,
};
use drave_durability::record::RecordId;

/// What becomes of a record in a clean history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Acknowledged with its offset.
    Acknowledged,
    /// Acknowledged without one.
    AcknowledgedSomewhere,
    /// Given up, but it is there.
    GivenUpAndWritten,
    /// Given up, and it is not there.
    GivenUp,
}

/// A record to send; producers and partitions by number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) producer: u32,
    pub(crate) partition: u32,
    pub(crate) fate: Fate,
    /// Offsets before it that no record has.
    pub(crate) hole: i64,
}

/// What becomes of a transaction in a clean history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Committed,
    Aborted,
    /// Its commit had no answer, and was done.
    UnknownAndDone,
    /// Its commit had no answer, and was not done.
    UnknownAndNotDone,
}

impl Settled {
    pub(crate) const ALL: [Self; 4] = [
        Self::Committed,
        Self::Aborted,
        Self::UnknownAndDone,
        Self::UnknownAndNotDone,
    ];

    fn is_seen(self) -> bool {
        matches!(self, Self::Committed | Self::UnknownAndDone)
    }
}

/// Records of a transaction.
pub(crate) const TRANSACTION: u64 = 3;

/// A clean history in which producer 0 is idempotent and has `acks=-1`, and the others have what
/// `others` says: `acks`, and whether they are idempotent.
///
/// Each of `consumers` says how many records it passes over at the start of every partition,
/// and how many it is given at most.
///
/// If there are `transactions`, the producer after the others writes in transactions of
/// [`TRANSACTION`] records, which end so in turn. Whatever fate is planned for its records, they
/// are acknowledged.
pub(crate) fn clean(
    partitions: u32,
    others: &[(i16, bool)],
    planned: &[Planned],
    replicas: usize,
    consumers: &[(usize, usize)],
    transactions: &[Settled],
) -> History {
    let transactional = (!transactions.is_empty()).then_some(&(-1, true));
    let kinds = [(-1, true)].iter().chain(others).chain(transactional);
    let producers = (0..).zip(kinds).map(|(producer, kind)| ProducerKind {
        producer,
        acks: kind.0,
        idempotent: kind.1,
    });
    let producers: Vec<_> = producers.collect();
    let mut sequences = vec![0; producers.len()];
    let mut logs: Vec<Vec<Seen>> = vec![Vec::new(); partitions as usize];
    let mut ends = vec![0; partitions as usize];
    let mut writes = Vec::new();
    let mut begun: Vec<Transaction> = Vec::new();
    for (planned, sent_us) in planned.iter().zip((0..).step_by(1000)) {
        let sequence = &mut sequences[planned.producer as usize];
        let id = RecordId {
            producer: planned.producer,
            sequence: *sequence,
        };
        *sequence += 1;
        let end = &mut ends[planned.partition as usize];
        *end += planned.hole;
        let offset = *end;
        let in_transaction = planned.producer as usize > others.len();
        let number = (id.sequence / TRANSACTION) as u32;
        let settled = in_transaction.then(|| transactions[number as usize % transactions.len()]);
        let fate = match settled {
            Some(_) => Fate::Acknowledged,
            None => planned.fate,
        };
        if fate != Fate::GivenUp {
            *end += 1;
        }
        if fate != Fate::GivenUp && settled.is_none_or(Settled::is_seen) {
            let record = Ok(id);
            logs[planned.partition as usize].push(Seen { offset, record });
        }
        if let Some(settled) = settled {
            begun.truncate(number as usize);
            let asked_us = sent_us + 800;
            begun.push(Transaction {
                number,
                producer: id.producer,
                ending: match settled {
                    Settled::Committed => Ending::Committed { asked_us },
                    Settled::Aborted => Ending::Aborted,
                    _ => Ending::Unknown { asked_us },
                },
            });
        }
        let offset = (fate == Fate::Acknowledged).then_some(offset);
        let outcome = match fate {
            Fate::Acknowledged | Fate::AcknowledgedSomewhere => Outcome::Acknowledged { offset },
            Fate::GivenUpAndWritten | Fate::GivenUp => Outcome::GivenUp {
                error: "timed out".to_owned(),
            },
        };
        writes.push(Write {
            id,
            partition: planned.partition,
            transaction: settled.map(|_| number),
            sent_us,
            answered_us: sent_us + 700,
            outcome,
        });
    }
    let mut history = History {
        partitions,
        producers,
        stopped_us: writes.len() as u64 * 1000,
        writes,
        transactions: begun,
        ..History::default()
    };
    for (partition, log) in (0..).zip(&logs) {
        for replica in 0..replicas {
            history.finals.push(FinalRead {
                from: format!("broker {replica}"),
                partition,
                seen: Ok(log.clone()),
            });
        }
        for (consumer, (skip, take)) in (0..).zip(consumers) {
            let seen = log.iter().skip(*skip).take(*take).cloned();
            history.live.push(LiveRead {
                consumer,
                partition,
                seen: (history.stopped_us..).zip(seen).collect(),
            });
        }
    }
    history
}

fn choose<T>(mut all: Vec<T>, pick: usize) -> T {
    let place = pick % all.len();
    all.swap_remove(place)
}

fn logs(history: &History, partition: u32) -> &[Seen] {
    let mut finals = history.finals.iter();
    let found = finals.find(|it| it.partition == partition);
    found.expect("a replica").seen.as_ref().expect("readable")
}

/// An offset after all that anybody was given.
fn end(history: &History, partition: u32) -> i64 {
    logs(history, partition).last().map_or(0, |it| it.offset) + 1
}

/// Changes a log for all that ever saw it.
fn edit_all(history: &mut History, partition: u32, edit: impl Fn(&mut Vec<Seen>)) {
    for read in history
        .finals
        .iter_mut()
        .filter(|it| it.partition == partition)
    {
        edit(read.seen.as_mut().expect("readable"));
    }
    for live in history
        .live
        .iter_mut()
        .filter(|it| it.partition == partition)
    {
        let (times, mut seen): (Vec<_>, Vec<_>) = live.seen.drain(..).unzip();
        edit(&mut seen);
        live.seen = times.into_iter().zip(seen).collect();
    }
}

/// A consumer that was given a whole partition.
fn whole(history: &mut History, partition: u32) -> &mut LiveRead {
    let seen = logs(history, partition).to_vec();
    history.live.push(LiveRead {
        consumer: 99,
        partition,
        seen: (history.stopped_us..).zip(seen).collect(),
    });
    history.live.last_mut().expect("just pushed")
}
