//! Group commit in two stages.
//!
//! The writer thread drains what all groups have queued into one write batch
//! and writes it without a sync. The sync thread then syncs the WAL once and
//! completes everything that was written before the sync began, in order;
//! meanwhile the writer goes on with the next batch. The first failure of
//! either ends the process: a failed fsync may have dropped the very pages it
//! was asked to keep, so neither retrying it nor serving after it is sound.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rocksdb::{DB, WriteBatch, WriteOptions};

use crate::damage::Repair;
use crate::durations::DurationHistogram;
use crate::group_log::GroupLog;
use crate::head::Effects;
use crate::housekeeper::Housekeeper;
use crate::keys::{self, EntryKey, Kind};
use crate::log::{Done, GroupId, StoreActivity, Write};
use crate::planted;
use crate::reader::io_error;
use crate::tail_cache::Evictor;

/// A write batch takes at most this much before it goes to the WAL.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// A write on its way to the database.
pub(crate) struct Change {
    pub(crate) group: Arc<GroupLog>,
    pub(crate) write: Write,
    pub(crate) effects: Effects,
    /// Of a repair: what is written again.
    pub(crate) repairs: Vec<Repair>,
    /// Payload bytes of the log before this write; for a purge or a drop, about what it frees.
    pub(crate) end: u64,
    pub(crate) submission: u64,
}

/// An element of the queue; without a change it only waits for the sync.
struct Item {
    change: Option<Change>,
    done: Option<Done>,
    bytes: usize,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    /// Reserved by queued items and by those about to be queued.
    bytes: usize,
    /// Ticket of the last item.
    tickets: u64,
    writer_sleeps: bool,
    closing: bool,
}

#[derive(Default)]
struct Unsynced {
    dones: Vec<Done>,
    /// Bytes written but not synced, by writes that wait for a sync.
    bytes: usize,
    sleeps: bool,
    closing: bool,
}

/// What the two stages and their users share.
pub(crate) struct Writer {
    queue: Mutex<Queue>,
    queue_work: Condvar,
    queue_space: Condvar,
    queue_bytes_max: usize,
    written: Mutex<u64>,
    written_more: Condvar,
    unsynced: Mutex<Unsynced>,
    unsynced_work: Condvar,
    unsynced_space: Condvar,
    started: Instant,
    synced_at_ms: AtomicU64,
    syncs: DurationHistogram,
}

const POISONED: &str = "a thread that holds this lock does not panic";

impl Writer {
    pub(crate) fn new(queue_bytes_max: usize) -> Writer {
        Writer {
            queue: Mutex::default(),
            queue_work: Condvar::new(),
            queue_space: Condvar::new(),
            queue_bytes_max,
            written: Mutex::new(0),
            written_more: Condvar::new(),
            unsynced: Mutex::default(),
            unsynced_work: Condvar::new(),
            unsynced_space: Condvar::new(),
            started: Instant::now(),
            synced_at_ms: AtomicU64::new(0),
            syncs: DurationHistogram::default(),
        }
    }

    /// Waits for room in the queue. Every reservation is followed by a push.
    pub(crate) fn reserve(&self, bytes: usize) {
        let mut queue = self.queue.lock().expect(POISONED);
        while queue.bytes > 0 && queue.bytes + bytes > self.queue_bytes_max {
            queue = self.queue_space.wait(queue).expect(POISONED);
        }
        queue.bytes += bytes;
    }

    /// Queues a change under its reservation and returns its ticket.
    pub(crate) fn push(&self, change: Option<Change>, done: Option<Done>, bytes: usize) -> u64 {
        let mut queue = self.queue.lock().expect(POISONED);
        queue.tickets += 1;
        queue.items.push_back(Item {
            change,
            done,
            bytes,
        });
        if std::mem::take(&mut queue.writer_sleeps) {
            self.queue_work.notify_one();
        }
        queue.tickets
    }

    /// The ticket of what was queued last.
    pub(crate) fn last_ticket(&self) -> u64 {
        self.queue.lock().expect(POISONED).tickets
    }

    /// Waits until everything up to `ticket` is in the database, synced or not.
    pub(crate) fn wait_written(&self, ticket: u64) {
        let mut written = self.written.lock().expect(POISONED);
        while *written < ticket {
            written = self.written_more.wait(written).expect(POISONED);
        }
    }

