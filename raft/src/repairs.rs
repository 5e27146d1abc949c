//! Healing entries that are damaged on this node's disk from other replicas.
//!
//! Whoever meets a damaged entry begins a healing and waits for it, or refuses
//! its reader meanwhile. One task per group asks the live peers for the entry
//! and those after it, and writes them again where they are: by Raft's log
//! matching, an entry of the same index and term is the same on every replica.
//! The tasks belong to [`Repairs`], and end with their group or the node.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use drave_storage::{Entry, GroupId, SharedStore, StorageError, Write};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::transport::{Message, ReplySender, Transport};
use crate::wire;

/// Bytes of entries that one answer carries; one entry may be larger.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long the file that a damaged entry lies in is looked for.
const LOCATE_MAX: Duration = Duration::from_secs(2);
/// Entries that one answer carries: they are looked at under the group's lock.
const ANSWER_ENTRIES_MAX: u64 = 256;
/// Answers that are read from disk at the same time.
const ANSWERS_MAX: usize = 4;
/// A peer that does not answer in this time has no answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between rounds in which no peer had the entry.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often an entry that nobody has is spoken of.
const REMIND_EVERY: Duration = Duration::from_secs(60);
/// A group that can't be opened without the entry waits for it this long; its
/// owner tries again.
const OPENING_MAX: Duration = Duration::from_secs(20);

/// How far the life of a group has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Opening,
    Open,
    Closed,
}

/// Shared by a group's log and whoever opens and closes it.
#[derive(Clone, Debug)]
pub(crate) struct Life(Arc<watch::Sender<Phase>>);

impl Life {
    /// From now on, readers wait for as long as it takes.
    pub(crate) fn opened(&self) {
        self.0.send_replace(Phase::Open);
    }

    /// Waits for the time at which a reader is not to wait any longer.
    async fn over(&self) -> io::Error {
        let mut phase = self.0.subscribe();
        let leaves = phase.wait_for(|phase| *phase != Phase::Opening);
        let opened = tokio::time::timeout(OPENING_MAX, leaves).await.is_ok();
        if !opened {
            return io::Error::other("a damaged entry was not healed in time to open the group");
        }
        // The sender lives as long as `self`.
        phase.wait_for(|phase| *phase == Phase::Closed).await.ok();
        io::Error::other("the group is closed on this node")
    }
}

/// A healing that is under way.
struct Healing {
    index: u64,
    file: String,
    reason: String,
    /// No live peer has the entry: what is sound is served in the meantime.
    stuck: Arc<AtomicBool>,
    /// Ends with the task.
    ended: watch::Receiver<()>,
    task: AbortHandle,
}

#[derive(Default)]
struct State {
    lives: HashMap<GroupId, Life>,
    healings: HashMap<GroupId, Healing>,
    tasks: JoinSet<()>,
}

/// Every healing of this node.
pub(crate) struct Repairs {
    store: SharedStore,
    transport: Arc<Transport>,
    runtime: Handle,
    answers: Semaphore,
    state: Mutex<State>,
}

