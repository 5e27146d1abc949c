//! What is measured of runs that were written by hand, in milliseconds for the eye.

use drave_durability::availability::{
    AFTERMATH_US, Availability, BUCKETS_MAX, ERRORS_MAX, FaultImpact, Gap, INTERRUPTION_US_MIN,
    Latency, OUTAGE_US_DEFAULT, Spread, measure,
};
use drave_durability::history::{Fault, History, Outcome, ProducerKind, Write};
use drave_durability::record::RecordId;
use proptest::prelude::*;

const MS: u64 = 1000;

/// A run of so many partitions that stops at `stopped_ms`.
fn run(partitions: u32, stopped_ms: u64) -> History {
    History {
        partitions,
        producers: vec![ProducerKind {
            producer: 0,
            acks: -1,
            idempotent: true,
        }],
        stopped_us: stopped_ms * MS,
        ..History::default()
    }
}

fn write(history: &mut History, partition: u32, sent_us: u64, answered_us: u64, outcome: Outcome) {
    let sequence = history.writes.len() as u64;
    history.writes.push(Write {
        id: RecordId {
            producer: 0,
            sequence,
        },
        partition,
        transaction: None,
        sent_us,
        answered_us,
        outcome,
    });
}

fn acknowledge(history: &mut History, partition: u32, sent_ms: u64, answered_ms: u64) {
    let outcome = Outcome::Acknowledged { offset: None };
    write(history, partition, sent_ms * MS, answered_ms * MS, outcome);
}

/// Acknowledges a record each 10 ms, each 2 ms after it was sent, but for the time of an outage:
/// the records that are sent in it are acknowledged at its end.
fn steady(history: &mut History, partition: u32, outages_ms: &[(u64, u64)]) {
    for sent_ms in (0..history.stopped_us / MS).step_by(10) {
        let answered_ms = sent_ms + 2;
        let outage = outages_ms
            .iter()
            .find(|(from, until)| answered_ms > *from && answered_ms < *until);
        let answered_ms = outage.map_or(answered_ms, |(_, until)| *until);
        acknowledge(history, partition, sent_ms, answered_ms);
    }
}

fn fault(history: &mut History, from_ms: u64, until_ms: u64) {
    history.faults.push(Fault {
        name: format!("kill at {from_ms} ms"),
        from_us: from_ms * MS,
        until_us: until_ms * MS,
    });
}

fn gap(from_ms: u64, until_ms: u64, recovered: bool) -> Gap {
    Gap {
        from_us: from_ms * MS,
        until_us: until_ms * MS,
        recovered,
    }
}

fn spread(count: u64, median_ms: u64, worst_ms: u64) -> Option<Spread> {
    Some(Spread {
        count,
        median_us: median_ms * MS,
        worst_us: worst_ms * MS,
    })
}

fn measured(history: &History) -> Availability {
    measure(history, OUTAGE_US_DEFAULT)
}

#[test]
fn the_longest_gap_is_between_the_first_send_and_the_stop() {
    let mut history = run(4, 1000);
    for (partition, sent, answered) in [(0, 100, 150), (0, 100, 500), (0, 500, 900)] {
        acknowledge(&mut history, partition, sent, answered);
    }
    // Partition 1 never answers again, partition 2 never answers, to partition 3 nothing is sent.
    acknowledge(&mut history, 1, 50, 60);
    let error = "timed out".to_owned();
    let given_up = Outcome::GivenUp { error };
    write(&mut history, 2, 20 * MS, 990 * MS, given_up.clone());
    // Two clients at once: the list of writes is not quite in the order of their times.
    write(&mut history, 2, 15 * MS, 991 * MS, given_up);
    let availability = measured(&history);
    let gaps: Vec<_> = (availability.partitions.iter())
        .map(|it| it.longest_gap)
        .collect();
    let expected = [
        Some(gap(500, 900, true)),
        Some(gap(60, 1000, false)),
        Some(gap(15, 1000, false)),
        None,
    ];
    assert_eq!(gaps, expected);
    let acknowledged = availability.partitions.iter().map(|it| it.acknowledged);
    assert_eq!(acknowledged.collect::<Vec<_>>(), [3, 1, 0, 0]);
    assert_eq!(availability.longest_gap(), Some((2, gap(15, 1000, false))));
}

