//! The search for an order, against a slow and simple one, and its bounds.

use drave_durability::linearizable::{Call, Model, Outcome, check};
use proptest::prelude::*;

const STEPS_MAX: u64 = 1_000_000;

/// A register: what committed offsets are.
struct Register;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Wrote(u64),
    Read(Option<u64>),
}

impl Model for Register {
    type State = Option<u64>;
    type Step = Did;

    fn initial(&self) -> Option<u64> {
        None
    }

    fn apply(&self, state: &Option<u64>, step: &Did) -> Option<Option<u64>> {
        match step {
            Did::Wrote(value) => Some(Some(*value)),
            Did::Read(value) => (value == state).then_some(*state),
        }
    }
}

/// A name that is taken or free: what topics are.
struct Name;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Taken,
    Freed,
    Seen(bool),
}

impl Model for Name {
    type State = bool;
    type Step = Made;

    fn initial(&self) -> bool {
        false
    }

    fn apply(&self, taken: &bool, step: &Made) -> Option<bool> {
        match step {
            Made::Taken => (!taken).then_some(true),
            Made::Freed => taken.then_some(false),
            Made::Seen(seen) => (seen == taken).then_some(*taken),
        }
    }
}

/// Whether `next` may come before all of `rest`.
fn may_be_first<S>(calls: &[Call<S>], rest: &[usize], next: usize) -> bool {
    let called_us = calls[next].called_us;
    let ended_before = |it: &usize| calls[*it].answered_us.is_some_and(|at| at < called_us);
    !rest.iter().any(ended_before)
}

/// Tries every order.
fn exists<M: Model>(model: &M, calls: &[Call<M::Step>], state: &M::State, rest: &[usize]) -> bool {
    let all_answered = rest.iter().all(|it| calls[*it].answered_us.is_none());
    all_answered
        || rest.iter().any(|next| {
            let others: Vec<usize> = rest.iter().copied().filter(|it| it != next).collect();
            let state = model.apply(state, &calls[*next].step);
            may_be_first(calls, rest, *next)
                && state.is_some_and(|state| exists(model, calls, &state, &others))
        })
}

/// An order must hold what it says.
fn assert_explains<M: Model>(model: &M, calls: &[Call<M::Step>], order: &[usize]) {
    let mut rest: Vec<usize> = (0..calls.len()).collect();
    let mut state = model.initial();
    for next in order {
        assert!(may_be_first(calls, &rest, *next), "{next} in {order:?}");
        rest.retain(|it| it != next);
        let step = model.apply(&state, &calls[*next].step);
        state = step.unwrap_or_else(|| panic!("{next} in {order:?}"));
    }
    assert!(rest.iter().all(|it| calls[*it].answered_us.is_none()));
    assert_eq!(rest.len() + order.len(), calls.len());
}

fn assert_like_brute_force<M: Model<State: std::fmt::Debug>>(model: &M, calls: &[Call<M::Step>]) {
    let all: Vec<usize> = (0..calls.len()).collect();
    let expected = exists(model, calls, &model.initial(), &all);
    match check(model, calls, STEPS_MAX) {
        Outcome::Linearizable(order) => {
            assert!(expected);
            assert_explains(model, calls, &order);
        }
        Outcome::NotLinearizable(stuck) => {
            assert!(!expected);
            assert!(!stuck.order.contains(&stuck.blocked));
            let state = stuck.order.iter().fold(model.initial(), |state, it| {
                model.apply(&state, &calls[*it].step).expect("explained")
            });
            assert_eq!(state, stuck.state);
        }
        Outcome::Undecided => panic!("few operations take few steps"),
    }
}

/// Some operations with any answers: linearizable by chance.
fn any_calls<S: std::fmt::Debug + Clone>(
    step: impl Strategy<Value = S>,
    writes: impl Fn(&S) -> bool + Clone,
) -> impl Strategy<Value = Vec<Call<S>>> {
    let call = (0..20_u64, 0..8_u64, prop::bool::weighted(0.2), step).prop_map(
        move |(called_us, took_us, open, step)| Call {
            called_us,
            // A read without an answer is no operation at all.
            answered_us: (!open || !writes(&step)).then_some(called_us + took_us),
            step,
        },
    );
    prop::collection::vec(call, 0..8)
}