impl Repairs {
    /// Must be called within the runtime that the healings are to run on.
    pub(crate) fn new(store: SharedStore, transport: Arc<Transport>) -> Arc<Repairs> {
        Arc::new(Repairs {
            store,
            transport,
            runtime: Handle::current(),
            answers: Semaphore::new(ANSWERS_MAX),
            state: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("never left half changed")
    }

    /// The store that it heals.
    pub(crate) fn store(&self) -> SharedStore {
        self.store.clone()
    }

    /// A group is being opened.
    pub(crate) fn opening(&self, group: GroupId) -> Life {
        let life = Life(Arc::new(watch::Sender::new(Phase::Opening)));
        self.lock().lives.insert(group, life.clone());
        life
    }

    /// A group is closed: nobody waits for its entries any more.
    pub(crate) fn close(&self, group: GroupId) {
        let mut state = self.lock();
        if let Some(life) = state.lives.remove(&group) {
            life.0.send_replace(Phase::Closed);
        }
        if let Some(healing) = state.healings.remove(&group) {
            healing.task.abort();
        }
    }

    /// Whether the group is open on this node, or being opened.
    pub(crate) fn knows(&self, group: GroupId) -> bool {
        self.lock().lives.contains_key(&group)
    }

    /// Ends every healing.
    pub(crate) async fn shutdown(&self) {
        let mut tasks = {
            let mut state = self.lock();
            state.lives.clear();
            state.healings.clear();
            std::mem::take(&mut state.tasks)
        };
        tasks.shutdown().await;
    }

    /// Why nothing is read from disk of this group now.
    pub(crate) fn refusal(&self, group: GroupId) -> Option<StorageError> {
        let state = self.lock();
        let healing = state.healings.get(&group)?;
        (!healing.stuck.load(Ordering::Acquire)).then(|| StorageError::Corrupt {
            group,
            index: healing.index,
            file: healing.file.clone(),
            reason: healing.reason.clone(),
        })
    }

    /// Begins to heal what an error says is damaged, unless its group is being
    /// healed already. What is returned ends with the healing.
    pub(crate) fn begin(self: &Arc<Self>, damage: &StorageError) -> Option<watch::Receiver<()>> {
        let StorageError::Corrupt {
            group,
            index,
            file,
            reason,
        } = damage
        else {
            return None;
        };
        let mut state = self.lock();
        while state.tasks.try_join_next().is_some() {}
        if !state.lives.contains_key(group) {
            // Closed meanwhile: nobody would end the healing.
            return None;
        }
        if let Some(healing) = state.healings.get(group) {
            return Some(healing.ended.clone());
        }
        let (running, ended) = watch::channel(());
        let stuck = Arc::new(AtomicBool::new(false));
        let work = Task {
            repairs: self.clone(),
            group: *group,
            first: *index,
            file: file.clone(),
            reason: reason.clone(),
            stuck: stuck.clone(),
        };
        let run = async move {
            work.run().await;
            work.repairs.lock().healings.remove(&work.group);
            drop(running);
        };
        let task = state.tasks.spawn_on(run, &self.runtime);
        let healing = Healing {
            index: *index,
            file: file.clone(),
            reason: reason.clone(),
            stuck,
            ended: ended.clone(),
            task,
        };
        state.healings.insert(*group, healing);
        Some(ended)
    }

    /// Waits until the damage is healed, or the group's life is over.
    pub(crate) async fn healed(
        self: &Arc<Self>,
        damage: &StorageError,
        life: &Life,
    ) -> io::Result<()> {
        if *life.0.borrow() == Phase::Closed {
            return Err(io::Error::other("the group is closed on this node"));
        }
        let Some(mut ended) = self.begin(damage) else {
            return Err(io::Error::other(damage.to_string()));
        };
        tokio::select! {
            () = async { while ended.changed().await.is_ok() {} } => Ok(()),
            error = life.over() => Err(error),
        }
    }

    /// Answers a peer that asks for entries; dropping the reply says that there
    /// is no answer.
    pub(crate) async fn answer(self: Arc<Self>, message: Message, reply: ReplySender) {
        let wanted = match wire::decode_entries_wanted(&message) {
            Ok(wanted) => wanted,
            Err(reason) => return warn!(reason, "question for entries refused"),
        };
        let Ok(_permit) = self.answers.try_acquire() else {
            return;
        };
        let (group, to) = (
            GroupId(message.group),
            wanted
                .to
                .min(wanted.from.saturating_add(ANSWER_ENTRIES_MAX)),
        );
        let read = self.blocking(move |store| store.read(group, wanted.from, to, ANSWER_BYTES_MAX));
        match read.await {
            Ok(Ok(entries)) => reply.send(wire::encode_entries(message.group, &entries)),
            // It is damaged here too, perhaps not on the third replica.
            Ok(Err(damage)) => drop(self.begin(&damage)),
            Err(error) => debug!(%error, "no answer, the node is stopping"),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(SharedStore) -> T + Send + 'static,
    ) -> io::Result<T> {
        let store = self.store.clone();
        let work = self.runtime.spawn_blocking(move || work(store));
        work.await.map_err(io::Error::other)
    }
}

/// Heals one group, from one damaged entry on.
struct Task {
    repairs: Arc<Repairs>,
    group: GroupId,
    first: u64,
    file: String,
    reason: String,
    stuck: Arc<AtomicBool>,
}

impl Task {
    async fn run(&self) {
        let (group, first) = (self.group, self.first);
        let file = self
            .repairs
            .blocking(move |store| store.file_of(group, first));
        // Others wait for the entry, which is not to wait for the file's name.
        let file = tokio::time::timeout(LOCATE_MAX, file).await;
        let file = file.ok().and_then(Result::ok).flatten();
        error!(
            %group,
            index = first,
            file = file.map_or_else(|| self.file.clone(), |file| file.display().to_string()),
            reason = self.reason,
            "a damaged entry: the group is not served from this disk until it is healed from another replica"
        );
        let (mut next, mut pause) = (first, PAUSE_MIN);
        let mut reminded: Option<Instant> = None;
        while let Some(damaged) = self.damaged_at(next).await {
            next = damaged;
            if let Some(mended) = self.mend(next).await {
                (next, pause) = (mended, PAUSE_MIN);
                self.stuck.store(false, Ordering::Release);
                continue;
            }
            self.stuck.store(true, Ordering::Release);
            if reminded.is_none_or(|at| at.elapsed() >= REMIND_EVERY) {
                reminded = Some(Instant::now());
                warn!(%group, index = next, "no live replica has the damaged entry, trying again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        info!(%group, from = first, before = next, "damaged entries are healed");
    }

    /// The index given, if the entry there is damaged.
    async fn damaged_at(&self, index: u64) -> Option<u64> {
        let group = self.group;
        let read = self
            .repairs
            .blocking(move |store| store.read(group, index, index + 1, 1));
        match read.await {
            Ok(Err(StorageError::Corrupt { index, .. })) => Some(index),
            _ => None,
        }
    }

    /// Mends the entry at `index` and what follows it in the answer of a peer;
    /// returns the index after them.
    async fn mend(&self, index: u64) -> Option<u64> {
        let group = self.group;
        let state = self.repairs.blocking(move |store| store.open_group(group));
        let state = state.await.ok()?.ok()?;
        let to = state
            .next_index()
            .min(index.saturating_add(ANSWER_ENTRIES_MAX));
        for peer in self.repairs.transport.peers() {
            if !peer.alive || peer.broker == self.repairs.transport.local().broker {
                continue;
            }
            let mut entries = match self.ask(peer.broker, index, to).await {
                Ok(entries) => entries,
                Err(reason) => {
                    debug!(%group, index, broker = peer.broker, reason, "no entries to heal from");
                    continue;
                }
            };
            let same = |entry: &Entry| state.term_at(entry.index) == Some(entry.term);
            entries.truncate(entries.iter().take_while(|entry| same(entry)).count());
            let Some(last) = entries.last().map(|entry| entry.index) else {
                continue;
            };
            self.write(entries).await.ok()?;
            if self.damaged_at(index).await.is_none() {
                return Some(last + 1);
            }
            warn!(%group, index, broker = peer.broker, "a damaged entry is still damaged after it was written again");
        }
        None
    }

    async fn ask(&self, broker: u32, from: u64, to: u64) -> Result<Vec<Entry>, String> {
        let question = wire::encode_entries_wanted(self.group.0, from, to);
        let transport = &self.repairs.transport;
        let answer = transport.request(broker, question, ANSWER_TIMEOUT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        wire::decode_entries(&answer, from)
    }

    /// Writes entries again; they are on disk when this returns.
    async fn write(&self, entries: Vec<Entry>) -> io::Result<()> {
        let group = self.group;
        let (done, synced) = oneshot::channel();
        let done = Box::new(move |result| drop(done.send(result)));
        let submitted = self.repairs.blocking(move |store| {
            store.submit(group, Write::Repair(entries), Some(done));
        });
        submitted.await?;
        synced.await.map_err(io::Error::other)?
    }
}