#[test]
fn of_gaps_of_one_length_the_first_is_told() {
    let mut history = run(1, 300);
    for answered in [100, 200] {
        acknowledge(&mut history, 0, 0, answered);
    }
    let longest = measured(&history).partitions[0].longest_gap;
    assert_eq!(longest, Some(gap(0, 100, true)));
}

#[test]
fn an_acknowledgement_after_the_stop_ends_a_gap_but_begins_none() {
    let mut history = run(1, 1000);
    for (sent, answered) in [(0, 100), (900, 1500), (900, 9000)] {
        acknowledge(&mut history, 0, sent, answered);
    }
    let longest = measured(&history).partitions[0].longest_gap;
    assert_eq!(longest, Some(gap(100, 1500, true)));
}

#[test]
fn outages_are_the_gaps_above_the_threshold() {
    let mut history = run(1, 4000);
    for answered in [400, 900, 1401, 1500, 2500] {
        acknowledge(&mut history, 0, 0, answered);
    }
    let outages = |outage_us| measure(&history, outage_us).partitions[0].outages.clone();
    let default = [
        gap(900, 1401, true),
        gap(1500, 2500, true),
        gap(2500, 4000, false),
    ];
    assert_eq!(outages(OUTAGE_US_DEFAULT), default);
    assert_eq!(outages(1000 * MS), default[2..]);
}

#[test]
fn a_failover_is_timed_where_it_happened_and_not_where_nothing_happened() {
    let mut history = run(5, 10_000);
    steady(&mut history, 0, &[(3012, 4500)]);
    steady(&mut history, 1, &[]);
    steady(&mut history, 2, &[(3002, 4000)]);
    steady(&mut history, 3, &[(2992, 3800)]);
    fault(&mut history, 3000, 6000);
    let impacts = measured(&history).faults;
    let [impact] = &impacts[..] else {
        panic!("{impacts:?}");
    };
    let seen: Vec<_> = (impact.partitions.iter())
        .map(|it| (it.partition, it.interrupted, it.outage_us, it.recovery_us))
        .collect();
    let expected = [
        (0, true, 1488 * MS, 1500 * MS),
        (1, false, 10 * MS, 2 * MS),
        (2, true, 998 * MS, 1000 * MS),
        // It began before the fault, of which only the rest is the fault's.
        (3, true, 800 * MS, 800 * MS),
    ];
    assert_eq!(seen, expected);
    assert_eq!(impact.outage, spread(3, 998, 1488));
    assert_eq!(impact.recovery, spread(3, 1000, 1500));
}

#[test]
fn a_gap_that_begins_late_in_a_fault_is_a_short_outage_and_a_late_recovery() {
    let mut history = run(2, 20_000);
    // The node comes back at 9 s and calls elections.
    steady(&mut history, 0, &[(9302, 9800)]);
    steady(&mut history, 1, &[(9302, 9900)]);
    fault(&mut history, 4000, 9000);
    let impact = &measured(&history).faults[0];
    assert_eq!(impact.outage, spread(2, 498, 598));
    assert_eq!(impact.recovery, spread(2, 5800, 5900));
}

#[test]
fn what_comes_long_after_a_fault_is_not_its_doing() {
    let mut history = run(1, 20_000);
    let end_ms = 9000 + AFTERMATH_US / MS;
    steady(&mut history, 0, &[(end_ms + 12, end_ms + 700)]);
    fault(&mut history, 4000, 9000);
    let impact = &measured(&history).faults[0];
    assert_eq!(impact.outage, None);
    assert_eq!(impact.recovery, None);
    assert!(!impact.partitions[0].interrupted);
}

#[test]
fn a_partition_that_never_came_back_says_so() {
    let mut history = run(1, 8000);
    for sent in (0..3000).step_by(10) {
        acknowledge(&mut history, 0, sent, sent + 2);
    }
    fault(&mut history, 3000, 4000);
    let impact = &measured(&history).faults[0];
    assert_eq!(impact.partitions[0].gap, gap(2992, 8000, false));
    assert_eq!(impact.recovery, spread(1, 5000, 5000));
}

