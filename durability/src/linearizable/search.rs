//! The search for an order.

use std::collections::HashSet;

use super::entries::{Entries, Entry, Place};
use super::{Call, Model, Outcome, Stuck};

/// A search under way: what is placed, and what is left in the list.
pub(super) struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Step>],
    /// Answered operations that are not placed yet.
    left: Entries,
    /// A bit for each answered operation, in the order of calls: whether it is placed.
    placed: Vec<u64>,
    /// Of each operation, its bit.
    bits: Vec<usize>,
    /// Operations without an answer: those that would do the same, in the order of calls.
    alike: Vec<Vec<usize>>,
    /// How many of each of these are placed.
    used: Vec<usize>,
    state: M::State,
    /// What is placed, in this order.
    stack: Vec<Placed<M::State>>,
    /// Configurations that have been reached.
    seen: HashSet<Configuration<M::State>>,
    /// The most answered operations that were placed, and where that ended.
    deepest: Option<(usize, Stuck<M::State>)>,
    /// How much of that order is on the stack still.
    shared: usize,
}

/// An operation in its place.
struct Placed<T> {
    operation: usize,
    /// Which of those alike, if it has no answer.
    alike: Option<usize>,
    /// What the object was before.
    before: T,
}

/// All that decides what can still come: what is placed, and what the object is.
///
/// Answered operations before the first that is not placed are placed, those
/// called after the first return that is left are not: the bits between say all.
#[derive(PartialEq, Eq, Hash)]
struct Configuration<T> {
    first: usize,
    window: Box<[u64]>,
    used: Box<[usize]>,
    state: T,
}

/// What is tried next.
enum Next {
    /// The answered operation that is called here; at a return there is none left.
    At(Place),
    /// One without an answer of these alike; after the last of them nothing is left.
    Alike(usize),
}

impl<'a, M: Model> Search<'a, M> {
    pub(super) fn new(model: &'a M, calls: &'a [Call<M::Step>]) -> Self {
        let mut by_time: Vec<usize> = (0..calls.len()).collect();
        by_time.sort_by_key(|number| calls[*number].called_us);
        let left = Entries::new(calls);
        let mut bits = vec![0; calls.len()];
        let mut alike: Vec<Vec<usize>> = Vec::new();
        for number in by_time {
            let call = &calls[number];
            if call.answered_us.is_some() {
                bits[number] = left.calls_before(left.call(number));
                continue;
            }
            let same = |others: &&mut Vec<usize>| calls[others[0]].step == call.step;
            match alike.iter_mut().find(same) {
                Some(others) => others.push(number),
                None => alike.push(vec![number]),
            }
        }
        Search {
            model,
            calls,
            left,
            placed: vec![0; calls.len().div_ceil(64)],
            bits,
            used: vec![0; alike.len()],
            alike,
            state: model.initial(),
            stack: Vec::new(),
            seen: HashSet::new(),
            deepest: None,
            shared: 0,
        }
    }

    pub(super) fn run(mut self, steps_max: u64) -> Outcome<M::State> {
        let Some(mut next) = self.left.first().map(Next::At) else {
            return Outcome::Linearizable(Vec::new());
        };
        for _ in 0..steps_max {
            let placed = match next {
                Next::At(place) => match self.left.entry(place) {
                    Entry::Call(operation) => self.place_answered(operation),
                    Entry::Return(operation) => {
                        self.note(operation);
                        false
                    }
                },
                Next::Alike(alike) => self.place_unanswered(alike),
            };
            if placed {
                match self.left.first() {
                    Some(first) => next = Next::At(first),
                    None => return Outcome::Linearizable(self.order()),
                }
                continue;
            }
            next = match next {
                Next::At(place) if matches!(self.left.entry(place), Entry::Call(_)) => {
                    Next::At(self.left.after(place))
                }
                Next::At(_) => Next::Alike(0),
                Next::Alike(alike) if alike < self.alike.len() => Next::Alike(alike + 1),
                Next::Alike(_) => match self.back() {
                    Some(next) => next,
                    None => return self.failed(),
                },
            };
        }
        Outcome::Undecided
    }

