//! The objects that operations are about, as they behave when they are asked one thing after the other.

use std::collections::{HashMap, HashSet};

use crate::linearizable::{Call, Model};
use crate::operation::{Answer, Asked, Operation};

/// A topic's name: whether there is such a topic.
pub(super) struct TopicName;

/// What was done to a topic's name, or found out about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TopicStep {
    Created,
    Deleted,
    Seen { exists: bool },
}

impl Model for TopicName {
    type State = bool;
    type Step = TopicStep;

    fn initial(&self) -> bool {
        false
    }

    fn apply(&self, exists: &bool, step: &TopicStep) -> Option<bool> {
        match step {
            TopicStep::Created => (!exists).then_some(true),
            TopicStep::Deleted => exists.then_some(false),
            TopicStep::Seen { exists: seen } => (exists == seen).then_some(*exists),
        }
    }
}

/// What a group has committed for a partition.
pub(super) struct CommittedOffset;

/// What was done to a committed offset, or found out about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OffsetStep {
    Committed(i64),
    Fetched(Option<i64>),
}

impl Model for CommittedOffset {
    type State = Option<i64>;
    type Step = OffsetStep;

    fn initial(&self) -> Option<i64> {
        None
    }

    fn apply(&self, committed: &Option<i64>, step: &OffsetStep) -> Option<Option<i64>> {
        match step {
            OffsetStep::Committed(offset) => Some(Some(*offset)),
            OffsetStep::Fetched(offset) => (offset == committed).then_some(*offset),
        }
    }
}

/// The same object, judged with foresight: each offset is committed once only,
/// and so none is replaced before the last fetch of it. That keeps the search
/// from trying in vain where many commits overlap.
pub(super) struct ForeseenOffset {
    fetches: HashMap<Option<i64>, u32>,
}

impl ForeseenOffset {
    /// Knows what will be fetched.
    pub(super) fn new<'a>(steps: impl Iterator<Item = &'a OffsetStep>) -> ForeseenOffset {
        let mut fetches = HashMap::new();
        for step in steps {
            if let OffsetStep::Fetched(offset) = step {
                *fetches.entry(*offset).or_default() += 1;
            }
        }
        ForeseenOffset { fetches }
    }

    fn fetches(&self, offset: Option<i64>) -> u32 {
        self.fetches.get(&offset).copied().unwrap_or(0)
    }
}

impl Model for ForeseenOffset {
    /// The offset, and how many fetches of it are still to come.
    type State = (Option<i64>, u32);
    type Step = OffsetStep;

    fn initial(&self) -> Self::State {
        (None, self.fetches(None))
    }

    fn apply(&self, (committed, left): &Self::State, step: &OffsetStep) -> Option<Self::State> {
        let after = CommittedOffset.apply(committed, step)?;
        match step {
            OffsetStep::Committed(_) => (*left == 0).then(|| (after, self.fetches(after))),
            OffsetStep::Fetched(_) => Some((after, left.checked_sub(1)?)),
        }
    }
}

/// What an operation on a topic's name did; `None`: it says nothing.
pub(super) fn topic_call(operation: &Operation) -> Result<Option<Call<TopicStep>>, String> {
    let seen = |exists| Some(TopicStep::Seen { exists });
    let step = match (&operation.asked, &operation.answer) {
        (Asked::CreateTopic, Answer::Done | Answer::Unknown(_)) => Some(TopicStep::Created),
        (Asked::CreateTopic, Answer::AlreadyExists) => seen(true),
        (Asked::DeleteTopic, Answer::Done | Answer::Unknown(_)) => Some(TopicStep::Deleted),
        (Asked::DeleteTopic, Answer::UnknownTopic) => seen(false),
        (Asked::TopicExists { .. }, Answer::Exists(exists)) => seen(*exists),
        (Asked::TopicExists { .. }, Answer::Unknown(_) | Answer::Refused(_))
        | (Asked::CreateTopic | Asked::DeleteTopic, Answer::Refused(_)) => None,
        _ => return Err(mismatch(operation)),
    };
    Ok(step.map(|step| call(operation, step)))
}

/// What an operation on a committed offset did; `None`: it says nothing.
pub(super) fn offset_call(operation: &Operation) -> Result<Option<Call<OffsetStep>>, String> {
    let step = match (&operation.asked, &operation.answer) {
        (Asked::CommitOffset(offset), Answer::Done | Answer::Unknown(_)) => {
            Some(OffsetStep::Committed(*offset))
        }
        (Asked::FetchOffset, Answer::Offset(offset)) => Some(OffsetStep::Fetched(*offset)),
        (Asked::FetchOffset, Answer::Unknown(_) | Answer::Refused(_))
        | (Asked::CommitOffset(_), Answer::Refused(_)) => None,
        _ => return Err(mismatch(operation)),
    };
    Ok(step.map(|step| call(operation, step)))
}

fn call<S>(operation: &Operation, step: S) -> Call<S> {
    let known = !matches!(operation.answer, Answer::Unknown(_));
    Call {
        called_us: operation.called_us,
        answered_us: known.then_some(operation.answered_us),
        step,
    }
}

fn mismatch(operation: &Operation) -> String {
    let Operation { asked, answer, .. } = operation;
    format!("{asked:?} was answered {answer:?}")
}

/// Settles commits without an answer, each of an offset that is committed once
/// only. One that was fetched took effect before that answer came. One that
/// nobody fetched explains nothing, and is left out.
pub(super) fn settle_commits<T>(calls: &mut Vec<(T, Call<OffsetStep>)>) {
    let mut fetched: HashMap<i64, u64> = HashMap::new();
    for (_, call) in calls.iter() {
        if let (OffsetStep::Fetched(Some(offset)), Some(answered_us)) =
            (call.step, call.answered_us)
        {
            let first = fetched.entry(offset).or_insert(answered_us);
            *first = (*first).min(answered_us);
        }
    }
    calls.retain_mut(|(_, call)| {
        let (OffsetStep::Committed(offset), None) = (call.step, call.answered_us) else {
            return true;
        };
        let first = fetched.get(&offset);
        // One that was fetched before it was sent stays as it is, and explains nothing.
        call.answered_us = first.copied().filter(|first| *first >= call.called_us);
        first.is_some()
    });
}

/// An offset that is committed twice, if there is one.
pub(super) fn committed_twice<'a>(
    operations: impl IntoIterator<Item = &'a Operation>,
) -> Option<i64> {
    let mut committed = HashSet::new();
    operations
        .into_iter()
        .find_map(|operation| match operation.asked {
            Asked::CommitOffset(offset) if !committed.insert(offset) => Some(offset),
            _ => None,
        })
}