#[test]
fn the_pace_of_a_slow_load_is_no_interruption() {
    let mut history = run(1, 20_000);
    for sent in (0..20_000).step_by(500) {
        // Batches: what comes at once is no faster pace.
        (0..20).for_each(|_| acknowledge(&mut history, 0, sent, sent + 2));
    }
    fault(&mut history, 5000, 9000);
    let impact = &measured(&history).faults[0];
    assert!(impact.partitions[0].outage_us > INTERRUPTION_US_MIN);
    assert_eq!(impact.outage, None);
}

#[test]
fn a_fault_after_all_answers_has_no_impact() {
    let mut history = run(1, 1000);
    steady(&mut history, 0, &[]);
    fault(&mut history, 5000, 6000);
    let expected = FaultImpact {
        name: "kill at 5000 ms".to_owned(),
        from_us: 5000 * MS,
        until_us: 6000 * MS,
        partitions: Vec::new(),
        outage: None,
        recovery: None,
    };
    assert_eq!(measured(&history).faults, [expected]);
}

#[test]
fn latency_is_told_by_phase() {
    let mut history = run(1, 30_000);
    steady(&mut history, 0, &[(4002, 5000), (15_002, 18_000)]);
    // The first fault ends after its recovery, the second one before.
    fault(&mut history, 4000, 6000);
    fault(&mut history, 15_000, 16_000);
    let latency = measured(&history).latency;
    let quick = |count| {
        Some(Latency {
            count,
            p50_us: 2 * MS,
            p99_us: 2 * MS,
            p999_us: 2 * MS,
            max_us: 2 * MS,
        })
    };
    assert_eq!(latency.before, quick(400));
    assert_eq!(latency.between, quick(899));
    assert_eq!(latency.after, quick(1199));
    let during = latency.during.unwrap();
    assert_eq!(during.count, 3000 - 400 - 899 - 1199);
    assert_eq!(during.max_us, 2990 * MS);
    assert!(during.p50_us < during.p99_us);
}

#[test]
fn a_fault_within_another_ends_nothing() {
    let mut history = run(1, 10_000);
    steady(&mut history, 0, &[]);
    fault(&mut history, 4000, 8000);
    fault(&mut history, 5000, 6000);
    let latency = measured(&history).latency;
    let counts = [latency.before, latency.during, latency.after].map(|it| it.map(|it| it.count));
    assert_eq!(counts, [Some(400), Some(401), Some(199)]);
    assert_eq!(latency.between, None);
}

#[test]
fn without_faults_all_is_before_the_first() {
    let mut history = run(1, 1000);
    for waited in 1..=1000 {
        acknowledge(&mut history, 0, 0, waited);
    }
    let latency = measured(&history).latency;
    let expected = Latency {
        count: 1000,
        p50_us: 500 * MS,
        p99_us: 990 * MS,
        p999_us: 999 * MS,
        max_us: 1000 * MS,
    };
    assert_eq!(latency.before, Some(expected));
    assert_eq!((latency.during, latency.after), (None, None));
}

#[test]
fn errors_are_counted_and_only_so_many_are_listed() {
    let mut history = run(1, 1000);
    let mut give_up = |error: String| write(&mut history, 0, 0, 1, Outcome::GivenUp { error });
    (0..3).for_each(|_| give_up("timed out".to_owned()));
    (0..ERRORS_MAX + 9).for_each(|number| give_up(format!("error {number:03}")));
    let errors = measured(&history).errors;
    assert_eq!(errors.len(), ERRORS_MAX + 1);
    assert_eq!(
        (errors[0].error.as_str(), errors[0].count),
        ("timed out", 3)
    );
    assert_eq!(
        (errors[1].error.as_str(), errors[1].count),
        ("error 000", 1)
    );
    let rest = &errors[ERRORS_MAX];
    assert_eq!((rest.error.as_str(), rest.count), ("10 other errors", 10));
}

#[test]
fn what_was_sent_again_is_told_apart_from_what_was_given_up() {
    let mut history = run(1, 1000);
    let repeated = [("connection lost", 2), ("NOT_LEADER_OR_FOLLOWER", 30)];
    history.repeated = (repeated.iter())
        .map(|(error, count)| ((*error).to_owned(), *count))
        .collect();
    let measured = measured(&history);
    let listed = (measured.repeated.iter()).map(|it| (it.error.as_str(), it.count));
    assert_eq!(
        listed.collect::<Vec<_>>(),
        [("NOT_LEADER_OR_FOLLOWER", 30), ("connection lost", 2)]
    );
    assert_eq!(measured.errors, []);
}

