//! What the judge says of small histories of transactions that were written by hand.

use drave_durability::history::{
    Ending, FinalRead, History, LiveRead, Outcome, ProducerKind, Seen, Transaction, Write,
};
use drave_durability::judge::{Kind, judge};
use drave_durability::record::RecordId;

const COMMITTED: Ending = Ending::Committed { asked_us: 40 };
const UNKNOWN: Ending = Ending::Unknown { asked_us: 40 };

fn id(sequence: u64) -> RecordId {
    RecordId {
        producer: 0,
        sequence,
    }
}

/// Where a record is, if it is there: even sequences in partition 0, odd ones in partition 1.
fn seen(sequence: u64) -> Seen {
    Seen {
        offset: (sequence / 2) as i64,
        record: Ok(id(sequence)),
    }
}

/// One producer, two partitions, one replica; all four records are in one transaction and
/// acknowledged. `found` are those that are there in the end.
fn history(ending: Ending, found: &[u64]) -> History {
    let writes = (0..4).map(|sequence| Write {
        id: id(sequence),
        partition: (sequence % 2) as u32,
        transaction: Some(7),
        sent_us: sequence * 10,
        answered_us: sequence * 10 + 5,
        outcome: Outcome::Acknowledged {
            offset: Some(seen(sequence).offset),
        },
    });
    let finals = (0..2).map(|partition| {
        let here = found.iter().filter(|it| *it % 2 == u64::from(partition));
        FinalRead {
            from: "broker 1".to_owned(),
            partition,
            seen: Ok(here.map(|it| seen(*it)).collect()),
        }
    });
    History {
        partitions: 2,
        producers: vec![ProducerKind {
            producer: 0,
            acks: -1,
            idempotent: true,
        }],
        writes: writes.collect(),
        transactions: vec![Transaction {
            number: 7,
            producer: 0,
            ending,
        }],
        finals: finals.collect(),
        stopped_us: 1000,
        ..History::default()
    }
}

/// Consumer 1 was given a record at that time.
fn give(history: &mut History, sequence: u64, at_us: u64) {
    history.live.push(LiveRead {
        consumer: 1,
        partition: (sequence % 2) as u32,
        seen: vec![(at_us, seen(sequence))],
    });
}

#[track_caller]
fn assert_found(history: &History, expected: &[(Kind, u64)]) {
    let verdict = judge(history);
    let found: Vec<_> = (verdict.violations.iter())
        .map(|it| (it.kind, it.count))
        .collect();
    assert_eq!(found, expected, "{:?}", verdict.violations);
    assert_eq!(verdict.tolerated, []);
}

#[track_caller]
fn assert_only(history: &History, kind: Kind, sample: &str) {
    assert_found(history, &[(kind, 1)]);
    assert_eq!(judge(history).violations[0].samples, [sample]);
}

#[test]
fn a_committed_transaction_is_there_an_aborted_one_is_not_and_an_unknown_one_is_either() {
    let (all, none) = (&[0, 1, 2, 3][..], &[][..]);
    for (ending, found) in [
        (COMMITTED, all),
        (Ending::Aborted, none),
        (UNKNOWN, all),
        (UNKNOWN, none),
    ] {
        assert_found(&history(ending, found), &[]);
    }
    let counts = judge(&history(Ending::Aborted, none)).counts;
    assert_eq!((counts.acknowledged, counts.transactions_aborted), (4, 1));
    let counts = judge(&history(UNKNOWN, none)).counts;
    assert_eq!((counts.read_back, counts.transactions_unknown), (0, 1));
    let counts = judge(&history(COMMITTED, all)).counts;
    assert_eq!((counts.read_back, counts.transactions_committed), (4, 1));
}

#[test]
fn half_a_transaction_is_found_whose_commit_was_never_answered() {
    assert_only(
        &history(UNKNOWN, &[0, 2]),
        Kind::HalfTransaction,
        "transaction 7, whose commit was never answered: records that are there: 2, the first is \
         producer 0 sequence 0 in partition 0; that are not: 2, the first is producer 0 sequence \
         1 in partition 1",
    );
}

#[test]
fn a_committed_transaction_that_is_gone_is_lost_and_one_that_is_torn_is_half_as_well() {
    let lost = Kind::AcknowledgedAndLost;
    assert_found(&history(COMMITTED, &[]), &[(lost, 4)]);
    let torn = history(COMMITTED, &[0, 1, 3]);
    assert_found(&torn, &[(lost, 1), (Kind::HalfTransaction, 1)]);
}

