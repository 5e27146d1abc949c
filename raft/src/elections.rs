//! When a group has to look for a leader. One task for all groups of the node.
//!
//! openraft's own timers are off. Instead a group is *looked at* when there is a
//! reason: the node of its leader died or restarted, the group was opened
//! without knowing a leader, leadership was lost, or somebody wanted to write
//! and found no leader. The look ends when a live leader is known; until then
//! it is repeated, and replicas take turns in the order of the placement, so
//! that two rarely stand at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use drave_storage::GroupId;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How much later the next replica in the order stands for election.
pub(crate) const TURN: Duration = Duration::from_millis(150);
/// How long a replica waits for the outcome of its election before it tries again.
pub(crate) const RETRY: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Looks {
    queue: BTreeSet<(Instant, GroupId)>,
    at: HashMap<GroupId, Instant>,
}

/// The groups that have to be looked at, and when. At most one look a group.
#[derive(Default)]
pub(crate) struct Elections {
    looks: Mutex<Looks>,
    wake: Notify,
}

impl Elections {
    fn looks(&self) -> MutexGuard<'_, Looks> {
        self.looks
            .lock()
            .expect("no code panics while it holds the looks")
    }

    /// Looks at a group soon, unless that is already planned.
    pub(crate) fn look(&self, group: GroupId) {
        let planned = self.looks().at.contains_key(&group);
        if !planned {
            self.look_at(group, Instant::now());
        }
    }

    /// Looks at a group at `at`, or earlier if that was planned.
    pub(crate) fn look_at(&self, group: GroupId, at: Instant) {
        let mut looks = self.looks();
        if let Some(&planned) = looks.at.get(&group) {
            if planned <= at {
                return;
            }
            looks.queue.remove(&(planned, group));
        }
        looks.at.insert(group, at);
        looks.queue.insert((at, group));
        let first = looks.queue.first().is_some_and(|look| *look == (at, group));
        drop(looks);
        if first {
            self.wake.notify_one();
        }
    }

    /// Waits for the next group whose time has come.
    pub(crate) async fn next(&self) -> GroupId {
        loop {
            let next = self.looks().queue.first().copied();
            match next {
                None => self.wake.notified().await,
                Some((at, _)) if at > Instant::now() => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.wake.notified() => {}
                    }
                }
                Some(look) => {
                    let mut looks = self.looks();
                    if looks.queue.remove(&look) {
                        looks.at.remove(&look.1);
                        return look.1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looks_come_in_the_order_of_their_time_and_once_a_group() {
        let elections = Elections::default();
        let now = Instant::now();
        elections.look_at(GroupId(1), now + Duration::from_millis(100));
        elections.look_at(GroupId(2), now + Duration::from_millis(50));
        elections.look_at(GroupId(1), now + Duration::from_secs(3600));
        elections.look(GroupId(2));
        assert_eq!(elections.next().await, GroupId(2));
        assert_eq!(elections.next().await, GroupId(1));
        assert!(now.elapsed() >= Duration::from_millis(100));
        let nothing = tokio::time::timeout(Duration::from_millis(50), elections.next());
        assert!(
            nothing.await.is_err(),
            "the later look at group 1 was replaced"
        );
    }
}