    pub(crate) fn last_sync_age_ms(&self) -> u64 {
        self.now_ms()
            .saturating_sub(self.synced_at_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn activity(&self) -> StoreActivity {
        StoreActivity {
            syncs: self.syncs.counts(),
            queued_bytes: self.queue.lock().expect(POISONED).bytes,
            unsynced_bytes: self.unsynced.lock().expect(POISONED).bytes,
            ..StoreActivity::default()
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Lets the writer finish what is queued and end.
    pub(crate) fn close_queue(&self) {
        self.queue.lock().expect(POISONED).closing = true;
        self.queue_work.notify_one();
    }

    /// Lets the sync thread finish what is written and end.
    pub(crate) fn close_sync(&self) {
        self.unsynced.lock().expect(POISONED).closing = true;
        self.unsynced_work.notify_one();
    }

    /// The body of the writer thread. `gone` is told of every written purge and drop.
    pub(crate) fn run_writer(&self, db: &DB, mut evictor: Evictor, gone: impl Fn(&Change)) {
        let _guard = AbortOnPanic;
        let mut options = WriteOptions::default();
        options.set_sync(false);
        let mut items = VecDeque::new();
        loop {
            {
                let mut queue = self.queue.lock().expect(POISONED);
                while queue.items.is_empty() {
                    if queue.closing {
                        return;
                    }
                    queue.writer_sleeps = true;
                    queue = self.queue_work.wait(queue).expect(POISONED);
                }
                queue.writer_sleeps = false;
                std::mem::swap(&mut queue.items, &mut items);
            }
            while !items.is_empty() {
                self.write_batch(db, &options, &mut items, &mut evictor, &gone);
            }
        }
    }

    /// Writes as many items as one batch takes.
    fn write_batch(
        &self,
        db: &DB,
        options: &WriteOptions,
        items: &mut VecDeque<Item>,
        evictor: &mut Evictor,
        gone: &impl Fn(&Change),
    ) {
        let mut bytes = 0;
        let mut count = 0;
        let mut records = 0;
        for item in items.iter() {
            if count > 0 && bytes + item.bytes > BATCH_BYTES_MAX {
                break;
            }
            bytes += item.bytes;
            count += 1;
            if let Some(Change { write, .. }) = &item.change {
                records += match write {
                    Write::Append(entries) | Write::Repair(entries) => entries.len(),
                    _ => 4,
                };
            }
        }
        // The batch is allocated once: payloads, and keys with their framing.
        let mut batch = WriteBatch::with_capacity_bytes(bytes + 64 * records + 64);
        let cfs = Families::of(db);
        for item in items.range(..count) {
            if let Some(change) = &item.change {
                cfs.add(&mut batch, change);
            }
        }
        if !batch.is_empty()
            && let Err(error) = db.write_opt(batch, options)
        {
            fatal(
                "writing to the log",
                &io_error(db.path(), "writing to the log", error),
            );
        }
        {
            *self.written.lock().expect(POISONED) += count as u64;
            self.written_more.notify_all();
        }
        self.hand_to_sync(items.range_mut(..count), bytes);
        for item in items.drain(..count) {
            match item.change {
                Some(change) if matches!(change.write, Write::Append(_)) => {
                    evictor.written(change.group, change.submission, item.bytes);
                }
                Some(change) if matches!(change.write, Write::Drop | Write::Purge { .. }) => {
                    gone(&change);
                }
                _ => {}
            }
        }
        evictor.evict();
        let mut queue = self.queue.lock().expect(POISONED);
        queue.bytes -= bytes;
        self.queue_space.notify_all();
    }

    /// Gives the completions of a written batch to the sync thread, and waits
    /// while that is too far behind.
    fn hand_to_sync<'a>(&self, items: impl Iterator<Item = &'a mut Item>, bytes: usize) {
        let mut dones = items.filter_map(|item| item.done.take()).peekable();
        if dones.peek().is_none() {
            return;
        }
        if planted::ACKNOWLEDGE_BEFORE_SYNC.is_planted() {
            return dones.for_each(|done| done(Ok(())));
        }
        let mut unsynced = self.unsynced.lock().expect(POISONED);
        while unsynced.bytes > self.queue_bytes_max {
            unsynced = self.unsynced_space.wait(unsynced).expect(POISONED);
        }
        unsynced.dones.extend(dones);
        unsynced.bytes += bytes;
        if std::mem::take(&mut unsynced.sleeps) {
            self.unsynced_work.notify_one();
        }
    }

    /// The body of the sync thread.
    pub(crate) fn run_sync(&self, db: &DB, housekeeper: &Housekeeper) {
        let _guard = AbortOnPanic;
        let mut dones = Vec::new();
        loop {
            let bytes;
            {
                let mut unsynced = self.unsynced.lock().expect(POISONED);
                while unsynced.dones.is_empty() {
                    if unsynced.closing {
                        return;
                    }
                    unsynced.sleeps = true;
                    unsynced = self.unsynced_work.wait(unsynced).expect(POISONED);
                }
                unsynced.sleeps = false;
                std::mem::swap(&mut unsynced.dones, &mut dones);
                bytes = unsynced.bytes;
            }
            let sequence = db.latest_sequence_number();
            let began = Instant::now();
            if let Err(error) = db.flush_wal(true) {
                fatal("syncing the log", &error);
            }
            self.syncs.observe(began.elapsed());
            self.synced_at_ms.store(self.now_ms(), Ordering::Relaxed);
            for done in dones.drain(..) {
                done(Ok(()));
            }
            housekeeper.synced(sequence);
            self.unsynced.lock().expect(POISONED).bytes -= bytes;
            self.unsynced_space.notify_one();
        }
    }
}

/// The column families, looked up once a batch.
struct Families<'a> {
    log: &'a rocksdb::ColumnFamily,
    state: &'a rocksdb::ColumnFamily,
}

impl<'a> Families<'a> {
    fn of(db: &'a DB) -> Families<'a> {
        Families {
            log: db.cf_handle(keys::LOG).expect("opened with it"),
            state: db.cf_handle(keys::STATE).expect("opened with it"),
        }
    }

    fn add(&self, batch: &mut WriteBatch, change: &Change) {
        let group = change.group.id;
        match &change.write {
            Write::Append(entries) => {
                let mut end = change.end;
                for entry in entries {
                    end += entry.payload.len() as u64;
                    let key = EntryKey::of(group, entry, end).encode();
                    batch.put_cf(self.log, key, &entry.payload);
                }
            }
            Write::Repair(_) => {
                for repair in &change.repairs {
                    let index = repair.key.index;
                    if repair.replaces {
                        let from = keys::entry_bound(group, index);
                        let to = keys::entry_bound(group, index + 1);
                        batch.delete_range_cf(self.log, from, to);
                    }
                    batch.put_cf(self.log, repair.key.encode(), &repair.payload);
                }
            }
            Write::Truncate { .. } => {}
            Write::Vote(vote) => {
                batch.put_cf(self.state, keys::kind_start(group, Kind::Vote), vote);
            }
            Write::Purge { index, term } => {
                if change.effects.entries_gone.is_some() {
                    let value = keys::purged_value(*index, *term);
                    batch.put_cf(self.state, keys::kind_start(group, Kind::Purged), value);
                }
            }
            Write::Checkpoint { checkpoint, .. } => {
                let key = keys::numbered(group, Kind::Checkpoint, checkpoint.index);
                let value = keys::checkpoint_value(checkpoint.term, &checkpoint.bytes);
                batch.put_cf(self.state, key, value);
            }
            Write::Keys(pairs) => {
                for (key, value) in pairs {
                    let key = keys::own(group, key);
                    match value {
                        Some(value) => batch.put_cf(self.state, key, value),
                        None => batch.delete_cf(self.state, key),
                    }
                }
            }
            Write::Drop => {
                let (from, to) = (keys::entry_bound(group, 0), keys::entries_end(group));
                batch.delete_range_cf(self.log, from, to);
                let (from, to) = (keys::state_start(group), keys::state_end(group));
                batch.delete_range_cf(self.state, from, to);
            }
        }
        self.add_effects(batch, group, &change.effects);
    }

    fn add_effects(&self, batch: &mut WriteBatch, group: GroupId, effects: &Effects) {
        if let Some((from, to)) = effects.entries_gone {
            let (from, to) = (keys::entry_bound(group, from), keys::entry_bound(group, to));
            batch.delete_range_cf(self.log, from, to);
        }
        for term in &effects.terms_gone {
            batch.delete_cf(self.state, keys::numbered(group, Kind::TermStart, *term));
        }
        for start in &effects.term_starts {
            let key = keys::numbered(group, Kind::TermStart, start.term);
            batch.put_cf(self.state, key, start.index.to_be_bytes());
        }
        for index in &effects.checkpoints_gone {
            batch.delete_cf(self.state, keys::numbered(group, Kind::Checkpoint, *index));
        }
    }
}

/// Ends the process: what the disk holds is no longer known.
pub(crate) fn fatal(doing: &'static str, error: &dyn std::fmt::Display) -> ! {
    tracing::error!(%error, doing, "storage failed, the process ends");
    if !tracing::enabled!(tracing::Level::ERROR) {
        eprintln!("storage failed while {doing}, the process ends: {error}");
    }
    std::process::abort()
}

/// A stage that panics must not leave the other threads waiting for it.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            fatal("running a storage thread", &"it panicked");
        }
    }
}
