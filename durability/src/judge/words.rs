//! Operations in words.

use super::operations::Known;
use crate::linearizable::Stuck;
use crate::operation::{Answer, Asked, Object, Operation};

/// Operations that a sample shows on each side of the one that can't be explained.
const AROUND: usize = 3;

/// What an object is, in words.
pub(super) trait State {
    fn words(&self) -> String;
}

impl State for bool {
    fn words(&self) -> String {
        let word = if *self { "there" } else { "not there" };
        word.to_owned()
    }
}

impl State for Option<i64> {
    fn words(&self) -> String {
        self.map_or_else(|| "nothing".to_owned(), |offset| offset.to_string())
    }
}

/// An object.
pub(super) fn name(object: &Object) -> String {
    match object {
        Object::Topic(name) => format!("topic {name}"),
        Object::CommittedOffset { group, partition } => {
            format!("offset of group {group} in partition {partition}")
        }
    }
}

/// An operation: who asked what and was told what, from when to when.
pub(super) fn said(operation: &Operation) -> String {
    let asked = match operation.asked {
        Asked::CreateTopic => "create".to_owned(),
        Asked::DeleteTopic => "delete".to_owned(),
        Asked::TopicExists { broker } => format!("metadata of broker {broker}"),
        Asked::CommitOffset(offset) => format!("commit {offset}"),
        Asked::FetchOffset => "fetch".to_owned(),
    };
    let told = match &operation.answer {
        Answer::Done => "done".to_owned(),
        Answer::AlreadyExists => "already exists".to_owned(),
        Answer::UnknownTopic => "unknown topic".to_owned(),
        Answer::Exists(true) => "exists".to_owned(),
        Answer::Exists(false) => "does not exist".to_owned(),
        Answer::Offset(None) => "nothing".to_owned(),
        Answer::Offset(Some(offset)) => offset.to_string(),
        Answer::Refused(why) => format!("refused: {why}"),
        Answer::Unknown(_) => "no answer".to_owned(),
    };
    format!(
        "client {} {asked}: {told} ({:.3} to {:.3} s)",
        operation.client,
        operation.called_us as f64 / 1e6,
        operation.answered_us as f64 / 1e6,
    )
}

/// Where the best explanation ends.
pub(super) fn stuck<T: State, S>(
    object: &Object,
    stuck: &Stuck<T>,
    calls: &[Known<'_, S>],
) -> String {
    let (blocked, _) = &calls[stuck.blocked];
    let mut text = format!("{}: {} can't be", name(object), said(blocked));
    text += &format!(", it was {} then", stuck.state.words());
    let skipped = stuck.order.len().saturating_sub(AROUND);
    let before: Vec<String> = stuck.order[skipped..]
        .iter()
        .map(|number| said(calls[*number].0))
        .collect();
    if !before.is_empty() {
        text += &format!("; before: {}", before.join(", "));
    }
    let overlaps = |(number, (operation, _)): &(usize, &Known<'_, S>)| {
        let open = matches!(operation.answer, Answer::Unknown(_));
        *number != stuck.blocked
            && !stuck.order.contains(number)
            && operation.called_us <= blocked.answered_us
            && (open || operation.answered_us >= blocked.called_us)
    };
    let beside = calls.iter().enumerate().filter(overlaps);
    let beside = beside.map(|(_, (operation, _))| said(operation));
    let beside: Vec<String> = beside.take(AROUND).collect();
    if !beside.is_empty() {
        text += &format!("; at the same time: {}", beside.join(", "));
    }
    text
}

/// An answer of Metadata that was overtaken.
pub(super) fn stale<T: State, S>(
    object: &Object,
    read: &Operation,
    stuck: &Stuck<T>,
    calls: &[Known<'_, S>],
) -> String {
    let mut before = stuck.order.iter().map(|number| calls[*number].0).rev();
    let last = before.find(|it| !std::ptr::eq(*it, read));
    let after = last.map_or_else(
        || "before anything was done".to_owned(),
        |last| format!("after {}", said(last)),
    );
    format!("{}: {}, {after}", name(object), said(read))
}

/// A search that was given up.
pub(super) fn undecided(object: &Object, operations: usize) -> String {
    format!("{}: {operations} operations", name(object))
}
