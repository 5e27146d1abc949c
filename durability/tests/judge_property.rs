//! Any clean history is clean; whatever is planted in it is found, and nothing besides.

mod histories;

use drave_durability::history::{Ending, History, Outcome};
use drave_durability::judge::{Verdict, judge};
use histories::defects::Defect;
use histories::{Fate, Planned, Settled, TRANSACTION, clean};
use proptest::prelude::*;

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Acknowledged),
        1 => Just(Fate::AcknowledgedSomewhere),
        1 => Just(Fate::GivenUpAndWritten),
        1 => Just(Fate::GivenUp),
    ]
}

/// What every history has, so that every defect finds its place. The records of a
/// transaction each of all kinds are `transactional`'s.
fn planned_always(transactional: u32) -> Vec<Planned> {
    let fates = [
        Fate::Acknowledged,
        Fate::Acknowledged,
        Fate::Acknowledged,
        Fate::GivenUpAndWritten,
        Fate::GivenUp,
    ];
    let planned = fates.map(|fate| Planned {
        producer: 0,
        partition: 0,
        fate,
        hole: 0,
    });
    let records = 0..TRANSACTION * Settled::ALL.len() as u64;
    let of_transactions = records.map(|number| Planned {
        producer: transactional,
        partition: (number % 2) as u32,
        fate: Fate::Acknowledged,
        hole: 0,
    });
    planned.into_iter().chain(of_transactions).collect()
}

fn histories() -> impl Strategy<Value = History> {
    let kinds = prop_oneof![Just((-1, true)), Just((-1, false)), Just((1, false))];
    let shape = (2..4_u32, prop::collection::vec(kinds, 0..3));
    shape.prop_flat_map(|(partitions, others)| {
        let transactional = 1 + others.len() as u32;
        let planned = (0..=transactional, 0..partitions, fates(), 0..3_i64).prop_map(
            |(producer, partition, fate, hole)| Planned {
                producer,
                partition,
                fate,
                hole,
            },
        );
        let planned = prop::collection::vec(planned, 0..60)
            .prop_map(move |more| [planned_always(transactional), more].concat())
            .prop_shuffle();
        let consumers = prop::collection::vec((0..10_usize, 0..60_usize), 0..3);
        let more = prop::collection::vec(prop::sample::select(Settled::ALL.to_vec()), 0..9)
            .prop_map(|more| [&Settled::ALL, more.as_slice()].concat());
        (planned, 1..4_usize, consumers, more).prop_map(
            move |(planned, replicas, consumers, transactions)| {
                clean(
                    partitions,
                    &others,
                    &planned,
                    replicas,
                    &consumers,
                    &transactions,
                )
            },
        )
    })
}

fn committed(history: &History, number: u32) -> bool {
    let mut transactions = history.transactions.iter();
    let found = transactions.find(|it| it.number == number);
    found.is_some_and(|it| matches!(it.ending, Ending::Committed { .. }))
}

fn assert_clean(verdict: &Verdict) -> Result<(), TestCaseError> {
    prop_assert!(verdict.is_clean(), "{:?}", verdict.violations);
    prop_assert!(verdict.tolerated.is_empty(), "{:?}", verdict.tolerated);
    Ok(())
}

proptest! {
    #[test]
    fn a_clean_history_is_clean_and_counted(history in histories()) {
        let verdict = judge(&history);
        assert_clean(&verdict)?;
        let acknowledged = (history.writes.iter())
            .filter(|it| matches!(it.outcome, Outcome::Acknowledged { .. }))
            .count() as u64;
        let counts = verdict.counts;
        prop_assert_eq!(counts.sent, history.writes.len() as u64);
        prop_assert_eq!(counts.acknowledged, acknowledged);
        prop_assert_eq!(counts.acknowledged + counts.given_up, counts.sent);
        let hidden = (history.writes.iter())
            .filter(|it| it.transaction.is_some_and(|it| !committed(&history, it)))
            .count() as u64;
        prop_assert!(counts.acknowledged <= counts.read_back + hidden);
        prop_assert!(counts.read_back <= counts.sent);
        prop_assert_eq!(counts.transactions(), history.transactions.len() as u64);
        prop_assert!(counts.seen_live <= counts.read_back);
    }

    #[test]
    fn a_planted_defect_is_found_and_nothing_besides(
        history in histories(),
        defect in prop::sample::select(Defect::ALL.to_vec()),
        pick in 0..10_000_usize,
    ) {
        let mut history = history;
        defect.plant(&mut history, pick);
        let verdict = judge(&history);
        let kinds: Vec<_> = verdict.violations.iter().map(|it| (it.kind, it.count)).collect();
        let planted: Vec<_> = defect.kinds().into_iter().map(|kind| (kind, 1)).collect();
        prop_assert_eq!(kinds, planted, "{:?}", verdict.violations);
        prop_assert!(verdict.tolerated.is_empty(), "{:?}", verdict.tolerated);
    }
}
