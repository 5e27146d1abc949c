//! Answers of objects that are really asked one thing after the other are never called wrong; one
//! contradiction among them always is.

use drave_durability::history::History;
use drave_durability::judge::{Kind, judge};
use drave_durability::operation::{Answer, Asked, Object, Operation};
use proptest::prelude::*;

const CLIENTS: usize = 5;

/// What a client does: how long after its last call it calls, after that it takes effect, after
/// that is answered; which of several calls it is; whether its answer is lost.
#[derive(Clone, Copy, Debug)]
struct Plan {
    pause_us: u64,
    effect_us: u64,
    answer_us: u64,
    which: u32,
    lost: bool,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let plan = (0..60_u64, 1..40_u64, 1..40_u64, 0..3_u32, 0..10_u32).prop_map(
        |(pause_us, effect_us, answer_us, which, lost)| Plan {
            pause_us,
            effect_us,
            answer_us,
            which,
            lost: lost == 0,
        },
    );
    prop::collection::vec(plan, 1..150)
}

/// Clients ask an object. What has no answer takes effect late, at any time, or never.
fn history(
    plans: &[Plan],
    object: &Object,
    asked: impl Fn(usize, u32) -> Asked,
    mut does: impl FnMut(Asked) -> Answer,
) -> History {
    let mut free_us = [0_u64; CLIENTS];
    let mut effects = Vec::new();
    let mut operations = Vec::new();
    for (number, plan) in plans.iter().enumerate() {
        let free_us = &mut free_us[number % CLIENTS];
        let called_us = *free_us + plan.pause_us;
        let mut effect_us = called_us + plan.effect_us;
        *free_us = effect_us + plan.answer_us;
        if plan.lost {
            effect_us += 17 * plan.answer_us;
        }
        if !plan.lost || !plan.answer_us.is_multiple_of(3) {
            effects.push((effect_us, number));
        }
        operations.push(Operation {
            client: (number % CLIENTS) as u32,
            object: object.clone(),
            asked: asked(number, plan.which),
            called_us,
            answered_us: *free_us,
            answer: Answer::Unknown("lost".to_owned()),
        });
    }
    effects.sort_unstable();
    for (_, number) in effects {
        let operation = &mut operations[number];
        let answer = does(operation.asked);
        if !plans[number].lost {
            operation.answer = answer;
        }
    }
    History {
        operations,
        ..History::default()
    }
}

fn offset_history(plans: &[Plan]) -> History {
    let object = Object::CommittedOffset {
        group: "g".to_owned(),
        partition: 0,
    };
    let mut committed = None;
    let asked = |number, which| match which {
        0 => Asked::CommitOffset(number as i64),
        _ => Asked::FetchOffset,
    };
    history(plans, &object, asked, move |asked| match asked {
        Asked::CommitOffset(offset) => {
            committed = Some(offset);
            Answer::Done
        }
        _ => Answer::Offset(committed),
    })
}

fn topic_history(plans: &[Plan]) -> History {
    let mut exists = false;
    let asked = |_, which| match which {
        0 => Asked::CreateTopic,
        1 => Asked::DeleteTopic,
        _ => Asked::TopicExists { broker: 1 },
    };
    history(plans, &Object::Topic("t".to_owned()), asked, move |asked| {
        let before = exists;
        match asked {
            Asked::CreateTopic => exists = true,
            Asked::DeleteTopic => exists = false,
            _ => return Answer::Exists(exists),
        }
        match asked {
            _ if before != exists => Answer::Done,
            Asked::CreateTopic => Answer::AlreadyExists,
            _ => Answer::UnknownTopic,
        }
    })
}

/// Offsets that can't have been committed while `fetch` was under way: one whose commit came
/// later, one that another commit had certainly replaced, and one of nobody.
fn impossible(operations: &[Operation], fetch: &Operation) -> Vec<i64> {
    let before = |earlier: &Operation, later: &Operation| {
        earlier.answer == Answer::Done && earlier.answered_us < later.called_us
    };
    let mut offsets = vec![i64::MAX];
    for commit in operations {
        let Asked::CommitOffset(offset) = commit.asked else {
            continue;
        };
        let mut others = operations.iter();
        let replaced = others.any(|other| before(commit, other) && before(other, fetch));
        if replaced || commit.called_us > fetch.answered_us {
            offsets.push(offset);
        }
    }
    offsets
}

fn assert_clean(history: &History) -> Result<(), TestCaseError> {
    let verdict = judge(history);
    prop_assert!(verdict.is_clean(), "{:?}", verdict.violations);
    prop_assert!(verdict.tolerated.is_empty(), "{:?}", verdict.tolerated);
    let count = history.operations.len() as u64;
    prop_assert_eq!(verdict.counts.operations, count);
    Ok(())
}

fn assert_not_linearizable(history: &History) -> Result<(), TestCaseError> {
    let found = judge(history).violations;
    let kinds: Vec<_> = found.iter().map(|it| (it.kind, it.count)).collect();
    prop_assert_eq!(kinds, [(Kind::NotLinearizable, 1)], "{:?}", found);
    Ok(())
}

proptest! {
    #[test]
    fn an_impossible_offset_is_found_and_nothing_besides(
        plans in plans(),
        pick in any::<prop::sample::Index>(),
        wrong in any::<prop::sample::Index>(),
    ) {
        let mut history = offset_history(&plans);
        assert_clean(&history)?;
        let told = |it: &usize| matches!(history.operations[*it].answer, Answer::Offset(_));
        let fetches: Vec<usize> = (0..history.operations.len()).filter(told).collect();
        if !fetches.is_empty() {
            let fetch = *pick.get(&fetches);
            let offsets = impossible(&history.operations, &history.operations[fetch]);
            history.operations[fetch].answer = Answer::Offset(Some(*wrong.get(&offsets)));
            assert_not_linearizable(&history)?;
        }
    }

    #[test]
    fn a_topic_that_is_created_too_often_is_found_and_nothing_besides(plans in plans()) {
        let mut history = topic_history(&plans);
        assert_clean(&history)?;
        // Each delete whose answer was lost makes way for one more.
        let lost = history.operations.iter().filter(|it| {
            it.asked == Asked::DeleteTopic && matches!(it.answer, Answer::Unknown(_))
        });
        let creates = lost.count() as u64 + 2;
        let end_us = history.operations.iter().map(|it| it.answered_us).max();
        for number in 1..=creates {
            let at_us = end_us.unwrap_or(0) + number;
            history.operations.push(Operation {
                client: 0,
                object: Object::Topic("t".to_owned()),
                asked: Asked::CreateTopic,
                called_us: at_us,
                answered_us: at_us,
                answer: Answer::Done,
            });
        }
        // They overlap by nothing: the clock is a microsecond further each time.
        assert_not_linearizable(&history)?;
    }
}
