//! Partitions: the records of one are the log of one Raft group.
//!
//! [`Partitions`] owns every replica on this broker. A produce request pushes
//! into a partition's [`append::Appender`]; the [`machine`] gives offsets when
//! the entry is committed; a fetch reads through the [`view`] that the machine
//! keeps, by [`read`], and waits in [`wait`]. Nothing here knows a request.

pub mod append;
pub mod batches;
pub mod command;
pub mod encoding;
pub mod epochs;
pub mod fetch_sessions;
#[cfg(test)]
mod fuzz_tests;
pub mod index;
pub mod machine;
mod manager;
pub mod offsets;
pub mod producers;
pub mod read;
mod record_times;
pub mod registry;
mod retention;
pub mod view;
pub mod wait;

#[cfg(test)]
mod machine_tests;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use drave_raft::{Group, GroupId, Leadership, PeerStatus, RaftNode, ReplicaId};
use drave_storage::SharedStore;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::disk::Disk;
use crate::limits::FETCH_HELD_BYTES_MAX;
use crate::metadata::Metadata;
use crate::metadata::image::Image;
use append::{AppendError, AppendResult, Appender};
use fetch_sessions::FetchSessions;
use read::{ReadError, Records, ReplicaLog, TailRead, Wanted};
use registry::Registry;
use view::PartitionView;

/// Reads from the store that run at the same time.
const STORE_READS_MAX: usize = 16;

/// A replica of a partition on this broker.
pub struct Partition {
    /// Its topic's name.
    pub topic: String,
    /// Its number.
    pub index: i32,
    /// What its machine shows.
    pub view: Arc<PartitionView>,
    log: ReplicaLog,
    appender: Arc<Appender>,
    retention: retention::Progress,
    closed: AtomicBool,
}

