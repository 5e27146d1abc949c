//! What a coordinator's leader keeps for its term only.

use std::collections::{BTreeSet, HashMap};

use tokio::sync::oneshot;

use crate::groups::membership::{Answer, Membership, Millis, Token};

/// What a leader keeps for its term only.
#[derive(Default)]
pub(super) struct Volatile {
    pub(super) term: Option<u64>,
    pub(super) groups: HashMap<String, Membership>,
    pub(super) waiting: HashMap<Token, oneshot::Sender<Answer>>,
    pub(super) last_token: Token,
    /// The next deadline of each group that has one.
    pub(super) deadlines: BTreeSet<(Millis, String)>,
    pub(super) deadline_of: HashMap<String, Millis>,
}
impl Volatile {
    /// A request starts to wait.
    pub(super) fn wait(&mut self) -> (Token, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        self.last_token += 1;
        self.waiting.insert(self.last_token, sender);
        (self.last_token, receiver)
    }

    pub(super) fn answer(&mut self, token: Token, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&token) {
            // Nobody waits any more if the client has gone.
            drop(waiting.send(answer));
        }
    }

    /// Notes a group's next deadline; true if it is now the first of all.
    pub(super) fn reschedule(&mut self, group: &str) -> bool {
        if let Some(old) = self.deadline_of.remove(group) {
            self.deadlines.remove(&(old, group.to_string()));
        }
        let Some(at) = self.groups.get(group).and_then(Membership::next_deadline) else {
            return false;
        };
        self.deadlines.insert((at, group.to_string()));
        self.deadline_of.insert(group.to_string(), at);
        self.deadlines
            .first()
            .is_some_and(|(_, first)| first == group)
    }
}
