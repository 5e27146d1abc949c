//! What the judge says of small histories that were written by hand.

mod histories;

use drave_durability::history::{FinalRead, History, LiveRead, Outcome, ProducerKind, Seen, Write};
use drave_durability::judge::{Counts, Finding, Kind, SAMPLES_MAX, Verdict, judge};
use drave_durability::record::RecordId;
use histories::defects::Defect;
use histories::{Fate, Planned, Settled, clean};

const IDEMPOTENT: (i16, bool) = (-1, true);
const ALL: (i16, bool) = (-1, false);
const ONE: (i16, bool) = (1, false);

fn id(sequence: u64) -> RecordId {
    RecordId {
        producer: 0,
        sequence,
    }
}

fn log(records: &[(i64, u64)]) -> Vec<Seen> {
    let seen = records.iter().map(|(offset, sequence)| Seen {
        offset: *offset,
        record: Ok(id(*sequence)),
    });
    seen.collect()
}

/// One producer, one partition, one replica. `told` is the acknowledged offset of each record.
fn history(kind: (i16, bool), told: &[Option<i64>], found: &[(i64, u64)]) -> History {
    let writes = (0..).zip(told).map(|(sequence, offset)| Write {
        id: id(sequence),
        partition: 0,
        transaction: None,
        sent_us: sequence * 10,
        answered_us: sequence * 10 + 5,
        outcome: match offset {
            Some(_) => Outcome::Acknowledged { offset: *offset },
            None => Outcome::GivenUp {
                error: "timed out".to_owned(),
            },
        },
    });
    History {
        partitions: 1,
        producers: vec![ProducerKind {
            producer: 0,
            acks: kind.0,
            idempotent: kind.1,
        }],
        writes: writes.collect(),
        finals: vec![FinalRead {
            from: "broker 1".to_owned(),
            partition: 0,
            seen: Ok(log(found)),
        }],
        stopped_us: 1000,
        ..History::default()
    }
}

fn live(consumer: u32, seen: Vec<Seen>) -> LiveRead {
    LiveRead {
        consumer,
        partition: 0,
        seen: (50..).zip(seen).collect(),
    }
}

fn finding(kind: Kind, count: u64, sample: &str) -> Finding {
    Finding {
        kind,
        count,
        samples: vec![sample.to_owned()],
    }
}

#[track_caller]
fn assert_only(history: &History, kind: Kind, sample: &str) {
    let verdict = judge(history);
    assert_eq!(verdict.violations, [finding(kind, 1, sample)]);
    assert_eq!(verdict.tolerated, []);
}

#[track_caller]
fn assert_tolerated(history: &History, kind: Kind) {
    let verdict = judge(history);
    assert_eq!(verdict.violations, []);
    let tolerated: Vec<_> = (verdict.tolerated.iter())
        .map(|it| (it.kind, it.count))
        .collect();
    assert_eq!(tolerated, [(kind, 1)]);
}

const TOLD: [Option<i64>; 4] = [Some(0), Some(1), None, Some(3)];

#[test]
fn a_record_that_was_given_up_may_be_there_or_not() {
    for found in [
        &[(0, 0), (1, 1), (2, 2), (3, 3)][..],
        &[(0, 0), (1, 1), (3, 3)],
    ] {
        let mut history = history(IDEMPOTENT, &TOLD, found);
        history.live.push(live(1, log(&found[..2])));
        let verdict = judge(&history);
        let expected = Verdict {
            violations: Vec::new(),
            tolerated: Vec::new(),
            counts: Counts {
                sent: 4,
                acknowledged: 3,
                given_up: 1,
                read_back: found.len() as u64,
                seen_live: 2,
                ..Counts::default()
            },
        };
        assert_eq!(verdict, expected);
    }
}

#[test]
fn an_empty_history_is_clean() {
    assert_eq!(judge(&History::default()), Verdict::default());
}

#[test]
fn a_lost_record_is_found() {
    let history = history(IDEMPOTENT, &TOLD, &[(0, 0), (3, 3)]);
    assert_only(
        &history,
        Kind::AcknowledgedAndLost,
        "producer 0 sequence 1 was acknowledged in partition 0 at offset 1 at 15 µs and is not \
         there: broker 1 has nothing there",
    );
}

#[test]
fn a_lost_tail_is_found_although_another_record_took_its_offset() {
    let history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 2)]);
    assert_only(
        &history,
        Kind::AcknowledgedAndLost,
        "producer 0 sequence 3 was acknowledged in partition 0 at offset 3 at 35 µs and is not \
         there: broker 1 has producer 0 sequence 2 there",
    );
}

