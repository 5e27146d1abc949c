//! Operations on metadata and group state: is there an order that explains what was answered?

use std::collections::BTreeMap;

use super::models::{
    CommittedOffset, ForeseenOffset, OffsetStep, TopicName, TopicStep, committed_twice,
    offset_call, settle_commits, topic_call,
};
use super::verdict::{Findings, Kind};
use super::{Case, words};
use crate::linearizable::{Call, Model, Outcome, Stuck, check};
use crate::operation::{Asked, Object, Operation};

/// Steps of a search. One that needs so many has lost its way: a clean history of a thousand
/// operations takes some thousands.
const STEPS_MAX: u64 = 1_000_000;

/// Steps of a search for the words that say what is known already.
const EXPLAIN_STEPS_MAX: u64 = 200_000;

/// An operation, and what it did.
pub(super) type Known<'a, S> = (&'a Operation, Call<S>);

impl Case<'_> {
    /// Checks every object that operations were about.
    pub(super) fn check_operations(&mut self) {
        let mut objects: BTreeMap<&Object, Vec<&Operation>> = BTreeMap::new();
        for operation in &self.history.operations {
            if operation.answered_us < operation.called_us {
                self.findings.violation(Kind::BrokenHistory, || {
                    format!("answered before it was asked: {}", words::said(operation))
                });
            }
            objects
                .entry(&operation.object)
                .or_default()
                .push(operation);
        }
        for (object, operations) in objects {
            match object {
                Object::Topic(_) => {
                    if let Some(calls) = self.calls(&operations, topic_call) {
                        check_topic(&mut self.findings, object, &calls);
                    }
                }
                Object::CommittedOffset { .. } => {
                    if let Some(offset) = committed_twice(operations.iter().copied()) {
                        self.findings.violation(Kind::BrokenHistory, || {
                            format!("{}: {offset} is committed twice", words::name(object))
                        });
                    } else if let Some(mut calls) = self.calls(&operations, offset_call) {
                        settle_commits(&mut calls);
                        check_offset(&mut self.findings, object, &calls);
                    }
                }
            }
        }
    }

    /// What operations did, without those that say nothing; `None`: an answer
    /// is none to what was asked, which has been told.
    fn calls<'a, S>(
        &mut self,
        operations: &[&'a Operation],
        step: impl Fn(&Operation) -> Result<Option<Call<S>>, String>,
    ) -> Option<Vec<Known<'a, S>>> {
        let mut calls = Vec::with_capacity(operations.len());
        for operation in operations {
            match step(operation) {
                Ok(Some(call)) => calls.push((*operation, call)),
                Ok(None) => {}
                Err(why) => {
                    self.findings.violation(Kind::BrokenHistory, || why);
                    return None;
                }
            }
        }
        Some(calls)
    }
}

/// Commands first. Metadata can't make good what they got wrong, and is only
/// looked at when they are in order.
fn check_topic(findings: &mut Findings, object: &Object, all: &[Known<'_, TopicStep>]) {
    let is_read = |it: &Known<'_, TopicStep>| matches!(it.0.asked, Asked::TopicExists { .. });
    let (reads, mut commands): (Vec<_>, Vec<_>) = all.iter().cloned().partition(is_read);
    if !check_commands(findings, object, &commands) {
        return;
    }
    let joint = match search(&TopicName, all, STEPS_MAX) {
        Outcome::Linearizable(_) => return,
        joint => joint,
    };
    // Each answer that is in the way by itself. There may be none: of two of
    // different brokers either one can be the wrong one.
    let mut found = false;
    for read in reads {
        let (operation, _) = read;
        commands.push(read);
        if let Outcome::NotLinearizable(stuck) = search(&TopicName, &commands, STEPS_MAX) {
            found = true;
            findings.add(Kind::StaleMetadata, false, || {
                words::stale(object, operation, &stuck, &commands)
            });
        }
        commands.pop();
    }
    match joint {
        Outcome::NotLinearizable(stuck) if !found => {
            findings.add(Kind::StaleMetadata, false, || {
                words::stuck(object, &stuck, all)
            });
        }
        Outcome::Undecided => findings.add(Kind::Undecided, false, || {
            words::undecided(object, all.len())
        }),
        _ => {}
    }
}

/// Decided with foresight, which does not say where it went wrong: that is
/// looked for without it, as long as it is found soon.
fn check_offset(findings: &mut Findings, object: &Object, calls: &[Known<'_, OffsetStep>]) {
    let foreseen = ForeseenOffset::new(calls.iter().map(|(_, call)| &call.step));
    match search(&foreseen, calls, STEPS_MAX) {
        Outcome::Linearizable(_) => {}
        Outcome::Undecided => {
            findings.violation(Kind::Undecided, || words::undecided(object, calls.len()))
        }
        Outcome::NotLinearizable(foreseen) => {
            findings.violation(Kind::NotLinearizable, || {
                match search(&CommittedOffset, calls, EXPLAIN_STEPS_MAX) {
                    Outcome::NotLinearizable(stuck) => words::stuck(object, &stuck, calls),
                    _ => {
                        let stuck = Stuck {
                            order: foreseen.order,
                            state: foreseen.state.0,
                            blocked: foreseen.blocked,
                        };
                        words::stuck(object, &stuck, calls)
                    }
                }
            });
        }
    }
}

/// Whether an order was found; if not, that is told.
fn check_commands(
    findings: &mut Findings,
    object: &Object,
    calls: &[Known<'_, TopicStep>],
) -> bool {
    match search(&TopicName, calls, STEPS_MAX) {
        Outcome::Linearizable(_) => return true,
        Outcome::NotLinearizable(stuck) => findings.violation(Kind::NotLinearizable, || {
            words::stuck(object, &stuck, calls)
        }),
        Outcome::Undecided => {
            findings.violation(Kind::Undecided, || words::undecided(object, calls.len()))
        }
    }
    false
}

fn search<M: Model<Step: Clone>>(
    model: &M,
    calls: &[Known<'_, M::Step>],
    steps_max: u64,
) -> Outcome<M::State> {
    let calls: Vec<Call<M::Step>> = calls.iter().map(|(_, call)| call.clone()).collect();
    check(model, &calls, steps_max)
}