#[test]
fn the_timeline_counts_each_acknowledgement_in_its_slice() {
    let mut history = run(1, 40_000);
    steady(&mut history, 0, &[(10_000, 12_000)]);
    let timeline = measured(&history).timeline;
    assert_eq!(timeline.bucket_us, 200 * MS);
    assert_eq!(timeline.buckets.len(), 201);
    let at = |ms: u64| timeline.buckets[(ms / 200) as usize];
    assert_eq!(at(0).acknowledged, 20);
    assert_eq!((at(0).p50_us, at(0).p99_us), (Some(2 * MS), Some(2 * MS)));
    assert_eq!((at(11_000).acknowledged, at(11_000).p99_us), (0, None));
    assert_eq!(at(11_000).from_us, 11_000 * MS);
    assert_eq!(at(12_000).acknowledged, 20 + 200);
    let total: u64 = timeline.buckets.iter().map(|it| it.acknowledged).sum();
    assert_eq!(total, 4000);
    // Whatever is drawn into it has its place.
    fault(&mut history, 30_000, 50_000);
    assert_eq!(measured(&history).timeline.buckets.len(), 251);
}

#[test]
fn nothing_is_measured_of_nothing() {
    let nothing = measured(&History::default());
    assert_eq!(nothing.longest_gap(), None);
    assert_eq!(nothing.timeline.buckets.len(), 1);
}

proptest! {
    #[test]
    fn whatever_happened_is_measured_without_contradiction(
        writes in prop::collection::vec((0..4_u32, 0..1_u64 << 40, 0..1_u64 << 30, any::<bool>()), 0..80),
        faults in prop::collection::vec((0..1_u64 << 40, 0..1_u64 << 30), 0..4),
        stopped_us in 0..1_u64 << 41,
        scale in 0..40_u32,
    ) {
        let mut history = run(4, 0);
        history.stopped_us = stopped_us >> scale;
        for (partition, sent_us, waited_us, acknowledged) in writes {
            let sent_us = sent_us >> scale;
            let outcome = match acknowledged {
                true => Outcome::Acknowledged { offset: None },
                false => Outcome::GivenUp { error: "timed out".to_owned() },
            };
            write(&mut history, partition, sent_us, sent_us + (waited_us >> (scale / 2)), outcome);
        }
        for (from_us, length_us) in faults {
            let from_us = from_us >> scale;
            let name = "fault".to_owned();
            history.faults.push(Fault { name, from_us, until_us: from_us + length_us });
        }
        let availability = measured(&history);
        let acknowledged: u64 = availability.partitions.iter().map(|it| it.acknowledged).sum();
        let latency = availability.latency;
        let phases = [latency.before, latency.during, latency.between, latency.after];
        let phased: u64 = phases.iter().flatten().map(|it| it.count).sum();
        prop_assert_eq!(phased, acknowledged);
        for it in phases.iter().flatten() {
            prop_assert!(it.p50_us <= it.p99_us && it.p99_us <= it.p999_us && it.p999_us <= it.max_us);
        }
        let buckets = &availability.timeline.buckets;
        prop_assert!(!buckets.is_empty() && buckets.len() as u64 <= BUCKETS_MAX);
        prop_assert_eq!(buckets.iter().map(|it| it.acknowledged).sum::<u64>(), acknowledged);
        for it in &availability.partitions {
            let longest = it.longest_gap.map_or(0, |gap| gap.length_us());
            prop_assert!(it.outages.iter().all(|gap| gap.length_us() <= longest));
            prop_assert_eq!(longest > OUTAGE_US_DEFAULT, !it.outages.is_empty());
        }
        for it in availability.faults.iter().flat_map(|it| &it.partitions) {
            prop_assert!(it.outage_us <= it.gap.length_us());
            prop_assert!(!it.interrupted || it.outage_us <= it.recovery_us);
        }
        let text = serde_json::to_string(&availability).expect("plain data");
        prop_assert_eq!(serde_json::from_str::<Availability>(&text).expect("its own text"), availability);
    }
}