#[test]
fn a_record_of_an_aborted_transaction_is_never_to_be_read() {
    assert_only(
        &history(Ending::Aborted, &[2]),
        Kind::UncommittedRead,
        "partition 0: broker 1 was given producer 0 sequence 2 in the end, of transaction 7, \
         which was never committed",
    );
    // That it is gone in the end is as it should be: it was not to be read in the first place.
    let mut live = history(Ending::Aborted, &[]);
    give(&mut live, 1, 500);
    give(&mut live, 1, 600);
    assert_only(
        &live,
        Kind::UncommittedRead,
        "partition 1: consumer 1 was given producer 0 sequence 1 at 500 µs, of transaction 7, \
         which was never committed",
    );
    // Nor is it half a transaction, although some of it is there.
    assert_found(
        &history(Ending::Aborted, &[0, 1, 2]),
        &[(Kind::UncommittedRead, 3)],
    );
}

#[test]
fn a_record_that_is_read_before_its_commit_is_asked_for_is_found() {
    for ending in [COMMITTED, UNKNOWN] {
        let mut history = history(ending, &[0, 1, 2, 3]);
        give(&mut history, 3, 40);
        assert_found(&history, &[]);
        give(&mut history, 2, 39);
        assert_only(
            &history,
            Kind::UncommittedRead,
            "partition 0: consumer 1 was given producer 0 sequence 2 at 39 µs, of transaction 7, \
             whose commit was first asked for at 40 µs",
        );
    }
}

#[test]
fn what_a_consumer_was_given_of_an_unknown_transaction_stays() {
    let mut kept = history(UNKNOWN, &[0, 1, 2, 3]);
    give(&mut kept, 2, 50);
    assert_found(&kept, &[]);
    let mut gone = history(UNKNOWN, &[]);
    give(&mut gone, 2, 50);
    assert_found(&gone, &[(Kind::DirtyRead, 1)]);
}

#[test]
fn an_offset_that_an_aborted_record_has_is_not_skipped() {
    let mut history = history(Ending::Aborted, &[]);
    // Offsets 0 and 1 of partition 0 are the transaction's, and 2 is its marker.
    for (sequence, offset) in [(4, 3), (5, 4)] {
        history.writes.push(Write {
            id: id(sequence),
            partition: 0,
            transaction: None,
            sent_us: 100,
            answered_us: 200,
            outcome: Outcome::Acknowledged {
                offset: Some(offset),
            },
        });
        let log = history.finals[0].seen.as_mut().unwrap();
        let record = Ok(id(sequence));
        log.push(Seen { offset, record });
    }
    let log = history.finals[0].seen.clone().unwrap();
    history.live.push(LiveRead {
        consumer: 1,
        partition: 0,
        seen: (300..).zip(log).collect(),
    });
    assert_found(&history, &[]);
}

#[test]
fn what_nobody_can_read_tears_no_transaction() {
    let mut unreadable = history(UNKNOWN, &[0, 2]);
    unreadable.finals[1].seen = Err("no leader".to_owned());
    assert_found(&unreadable, &[(Kind::Unreadable, 1)]);
    let mut corrupted = history(UNKNOWN, &[0, 1, 2, 3]);
    corrupted.finals[1].seen.as_mut().unwrap()[1].record = Err("a value of 3 bytes".to_owned());
    assert_found(&corrupted, &[(Kind::Corrupted, 1)]);
}

#[test]
fn transactions_that_contradict_the_records_are_a_broken_history() {
    let all = [0, 1, 2, 3];
    let mut unlisted = history(COMMITTED, &all);
    unlisted.transactions[0].number = 8;
    assert_found(&unlisted, &[(Kind::BrokenHistory, 4)]);
    let mut twice = history(COMMITTED, &all);
    twice.transactions.push(twice.transactions[0]);
    assert_only(&twice, Kind::BrokenHistory, "transaction 7 is listed twice");
    let mut foreign = history(COMMITTED, &all);
    foreign.transactions[0].producer = 1;
    assert_found(&foreign, &[(Kind::BrokenHistory, 4)]);
    let mut without = history(UNKNOWN, &all);
    without.writes[3].outcome = Outcome::GivenUp {
        error: "timed out".to_owned(),
    };
    assert_only(
        &without,
        Kind::BrokenHistory,
        "producer 0 sequence 3 is in transaction 7, which was to be committed without it",
    );
}