proptest! {
    #[test]
    fn a_register_is_judged_as_by_trying_every_order(
        calls in any_calls(
            prop_oneof![
                (0..4_u64).prop_map(Did::Wrote),
                prop::option::of(0..4_u64).prop_map(Did::Read),
            ],
            |step| matches!(step, Did::Wrote(_)),
        )
    ) {
        assert_like_brute_force(&Register, &calls);
    }

    #[test]
    fn a_name_is_judged_as_by_trying_every_order(
        calls in any_calls(
            prop_oneof![
                Just(Made::Taken),
                Just(Made::Freed),
                any::<bool>().prop_map(Made::Seen),
            ],
            |step| !matches!(step, Made::Seen(_)),
        )
    ) {
        assert_like_brute_force(&Name, &calls);
    }
}

fn write(value: u64, called_us: u64, answered_us: Option<u64>) -> Call<Did> {
    Call {
        called_us,
        answered_us,
        step: Did::Wrote(value),
    }
}

fn read(value: Option<u64>, called_us: u64, answered_us: u64) -> Call<Did> {
    Call {
        called_us,
        answered_us: Some(answered_us),
        step: Did::Read(value),
    }
}

#[test]
fn a_long_history_takes_a_few_steps_for_each_operation() {
    let count = 100_000_u64;
    let calls: Vec<_> = (0..count)
        .flat_map(|n| {
            // Each write overlaps with the reads before and after it.
            let at = n * 10;
            let earlier = n.checked_sub(1);
            [write(n, at, Some(at + 8)), read(earlier, at + 1, at + 11)]
        })
        .collect();
    let outcome = check(&Register, &calls, 20 * count);
    assert!(matches!(outcome, Outcome::Linearizable(order) if order.len() == calls.len()));
}

#[test]
fn a_search_without_end_is_given_up() {
    let mut calls: Vec<_> = (0..40).map(|n| write(n, 0, Some(100))).collect();
    calls.push(read(Some(99), 200, 201));
    assert_eq!(check(&Register, &calls, 10_000), Outcome::Undecided);
}

#[test]
fn many_lost_answers_that_ask_for_the_same_do_not_multiply() {
    let lost = |step, called_us| Call {
        called_us,
        answered_us: None,
        step,
    };
    let mut calls: Vec<_> = (0..200)
        .flat_map(|n| [lost(Made::Taken, n), lost(Made::Freed, n)])
        .collect();
    for at in 0..100 {
        calls.push(Call {
            called_us: 1_000 + at,
            answered_us: Some(1_000 + at),
            step: Made::Seen(at % 2 == 0),
        });
    }
    let outcome = check(&Name, &calls, STEPS_MAX);
    assert!(matches!(outcome, Outcome::Linearizable(_)), "{outcome:?}");
    // Twice taken, and nobody can have freed it.
    calls.retain(|call| call.step != Made::Freed);
    let outcome = check(&Name, &calls, STEPS_MAX);
    assert!(
        matches!(outcome, Outcome::NotLinearizable(_)),
        "{outcome:?}"
    );
}

#[test]
fn what_overlaps_by_a_microsecond_overlaps() {
    let calls = [write(1, 0, Some(5)), read(None, 5, 6)];
    assert_eq!(
        check(&Register, &calls, 100),
        Outcome::Linearizable(vec![1, 0])
    );
    let calls = [write(1, 0, Some(5)), read(None, 6, 7)];
    assert!(matches!(
        check(&Register, &calls, 100),
        Outcome::NotLinearizable(stuck) if stuck.blocked == 1 && stuck.order == [0]
    ));
}

#[test]
fn nothing_is_explained_by_nothing() {
    assert_eq!(check(&Register, &[], 0), Outcome::Linearizable(Vec::new()));
    let lost = [write(1, 0, None)];
    assert_eq!(
        check(&Register, &lost, 0),
        Outcome::Linearizable(Vec::new())
    );
}