#[test]
fn a_record_that_was_acknowledged_without_an_offset_may_be_anywhere_but_not_nowhere() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (9, 3)]);
    history.writes[3].outcome = Outcome::Acknowledged { offset: None };
    assert_eq!(judge(&history).violations, []);
    history.finals[0].seen = Ok(log(&[(0, 0), (1, 1)]));
    assert_only(
        &history,
        Kind::AcknowledgedAndLost,
        "producer 0 sequence 3 was acknowledged in partition 0 at 35 µs and is not there",
    );
}

#[test]
fn a_record_at_another_offset_is_found() {
    let history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (4, 3)]);
    assert_only(
        &history,
        Kind::AcknowledgedAtAnotherOffset,
        "producer 0 sequence 3 was acknowledged in partition 0 at offset 3 and is at 4; broker 1 \
         has nothing there",
    );
}

#[test]
fn acks_1_promises_neither_presence_nor_place() {
    let lost = history(ONE, &TOLD, &[(0, 0), (1, 1)]);
    assert_tolerated(&lost, Kind::AcknowledgedAndLost);
    let moved = history(ONE, &TOLD, &[(0, 0), (1, 1), (4, 3)]);
    assert_tolerated(&moved, Kind::AcknowledgedAtAnotherOffset);
}

#[test]
fn a_duplicate_is_found_once_however_often_it_is_there() {
    let twice = [(0, 0), (1, 1), (3, 3), (4, 1), (7, 1)];
    assert_only(
        &history(IDEMPOTENT, &TOLD, &twice),
        Kind::Duplicated,
        "producer 0 sequence 1 is in partition 0 at offsets 1, 4, 7, as broker 1 has it",
    );
    assert_tolerated(&history(ALL, &TOLD, &twice), Kind::Duplicated);
}

#[test]
fn a_record_that_was_given_up_is_not_there_twice() {
    let history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (2, 2), (3, 3), (4, 2)]);
    assert_only(
        &history,
        Kind::Duplicated,
        "producer 0 sequence 2 is in partition 0 at offsets 2, 4, as broker 1 has it",
    );
}

#[test]
fn another_order_is_found() {
    let told = [Some(0), Some(2), None, Some(1)];
    let found = [(0, 0), (1, 3), (2, 1)];
    assert_only(
        &history(IDEMPOTENT, &told, &found),
        Kind::Reordered,
        "producer 0 sequence 1 is in partition 0 at offset 2, after sequence 3 at offset 1, as \
         broker 1 has it",
    );
    assert_tolerated(&history(ALL, &told, &found), Kind::Reordered);
}

#[test]
fn two_producers_may_be_interleaved_in_any_way() {
    let mut history = history(IDEMPOTENT, &[Some(1), Some(2)], &[(1, 0), (2, 1)]);
    history.producers.push(ProducerKind {
        producer: 8,
        acks: -1,
        idempotent: true,
    });
    // Its sequences begin between the other's and have a hole: some went elsewhere.
    for (sequence, offset) in [(1, 0), (3, 3), (4, 4)] {
        let id = RecordId {
            producer: 8,
            sequence,
        };
        history.writes.push(Write {
            id,
            outcome: Outcome::Acknowledged {
                offset: Some(offset),
            },
            ..history.writes[0].clone()
        });
        let log = history.finals[0].seen.as_mut().unwrap();
        let record = Ok(id);
        log.push(Seen { offset, record });
        log.sort_by_key(|it| it.offset);
    }
    assert_eq!(judge(&history).violations, []);
}

#[test]
fn corrupted_bytes_are_found_and_the_record_under_them_is_not_lost_as_well() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    history.finals[0].seen.as_mut().unwrap()[1].record = Err("a value of 3 bytes".to_owned());
    // Whoever was given it before the bytes went bad saw nothing wrong.
    history.live.push(live(1, log(&[(0, 0), (1, 1)])));
    assert_only(
        &history,
        Kind::Corrupted,
        "partition 0 offset 1: broker 1 was given a value of 3 bytes, where producer 0 sequence \
         1 was acknowledged",
    );
}

