//! Is there an order of operations that overlapped which explains every answer?
//!
//! Herlihy and Wing's linearizability, decided by the search of Wing and Gong
//! (*Testing and Verifying Concurrent Objects*, 1993) with Lowe's memory of
//! configurations that lead nowhere (*Testing for Linearizability*, 2017), in
//! the form of Horn and Kroening (*Faster Linearizability Checking via
//! P-compositionality*, 2015), which Porcupine is known for: objects are
//! checked one by one, a linked list of calls and returns is shortened by what
//! is placed, and backtracking lengthens it again. Nothing recurses.
//!
//! Operations whose outcome nobody knows are not in that list. They take
//! effect once, at any time from their call on, or never; those that would do
//! the same are used in the order of their calls, and only where they change
//! something: any other choice could be exchanged for this one.

mod entries;
mod search;

use std::hash::Hash;

/// An object as it would behave if it were asked one thing after the other.
pub trait Model {
    /// What the object is.
    type State: Clone + Eq + Hash;
    /// What an operation did to it: what was asked, and what was answered.
    type Step: Eq;

    /// The object before the first operation.
    fn initial(&self) -> Self::State;

    /// The object after a step; `None` if it would not have answered so.
    fn apply(&self, state: &Self::State, step: &Self::Step) -> Option<Self::State>;
}

/// An operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call<S> {
    /// When it was called.
    pub called_us: u64,
    /// When it was answered; `None`: it takes effect at any time after the
    /// call, if at all. What is called in the microsecond in which another one
    /// is answered overlaps with it.
    pub answered_us: Option<u64>,
    /// What it did; without an answer, what it does if it takes effect.
    pub step: S,
}

/// What came of a check. Operations are told by their place among the calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome<T> {
    /// This order explains every answer. Of those without an answer, it has those that took effect.
    Linearizable(Vec<usize>),
    /// No order does.
    NotLinearizable(Stuck<T>),
    /// Not found within the steps that were allowed.
    Undecided,
}

/// How far an explanation got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck<T> {
    /// The longest order that explains the answers in it.
    pub order: Vec<usize>,
    /// What the object was after these.
    pub state: T,
    /// The operation that had to come next at the latest, and can't.
    pub blocked: usize,
}

/// Checks the operations of one object, in any order, in `steps_max` steps of
/// the search at most. A history that is linearizable without much ado takes a
/// few steps for each operation.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Step>], steps_max: u64) -> Outcome<M::State> {
    search::Search::new(model, calls).run(steps_max)
}
