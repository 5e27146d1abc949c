//! Commit notices that the next append makes needless are not sent.
//!
//! openraft's leader tells every follower of every commit by an append without
//! entries, unless entries go out at that moment. Under load the next entries
//! follow within milliseconds and carry the same news, and a notice costs both
//! sides as much as a small entry does. So a notice waits for a short while,
//! and whatever comes next on the same stream replaces it.

use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout_at};

use crate::wire::Append;

struct Held<S> {
    appends: S,
    /// Came while a notice was held that it does not replace.
    next: Option<Append>,
    ended: bool,
}

impl<S: Stream<Item = Append> + Unpin> Held<S> {
    async fn next(&mut self) -> Option<Append> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        if self.ended {
            return None;
        }
        let next = self.appends.next().await;
        self.ended = next.is_none();
        next
    }
}

/// Passes appends on in order; one without entries only after `wait`, or at
/// the end of the stream, and not at all when another one takes its place.
/// openraft does not count replies: an acknowledgement covers what was sent before.
pub(crate) fn held<S>(appends: S, wait: Duration) -> impl Stream<Item = Append> + Send
where
    S: Stream<Item = Append> + Unpin + Send,
{
    let held = Held {
        appends,
        next: None,
        ended: false,
    };
    futures_util::stream::unfold(held, move |mut held| async move {
        let mut append = held.next().await?;
        let until = Instant::now() + wait;
        while append.entries.is_empty() && !wait.is_zero() {
            match timeout_at(until, held.next()).await {
                Ok(Some(next)) if next.prev_log_id == append.prev_log_id => append = next,
                Ok(next) => {
                    held.next = next;
                    break;
                }
                Err(_) => break,
            }
        }
        Some((append, held))
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use drave_storage::Entry;
    use tokio::sync::mpsc;

    use super::*;
    use crate::entry::{LogEntry, entry_id};
    use crate::types::ReplicaId;
    use crate::wire::RaftVote;

    const WAIT: Duration = Duration::from_millis(200);

    /// An append after the entry at `previous` with `entries`, that knows of the commit at `commit`.
    fn append(previous: u64, entries: u64, commit: u64) -> Append {
        let entry = |index| {
            LogEntry::from(Entry {
                index,
                term: 1,
                tag: 16,
                stamp: 0,
                checksum: 0,
                payload: Bytes::new(),
            })
        };
        Append {
            vote: RaftVote::new_committed(1, ReplicaId::default()),
            prev_log_id: Some(entry_id(1, previous)),
            entries: (previous + 1..=previous + entries).map(entry).collect(),
            leader_commit: Some(entry_id(1, commit)),
        }
    }

    /// What passes: previous index, entries, commit.
    fn shape(append: &Append) -> (u64, usize, u64) {
        let index = |id: &Option<crate::entry::EntryId>| id.as_ref().map_or(0, |id| id.index);
        (
            index(&append.prev_log_id),
            append.entries.len(),
            index(&append.leader_commit),
        )
    }

    #[tokio::test]
    async fn the_next_entries_take_the_place_of_a_notice() {
        let appends = [
            append(4, 1, 3),
            append(5, 0, 4),
            append(5, 0, 5),
            append(5, 2, 5),
            append(7, 0, 6),
        ];
        let passed: Vec<_> = held(futures_util::stream::iter(appends), WAIT)
            .map(|append| shape(&append))
            .collect()
            .await;
        assert_eq!(passed, [(4, 1, 3), (5, 2, 5), (7, 0, 6)]);
    }

    #[tokio::test]
    async fn a_notice_that_nothing_follows_is_sent_after_the_wait() {
        let (sender, receiver) = mpsc::channel(8);
        let appends = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|append| (append, receiver))
        });
        let mut passed = std::pin::pin!(held(Box::pin(appends), WAIT));
        let began = Instant::now();
        sender.send(append(5, 0, 5)).await.unwrap();
        assert_eq!(passed.next().await.map(|a| shape(&a)), Some((5, 0, 5)));
        assert!(began.elapsed() >= WAIT);
        sender.send(append(5, 1, 5)).await.unwrap();
        let sent = Instant::now();
        assert_eq!(passed.next().await.map(|a| shape(&a)), Some((5, 1, 5)));
        assert!(sent.elapsed() < WAIT, "entries never wait");
    }

    #[tokio::test]
    async fn what_does_not_follow_the_same_entry_replaces_nothing() {
        let appends = [append(5, 0, 5), append(3, 1, 5)];
        let passed: Vec<_> = held(futures_util::stream::iter(appends), WAIT)
            .map(|append| shape(&append))
            .collect()
            .await;
        assert_eq!(passed, [(5, 0, 5), (3, 1, 5)]);
    }

    #[tokio::test]
    async fn without_a_wait_every_notice_passes() {
        let appends = [append(5, 0, 4), append(5, 0, 5)];
        let passed = held(futures_util::stream::iter(appends), Duration::ZERO);
        assert_eq!(passed.count().await, 2);
    }
}