#[test]
fn bytes_that_only_a_consumer_saw_corrupted_excuse_no_loss() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (3, 3)]);
    let mut seen = log(&[(0, 0), (1, 1)]);
    seen[1].record = Err("a value of 3 bytes".to_owned());
    history.live.push(live(1, seen));
    let kinds: Vec<_> = (judge(&history).violations.iter())
        .map(|it| it.kind)
        .collect();
    assert_eq!(kinds, [Kind::AcknowledgedAndLost, Kind::Corrupted]);
}

#[test]
fn corrupted_bytes_are_told_in_their_order_and_blamed_on_no_record_that_is_there() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (2, 1), (3, 2), (4, 3)]);
    for place in [1, 3] {
        let seen = history.finals[0].seen.as_mut().unwrap();
        seen[place].record = Err("a value of 3 bytes".to_owned());
    }
    let verdict = judge(&history);
    let kinds: Vec<_> = verdict.violations.iter().map(|it| it.kind).collect();
    let moved = Kind::AcknowledgedAtAnotherOffset;
    assert_eq!(kinds, [moved, Kind::Corrupted]);
    assert_eq!(verdict.violations[0].count, 2);
    let sample = |offset| {
        format!(
            "partition 0 offset {offset}: broker 1 was given a value of 3 bytes, where no missing \
             record was acknowledged"
        )
    };
    assert_eq!(verdict.violations[1].samples, [sample(1), sample(3)]);
}

#[test]
fn a_dirty_read_is_found_once_however_many_consumers_saw_it() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    for consumer in [1, 2] {
        history
            .live
            .push(live(consumer, log(&[(0, 0), (1, 1), (2, 2), (3, 3)])));
    }
    assert_only(
        &history,
        Kind::DirtyRead,
        "partition 0 offset 2: consumer 1 was given producer 0 sequence 2 at 52 µs; in the end \
         broker 1 has nothing there",
    );
}

#[test]
fn a_consumer_that_goes_backwards_is_found() {
    let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    // Once back, it may pass over what it was given before.
    let seen = log(&[(0, 0), (1, 1), (3, 3), (0, 0), (3, 3)]);
    history.live.push(live(1, seen));
    assert_only(
        &history,
        Kind::OffsetsBackwards,
        "partition 0: consumer 1 was given offset 0 after 3",
    );
}

#[test]
fn a_hole_in_the_offsets_is_found_only_if_a_record_is_in_it() {
    let mut clean = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    clean.live.push(live(1, log(&[(0, 0), (1, 1), (3, 3)])));
    assert_eq!(judge(&clean).violations, []);
    clean.live.push(live(2, log(&[(0, 0), (3, 3)])));
    assert_only(
        &clean,
        Kind::RecordsSkipped,
        "partition 0 offset 1: consumer 2 went from 0 to 3; broker 1 has producer 0 sequence 1 \
         there",
    );
}

#[test]
fn a_replica_that_lacks_a_record_disagrees_and_the_record_is_not_lost() {
    for lacking in [0, 1] {
        let mut history = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
        history.finals.push(FinalRead {
            from: "broker 2".to_owned(),
            ..history.finals[0].clone()
        });
        (history.finals[lacking].seen.as_mut().unwrap()).remove(1);
        // Consumers may have been served by either.
        history.live.push(live(1, log(&[(0, 0), (3, 3)])));
        (history.live).push(live(2, log(&[(0, 0), (1, 1), (3, 3)])));
        let words = ["has nothing there", "has producer 0 sequence 1 there"];
        let sample = format!(
            "partition 0 offset 1: broker 1 {}, broker 2 {}",
            words[lacking],
            words[1 - lacking]
        );
        assert_only(&history, Kind::ReplicasDisagree, &sample);
    }
}

#[test]
fn a_partition_that_cannot_be_read_is_found_and_nothing_is_said_of_its_records() {
    let mut history = history(IDEMPOTENT, &TOLD, &[]);
    history.live.push(live(1, log(&[(0, 0), (1, 1)])));
    history.finals[0].seen = Err("no leader".to_owned());
    assert_only(
        &history,
        Kind::Unreadable,
        "partition 0 from broker 1: no leader",
    );
    history.finals.clear();
    assert_only(&history, Kind::Unreadable, "partition 0 has no final read");
}