impl Partition {
    fn new(
        topic: String,
        index: i32,
        group: Group,
        store: SharedStore,
        view: Arc<PartitionView>,
        busy: Arc<AtomicUsize>,
    ) -> Arc<Partition> {
        let appender = Appender::new(group.clone(), busy);
        let log = ReplicaLog { group, store };
        Arc::new(Partition {
            topic,
            index,
            view,
            log,
            appender,
            retention: retention::Progress::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// Its Raft group.
    pub fn group(&self) -> GroupId {
        self.log.group.id()
    }

    /// The leader epoch while this replica leads and may serve.
    pub fn serving_epoch(&self) -> Option<i32> {
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.log
            .group
            .ready_term()
            .map(|term| i32::try_from(term).unwrap_or(i32::MAX))
    }

    /// Queues one validated batch, in the order of the calls; see [`Appender::push`].
    pub fn append(
        &self,
        batch: Bytes,
        reply: Option<oneshot::Sender<AppendResult>>,
    ) -> Result<(), AppendError> {
        self.appender.push(batch, reply)
    }

    /// Reads from memory only; never waits.
    pub fn read_tail(&self, wanted: Wanted) -> Result<TailRead, ReadError> {
        read::read_tail(&self.view, &self.log, wanted)
    }

    /// Bytes on disk, approximately.
    pub fn size_on_disk(&self) -> u64 {
        self.log.store.size_on_disk(self.group())
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.appender.fail_waiting(AppendError::NotLeader);
        self.view.waiters.wake_all();
    }
}

/// Every partition, as this broker knows it.
pub struct Partitions {
    config: Arc<Config>,
    raft: Arc<RaftNode>,
    metadata: Arc<Metadata>,
    /// What clients have said that they read.
    pub fetch_sessions: FetchSessions,
    /// The disk that the replicas are on.
    pub disk: Arc<Disk>,
    /// What all replies with records may hold, in KiB.
    pub fetch_budget: Arc<Semaphore>,
    peers: watch::Receiver<Vec<PeerStatus>>,
    registry: ArcSwap<Registry>,
    store_reads: Semaphore,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Partitions {
    /// Follows the metadata from now on: opens and closes replicas in the background.
    pub fn start(
        config: Arc<Config>,
        raft: Arc<RaftNode>,
        store: SharedStore,
        metadata: Arc<Metadata>,
        disk: Arc<Disk>,
    ) -> Arc<Partitions> {
        let partitions = Arc::new(Partitions {
            config,
            disk,
            peers: raft.watch_peers(),
            fetch_sessions: FetchSessions::default(),
            fetch_budget: Arc::new(Semaphore::new(FETCH_HELD_BYTES_MAX / 1024)),
            registry: ArcSwap::default(),
            store_reads: Semaphore::new(STORE_READS_MAX),
            tasks: Mutex::default(),
            raft: Arc::clone(&raft),
            metadata: Arc::clone(&metadata),
        });
        let manager = manager::Manager::new(Arc::clone(&partitions), raft, store);
        let tasks = vec![
            tokio::spawn(manager.run(metadata.watch())),
            tokio::spawn(retention::run(Arc::clone(&partitions))),
        ];
        *partitions
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = tasks;
        partitions
    }

    /// Stops opening and closing replicas and deleting old records; the
    /// replicas that are open are closed with the node.
    pub fn stop(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for task in tasks.drain(..) {
            task.abort();
        }
    }

    /// The topics, for the look-ups of one request.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.load_full()
    }

    /// The metadata as it is now.
    pub fn image(&self) -> Arc<Image> {
        self.metadata.image()
    }

    /// Who leads a group, as far as known here.
    pub fn leadership(&self, group: GroupId) -> Option<Leadership> {
        self.raft.leadership(group)
    }

    /// This broker's id.
    pub fn broker(&self) -> u32 {
        self.raft.replica().broker
    }

    /// How many of these replicas are on brokers that are alive.
    pub fn alive(&self, replicas: &[ReplicaId]) -> usize {
        let peers = self.peers.borrow();
        let itself = self.raft.replica();
        let alive = |replica: &&ReplicaId| {
            **replica == itself
                || peers
                    .iter()
                    .any(|peer| peer.alive && peer.replica == Some(**replica))
        };
        replicas.iter().filter(alive).count()
    }

    /// The replica of a partition that is open here.
    pub fn partition(&self, topic: &str, index: i32) -> Option<Arc<Partition>> {
        self.registry
            .load()
            .by_name(topic)?
            .partition(index)?
            .replica()
    }

    /// Every replica that is open here.
    pub fn replicas(&self) -> Vec<Arc<Partition>> {
        let registry = self.registry.load();
        let slots = registry.topics().flat_map(|topic| &topic.partitions);
        slots.filter_map(|slot| slot.replica()).collect()
    }

    /// Bytes that a group takes up on this broker's disk, if it is open here.
    pub fn size_of(&self, group: GroupId) -> Option<u64> {
        let registry = self.registry.load();
        let mut slots = registry.topics().flat_map(|topic| &topic.partitions);
        let slot = slots.find(|slot| slot.group == group)?;
        slot.replica().map(|replica| replica.size_on_disk())
    }

    /// Reads from memory or disk, on a thread that may block.
    pub async fn read_stored(
        &self,
        partition: Arc<Partition>,
        wanted: Wanted,
    ) -> Result<Records, ReadError> {
        self.blocking(move || read::read_stored(&partition.view, &partition.log, wanted))
            .await
    }

    /// Runs what may block, a bounded number at a time.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let _permit = self.store_reads.acquire().await;
        match tokio::task::spawn_blocking(work).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(ReadError::Stopping),
        }
    }

    /// Shows a replica that has been opened to requests.
    fn show(&self, partition: &Arc<Partition>) {
        let registry = self.registry.load();
        let topic = registry.by_name(&partition.topic);
        let slot = topic.and_then(|topic| topic.partition(partition.index));
        if let Some(slot) = slot.filter(|slot| slot.group == partition.group()) {
            slot.replica.store(Some(Arc::clone(partition)));
        }
    }
}
