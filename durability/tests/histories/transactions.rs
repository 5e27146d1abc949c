//! What can be wrong with a transaction.

use drave_durability::history::{Ending, History, Outcome, Seen, Transaction};
use drave_durability::record::RecordId;

use super::defects::Defect;
use super::{choose, edit_all, logs, whole};

/// Makes one thing wrong, at one place.
pub(super) fn plant(defect: Defect, history: &mut History, pick: usize) {
    let committed = |it: &Ending| matches!(it, Ending::Committed { .. });
    let unknown = |it: &Ending| matches!(it, Ending::Unknown { .. });
    let aborted = |it: &Ending| *it == Ending::Aborted;
    match defect {
        Defect::LostOfTransaction => lose(history, record(history, committed, true, pick)),
        Defect::HalfIsMissing => lose(history, record(history, unknown, true, pick)),
        Defect::HalfIsThere => show(history, record(history, unknown, false, pick)),
        Defect::AbortedAndThere => show(history, record(history, aborted, false, pick)),
        Defect::AbortedAndSeen => {
            let (partition, seen) = record(history, aborted, false, pick);
            let at_us = history.stopped_us;
            let live = &mut whole(history, partition).seen;
            let place = live.partition_point(|(_, it)| it.offset < seen.offset);
            live.insert(place, (at_us, seen));
        }
        Defect::SeenBeforeCommit => {
            let settled = if pick.is_multiple_of(2) {
                committed
            } else {
                unknown
            };
            let (partition, seen) = record(history, settled, true, pick);
            let write = history.writes.iter().find(|it| Ok(it.id) == seen.record);
            let number = write.and_then(|it| it.transaction);
            let mut transactions = history.transactions.iter();
            let transaction = transactions.find(|it| Some(it.number) == number);
            let asked_us = transaction.and_then(|it| it.ending.asked_us());
            let live = &mut whole(history, partition).seen;
            let early = live.iter_mut().find(|(_, it)| *it == seen);
            early.expect("all of it").0 = asked_us.expect("it was") - 1;
        }
        Defect::UnlistedTransaction => {
            let one = choose(transactions(history, committed), pick);
            history.transactions.retain(|it| *it != one);
            // Once for each record: one is enough.
            let mut kept = false;
            for write in &mut history.writes {
                if write.transaction == Some(one.number) && std::mem::replace(&mut kept, true) {
                    write.transaction = None;
                }
            }
        }
        Defect::CommittedWithoutRecord => {
            let (_, seen) = record(history, committed, true, pick);
            for write in &mut history.writes {
                if Ok(write.id) == seen.record {
                    let error = "timed out".to_owned();
                    write.outcome = Outcome::GivenUp { error };
                }
            }
        }
        other => unreachable!("{other:?} is no defect of a transaction"),
    }
}

/// Takes everything out of a history that is of a transaction.
pub(super) fn forget(history: &mut History) {
    let all: Vec<RecordId> = (history.writes.iter())
        .filter(|it| it.transaction.is_some())
        .map(|it| it.id)
        .collect();
    for partition in 0..history.partitions {
        edit_all(history, partition, |log| {
            log.retain(|it| !it.record.as_ref().is_ok_and(|id| all.contains(id)));
        });
    }
    history.writes.retain(|it| it.transaction.is_none());
    history.transactions.clear();
}

/// Whole transactions of an ending.
fn transactions(history: &History, ending: impl Fn(&Ending) -> bool) -> Vec<Transaction> {
    let whole = |it: &&Transaction| {
        let writes = history.writes.iter();
        let records = writes.filter(|write| write.transaction == Some(it.number));
        records.count() as u64 == super::TRANSACTION
    };
    let all = history.transactions.iter();
    let all = all.filter(|it| ending(&it.ending)).filter(whole);
    all.copied().collect()
}

/// Partition, offset and id of a record in such a transaction, that is there or is not.
fn record(
    history: &History,
    ending: impl Fn(&Ending) -> bool,
    there: bool,
    pick: usize,
) -> (u32, Seen) {
    let among = transactions(history, ending);
    let writes = history.writes.iter().filter_map(|write| {
        let Outcome::Acknowledged { offset } = write.outcome else {
            return None;
        };
        let number = write.transaction?;
        let offset = offset?;
        let record = Ok(write.id);
        let seen = Seen { offset, record };
        (among.iter().any(|it| it.number == number)
            && logs(history, write.partition).contains(&seen) == there)
            .then_some((write.partition, seen))
    });
    choose(writes.collect(), pick)
}

/// Takes a record away from all that ever saw it.
fn lose(history: &mut History, (partition, seen): (u32, Seen)) {
    edit_all(history, partition, |log| log.retain(|it| *it != seen));
}

/// Gives a record to all that read past its offset.
fn show(history: &mut History, (partition, seen): (u32, Seen)) {
    for read in (history.finals.iter_mut()).filter(|it| it.partition == partition) {
        let log = read.seen.as_mut().expect("readable");
        let place = log.partition_point(|it| it.offset < seen.offset);
        log.insert(place, seen.clone());
    }
    for live in (history.live.iter_mut()).filter(|it| it.partition == partition) {
        let place = live.seen.partition_point(|(_, it)| it.offset < seen.offset);
        if (1..live.seen.len()).contains(&place) {
            let at_us = live.seen[place].0;
            live.seen.insert(place, (at_us, seen.clone()));
        }
    }
}