#[test]
fn a_record_from_nowhere_is_found() {
    let found = [(0, 0), (1, 1), (3, 3), (4, 77)];
    assert_only(
        &history(IDEMPOTENT, &TOLD, &found),
        Kind::FromNowhere,
        "producer 0 sequence 77 is in partition 0 at offset 4 as broker 1 saw it, but was sent by \
         nobody",
    );
    let mut elsewhere = history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    elsewhere.partitions = 2;
    elsewhere.finals.push(FinalRead {
        from: "broker 2".to_owned(),
        partition: 1,
        seen: Ok(log(&[(0, 1)])),
    });
    assert_only(
        &elsewhere,
        Kind::FromNowhere,
        "producer 0 sequence 1 is in partition 1 at offset 0 as broker 2 saw it, but was sent to \
         partition 0",
    );
}

#[test]
fn a_history_that_contradicts_itself_is_never_clean() {
    let base = || history(IDEMPOTENT, &TOLD, &[(0, 0), (1, 1), (3, 3)]);
    let mut twice = base();
    twice.writes.push(twice.writes[1].clone());
    assert_only(
        &twice,
        Kind::BrokenHistory,
        "producer 0 sequence 1 was sent twice",
    );
    let mut unlisted = base();
    unlisted.producers.clear();
    assert_only(
        &unlisted,
        Kind::BrokenHistory,
        "producer 0 wrote, but is not listed",
    );
    let mut listed_twice = base();
    listed_twice.producers.push(listed_twice.producers[0]);
    assert_only(
        &listed_twice,
        Kind::BrokenHistory,
        "producer 0 is listed twice",
    );
    let mut unknown_partition = base();
    unknown_partition.writes[2].partition = 7;
    unknown_partition.live.push(LiveRead {
        partition: 8,
        ..live(1, Vec::new())
    });
    unknown_partition.finals.push(FinalRead {
        partition: 9,
        ..unknown_partition.finals[0].clone()
    });
    let verdict = judge(&unknown_partition);
    assert_eq!(verdict.violations.len(), 1);
    assert_eq!(verdict.violations[0].kind, Kind::BrokenHistory);
    assert_eq!(verdict.violations[0].count, 3);
}

#[test]
fn all_are_counted_and_few_are_shown() {
    let told: Vec<_> = (0..100).map(Some).collect();
    let verdict = judge(&history(IDEMPOTENT, &told, &[]));
    assert_eq!(verdict.violations.len(), 1);
    assert_eq!(verdict.violations[0].count, 100);
    assert_eq!(verdict.violations[0].samples.len(), SAMPLES_MAX);
}

#[test]
fn every_defect_is_found_in_a_history_of_many_parts() {
    let fates = [
        Fate::Acknowledged,
        Fate::GivenUpAndWritten,
        Fate::Acknowledged,
        Fate::GivenUp,
        Fate::AcknowledgedSomewhere,
    ];
    let planned: Vec<_> = (0..300)
        .map(|number| Planned {
            producer: number % 4,
            partition: number / 4 % 2,
            fate: fates[number as usize % 5],
            hole: i64::from(number % 7 == 0),
        })
        .collect();
    let consumers = [(0, 100), (5, 20)];
    let clean = clean(2, &[ALL, ONE], &planned, 3, &consumers, &Settled::ALL);
    assert!(judge(&clean).is_clean());
    let mut kinds = Vec::new();
    for defect in Defect::ALL {
        let mut history = clean.clone();
        defect.plant(&mut history, 41);
        let verdict = judge(&history);
        let found: Vec<_> = verdict.violations.iter().map(|it| it.kind).collect();
        assert_eq!(found, defect.kinds(), "{defect:?}");
        kinds.extend(found);
    }
    kinds.sort();
    kinds.dedup();
    // Those of operations have tests of their own.
    let mut expected = Kind::ALL.to_vec();
    expected.retain(|kind| {
        !matches!(
            kind,
            Kind::NotLinearizable | Kind::StaleMetadata | Kind::Undecided
        )
    });
    assert_eq!(kinds, expected, "a kind that no defect stands for");
}

#[test]
fn a_verdict_reads_the_same_from_json_and_its_kinds_have_plain_names() {
    let found = [(0, 0), (1, 1), (3, 3), (4, 1)];
    let verdict = judge(&history(ALL, &TOLD, &found));
    let text = serde_json::to_string(&verdict).unwrap();
    assert!(text.contains(r#""kind":"duplicated""#), "{text}");
    assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict);
    let name = serde_json::to_string(&Kind::AcknowledgedAtAnotherOffset).unwrap();
    assert_eq!(name, r#""acknowledged-at-another-offset""#);
    for kind in Kind::ALL {
        assert!(kind.description().ends_with('.') && !kind.label().is_empty());
    }
}
