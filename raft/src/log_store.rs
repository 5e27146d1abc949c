//! A group's log and vote for openraft, on the node's shared store.
//!
//! `append` only submits: the entries are readable from the tail cache when it
//! returns, and openraft hears of their durability from the store's sync thread.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::{Arc, Mutex, MutexGuard};

use drave_storage::{GroupId, GroupState, SharedStore, StorageError, TermStart, Write};
use futures_util::Stream;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use crate::blocking;
use crate::config::Types;
use crate::entry::{EntryId, LogEntry, entry_id};
use crate::planted;
use crate::repairs::{Life, Repairs};
use crate::types::Leadership;
use crate::wire::{self, RaftVote};

/// Most bytes of entries that one replication message carries.
const APPEND_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of entries that are read at once for applying.
const APPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What is known of a log without asking the store.
#[derive(Debug)]
struct Head {
    purged: Option<(u64, u64)>,
    last: Option<(u64, u64)>,
    vote: Option<RaftVote>,
    term_starts: Vec<TermStart>,
}

/// The log of one group; clones share it.
#[derive(Clone)]
pub(crate) struct GroupLog {
    group: GroupId,
    store: SharedStore,
    repairs: Arc<Repairs>,
    life: Life,
    head: Arc<Mutex<Head>>,
}

impl GroupLog {
    /// The log as the store opened it.
    pub(crate) fn new(
        group: GroupId,
        store: SharedStore,
        repairs: Arc<Repairs>,
        life: Life,
        state: &GroupState,
    ) -> Result<Self, String> {
        let vote = state.vote.as_deref().map(wire::decode_vote).transpose()?;
        let vote = vote.filter(|_| !planted::FORGET_VOTE.is_planted());
        let head = Head {
            purged: state.purged,
            last: state.last,
            vote,
            term_starts: state.term_starts.clone(),
        };
        Ok(GroupLog {
            group,
            store,
            repairs,
            life,
            head: Arc::new(Mutex::new(head)),
        })
    }

    fn head(&self) -> MutexGuard<'_, Head> {
        self.head
            .lock()
            .expect("no code panics while it holds the head")
    }

    /// Who led when the vote was stored.
    pub(crate) fn recalled_leadership(&self) -> Option<Leadership> {
        let vote = self.head().vote.filter(|vote| vote.committed)?;
        Some(Leadership {
            term: vote.leader_id.term,
            leader: vote.leader_id.voted_for,
        })
    }

    /// Reads `from..to`, at most `bytes_max` but at least one entry. A damaged
    /// one is waited for until it is healed.
    async fn read(&self, from: u64, to: u64, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        loop {
            if let Some(entries) = self.store.read_tail(self.group, from, to, bytes_max) {
                return Ok(entries.into_iter().map(LogEntry::from).collect());
            }
            let group = self.group;
            let read = blocking::run(&self.store, move |store| {
                store.read(group, from, to, bytes_max)
            });
            match read.await? {
                Ok(entries) => return Ok(entries.into_iter().map(LogEntry::from).collect()),
                Err(damage @ StorageError::Corrupt { .. }) => {
                    self.repairs.healed(&damage, &self.life).await?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

/// `from..to` of any kind of range, `to` at most the end of the log.
fn bounds(range: &impl RangeBounds<u64>, end: u64) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => end,
    };
    (from, to.min(end))
}

impl RaftLogReader<Types> for GroupLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<LogEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let end = self.head().last.map_or(0, |(index, _)| index + 1);
        let (mut from, to) = bounds(&range, end);
        let mut entries = Vec::new();
        while from < to {
            let more = self.read(from, to, APPLY_BYTES_MAX).await?;
            let Some(last) = more.last() else { break };
            from = last.stored().index + 1;
            entries.extend(more);
        }
        Ok(entries)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<LogEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let end = self.head().last.map_or(0, |(index, _)| index + 1);
        let (from, to) = bounds(&range, end);
        let state = (self.clone(), from, to, Vec::new().into_iter());
        Box::pin(futures_util::stream::try_unfold(
            state,
            |(log, mut from, to, mut entries)| async move {
                if entries.len() == 0 {
                    let more = log.read(from, to, APPLY_BYTES_MAX).await?;
                    if let Some(last) = more.last() {
                        from = last.stored().index + 1;
                    }
                    entries = more.into_iter();
                }
                Ok(entries
                    .next()
                    .map(|entry| (entry, (log, from, to, entries))))
            },
        ))
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.head().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<LogEntry>> {
        self.read(start, end, APPEND_BYTES_MAX).await
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<EntryId>,
    ) -> io::Result<Vec<EntryId>> {
        // The last entry of every term, from the index of where terms start.
        let (first, last) = (range.start().index(), range.end().index());
        let head = self.head();
        let mut ids: Vec<EntryId> = head
            .term_starts
            .windows(2)
            .map(|pair| entry_id(pair[0].term, pair[1].index.saturating_sub(1)))
            .filter(|id| id.index() >= first && id.index() < last)
            .collect();
        ids.push(*range.end());
        Ok(ids)
    }
}

impl RaftLogStorage<Types> for GroupLog {
    type LogReader = GroupLog;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let head = self.head();
        let id = |(index, term)| entry_id(term, index);
        Ok(LogState {
            last_purged_log_id: head.purged.map(id),
            last_log_id: head.last.map(id),
        })
    }

    async fn get_log_reader(&mut self) -> GroupLog {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        let write = Write::Vote(wire::encode_vote(vote));
        let done = Box::new(move |result| drop(done.send(result)));
        self.store.submit(self.group, write, Some(done));
        synced.await.map_err(io::Error::other)??;
        self.head().vote = Some(*vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(LogEntry::into_stored).collect();
        let Some(last) = entries.last().map(|entry| (entry.index, entry.term)) else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        {
            let mut head = self.head();
            for entry in &entries {
                if head
                    .term_starts
                    .last()
                    .is_none_or(|start| start.term < entry.term)
                {
                    head.term_starts.push(TermStart {
                        term: entry.term,
                        index: entry.index,
                    });
                }
            }
        }
        let done = Box::new(move |result| callback.io_completed(result));
        self.store
            .submit(self.group, Write::Append(entries), Some(done));
        self.head().last = Some(last);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<EntryId>) -> io::Result<()> {
        let keep = last.as_ref().map(EntryId::index);
        {
            let mut head = self.head();
            head.last = last.map(|id| (id.index(), id.committed_leader_id().term));
            let end = keep.map_or(0, |index| index + 1);
            head.term_starts.retain(|start| start.index < end);
        }
        self.store
            .submit(self.group, Write::Truncate { last: keep }, None);
        Ok(())
    }

    async fn purge(&mut self, id: EntryId) -> io::Result<()> {
        let (index, term) = (id.index(), id.committed_leader_id().term);
        {
            let mut head = self.head();
            head.purged = Some((index, term));
            if head.last.is_none_or(|(last, _)| last <= index) {
                head.last = Some((index, term));
            }
            // The term that contains the first entry left starts there.
            let start = head
                .term_starts
                .partition_point(|start| start.index <= index + 1);
            head.term_starts.drain(..start.saturating_sub(1));
            if let Some(first) = head.term_starts.first_mut() {
                first.index = first.index.max(index + 1);
            }
        }
        self.store
            .submit(self.group, Write::Purge { index, term }, None);
        Ok(())
    }
}