    /// Places an operation if it explains its answer and leads to what has not been seen.
    fn place_answered(&mut self, operation: usize) -> bool {
        let Some(state) = (self.model).apply(&self.state, &self.calls[operation].step) else {
            return false;
        };
        let before = std::mem::replace(&mut self.state, state);
        self.left.take(operation);
        self.flip(operation);
        self.stack.push(Placed {
            operation,
            alike: None,
            before,
        });
        self.is_new() || {
            self.undo();
            false
        }
    }

    /// The same for the first one of those alike that is left, if it changes anything.
    fn place_unanswered(&mut self, alike: usize) -> bool {
        let operation = self.alike.get(alike);
        let operation = operation.and_then(|all| all.get(self.used[alike]));
        let Some(&operation) = operation else {
            return false;
        };
        let call = &self.calls[operation];
        let limit = self.left.first_return();
        if limit.is_some_and(|limit| call.called_us > self.left.time(limit)) {
            return false;
        }
        let state = self.model.apply(&self.state, &call.step);
        let Some(state) = state.filter(|state| *state != self.state) else {
            return false;
        };
        let before = std::mem::replace(&mut self.state, state);
        self.used[alike] += 1;
        self.stack.push(Placed {
            operation,
            alike: Some(alike),
            before,
        });
        self.is_new() || {
            self.undo();
            false
        }
    }

    /// Whether nobody has been here.
    fn is_new(&mut self) -> bool {
        // With nothing left there is nothing to compare.
        let (Some(first), Some(limit)) = (self.left.first(), self.left.first_return()) else {
            return true;
        };
        let first = self.left.calls_before(first);
        let words = first / 64..self.left.calls_before(limit).div_ceil(64);
        self.seen.insert(Configuration {
            first,
            window: self.placed[words].into(),
            used: self.used.as_slice().into(),
            state: self.state.clone(),
        })
    }

    fn flip(&mut self, operation: usize) {
        let bit = self.bits[operation];
        self.placed[bit / 64] ^= 1 << (bit % 64);
    }

    /// Takes back what was placed last.
    fn undo(&mut self) -> Option<Placed<M::State>> {
        let mut last = self.stack.pop()?;
        self.shared = self.shared.min(self.stack.len());
        std::mem::swap(&mut self.state, &mut last.before);
        match last.alike {
            Some(alike) => self.used[alike] -= 1,
            None => {
                self.left.put_back(last.operation);
                self.flip(last.operation);
            }
        }
        Some(last)
    }

    /// Takes back what was placed last, and says what to try in its stead.
    fn back(&mut self) -> Option<Next> {
        let last = self.undo()?;
        Some(match last.alike {
            None => Next::At(self.left.after(self.left.call(last.operation))),
            Some(alike) => Next::Alike(alike + 1),
        })
    }

    fn order(&self) -> Vec<usize> {
        self.stack.iter().map(|placed| placed.operation).collect()
    }

    /// Here `operation` must be placed, and nothing that is left can come before it.
    fn note(&mut self, operation: usize) {
        let depth = self.stack.len() - self.used.iter().sum::<usize>();
        let mut order = match self.deepest.take() {
            Some((deepest, stuck)) if deepest >= depth => {
                self.deepest = Some((deepest, stuck));
                return;
            }
            deepest => deepest.map_or_else(Vec::new, |(_, stuck)| stuck.order),
        };
        // Only what is new, so that a long history is not copied again and again.
        order.truncate(self.shared);
        order.extend(self.stack[self.shared..].iter().map(|it| it.operation));
        self.shared = self.stack.len();
        let stuck = Stuck {
            order,
            state: self.state.clone(),
            blocked: operation,
        };
        self.deepest = Some((depth, stuck));
    }

    fn failed(self) -> Outcome<M::State> {
        let (_, stuck) = self.deepest.expect("a search that fails meets a return");
        Outcome::NotLinearizable(stuck)
    }
}
