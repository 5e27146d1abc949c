//! Opens the replicas that the metadata places on this broker and closes those
//! that are gone.
//!
//! One task owns the set of open replicas and the registry; opening and
//! closing run beside it, a bounded number at a time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use drave_raft::{COMMIT_NOTICE_WAIT, GroupId, GroupSpec, RaftNode, ReplicaId};
use drave_storage::SharedStore;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::machine::PartitionMachine;
use super::view::PartitionView;
use super::{Partition, Partitions};
use crate::metadata::image::{Image, PARTITION_GROUP_MIN, Placement};

/// Replicas that are opened or closed at the same time.
const WORKING_MAX: usize = 16;
/// Bytes of log after which a partition's small state is kept again.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// After this, a replica that could not be opened is tried again.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// What has been done to a group.
enum Done {
    Opened(GroupId, anyhow::Result<Arc<Partition>>),
    Closed(GroupId),
}

/// A placed partition.
#[derive(Clone)]
struct Placed {
    topic: String,
    index: i32,
    placement: Placement,
}

pub(super) struct Manager {
    partitions: Arc<Partitions>,
    raft: Arc<RaftNode>,
    store: SharedStore,
    open: HashMap<GroupId, Arc<Partition>>,
    /// Groups that something is being done to.
    busy: HashSet<GroupId>,
    wanted: HashMap<GroupId, Placed>,
    /// Groups placed on this broker, but on another directory than its own.
    displaced: HashSet<GroupId>,
    work: JoinSet<Done>,
    permits: Arc<Semaphore>,
    /// Partitions with entries in flight, counted by their appenders.
    busy_appenders: Arc<AtomicUsize>,
    orphans_erased: bool,
}

impl Manager {
    pub(super) fn new(
        partitions: Arc<Partitions>,
        raft: Arc<RaftNode>,
        store: SharedStore,
    ) -> Manager {
        Manager {
            partitions,
            raft,
            store,
            open: HashMap::new(),
            busy: HashSet::new(),
            wanted: HashMap::new(),
            displaced: HashSet::new(),
            work: JoinSet::new(),
            permits: Arc::new(Semaphore::new(WORKING_MAX)),
            busy_appenders: Arc::default(),
            orphans_erased: false,
        }
    }

    pub(super) async fn run(mut self, mut images: tokio::sync::watch::Receiver<Arc<Image>>) {
        loop {
            let image = Arc::clone(&images.borrow_and_update());
            self.follow(&image).await;
            // What was opened meanwhile shows at once; the image is looked at again when it changes.
            loop {
                tokio::select! {
                    changed = images.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return,
                    },
                    Some(done) = self.work.join_next() => match done {
                        Ok(done) => self.finished(done),
                        Err(error) => error!(%error, "opening or closing a partition failed"),
                    },
                }
            }
        }
    }

    async fn follow(&mut self, image: &Image) {
        let itself = self.raft.replica();
        self.wanted.clear();
        self.displaced.clear();
        for topic in image.topics.values() {
            for (index, placement) in topic.partitions.iter().enumerate() {
                let group = GroupId(placement.group);
                if placement.replicas.contains(&itself) {
                    if let Some(open) = self.raft.group(group) {
                        open.prefer(placement.replicas.clone());
                    }
                    let placed = Placed {
                        topic: topic.name.clone(),
                        index: index as i32,
                        placement: placement.clone(),
                    };
                    self.wanted.insert(group, placed);
                } else if placement.is_on(itself.broker) {
                    self.displaced.insert(group);
                }
            }
        }
        let gone: Vec<GroupId> = self
            .open
            .keys()
            .filter(|group| self.is_gone(**group))
            .copied()
            .collect();
        let closing: Vec<Arc<Partition>> = gone
            .iter()
            .filter_map(|group| self.open.remove(group))
            .collect();
        // Requests stop finding a partition before it is closed.
        let partitions = &self.partitions;
        let registry = partitions
            .registry
            .load()
            .updated(image, &partitions.config, &self.open);
        partitions.registry.store(Arc::new(registry));
        for partition in closing {
            self.close(partition);
        }
        let opening: Vec<GroupId> = self.wanted.keys().copied().collect();
        for group in opening {
            self.open(group);
        }
        self.erase_orphans(image, itself).await;
    }

    /// Whether a group is surely not placed on this broker any more. One that is
    /// placed on another directory of it is left as it is: what says so may be
    /// older than this process, and a replica that has forgotten its votes must
    /// not come back under the same id.
    fn is_gone(&self, group: GroupId) -> bool {
        !self.wanted.contains_key(&group) && !self.displaced.contains(&group)
    }

    fn finished(&mut self, done: Done) {
        match done {
            Done::Opened(group, Ok(partition)) => {
                self.busy.remove(&group);
                if self.is_gone(group) {
                    return self.close(partition);
                }
                if let Some(placed) = self.wanted.get(&group) {
                    // The placement may have changed while it was opened.
                    partition
                        .log
                        .group
                        .prefer(placed.placement.replicas.clone());
                }
                self.partitions.show(&partition);
                self.open.insert(group, partition);
            }
            Done::Opened(group, Err(error)) => {
                error!(%group, %error, "a partition can't be opened, trying again");
                self.work.spawn(async move {
                    tokio::time::sleep(OPEN_AGAIN).await;
                    Done::Closed(group)
                });
            }
            Done::Closed(group) => {
                self.busy.remove(&group);
                self.open(group);
            }
        }
    }

    /// Opens a group that is wanted, unless it is open or something is done to it.
    fn open(&mut self, group: GroupId) {
        let Some(placed) = self.wanted.get(&group) else {
            return;
        };
        if self.open.contains_key(&group) || !self.busy.insert(group) {
            return;
        }
        let (placed, raft) = (placed.clone(), Arc::clone(&self.raft));
        let (store, permits) = (Arc::clone(&self.store), Arc::clone(&self.permits));
        let busy = Arc::clone(&self.busy_appenders);
        self.work.spawn(async move {
            let _permit = permits.acquire().await;
            let view = Arc::new(PartitionView::default());
            let spec = GroupSpec {
                group,
                voters: placed.placement.first_voters(raft.replica()),
                checkpoint_bytes: CHECKPOINT_BYTES,
                purge_behind_checkpoints: None,
                commit_notice_wait: COMMIT_NOTICE_WAIT,
            };
            let machine = Box::new(PartitionMachine::new(Arc::clone(&view)));
            let opened = raft.open_group(spec, machine).await;
            let partition = opened.map(|open| {
                open.prefer(placed.placement.replicas);
                Partition::new(placed.topic, placed.index, open, store, view, busy)
            });
            Done::Opened(group, partition)
        });
    }

    /// Closes a replica that is no longer placed here, and frees its space.
    fn close(&mut self, partition: Arc<Partition>) {
        let group = partition.group();
        self.busy.insert(group);
        info!(%group, topic = partition.topic, partition = partition.index, "erasing a replica");
        let (raft, permits) = (Arc::clone(&self.raft), Arc::clone(&self.permits));
        self.work.spawn(async move {
            let _permit = permits.acquire().await;
            partition.close();
            drop(partition);
            raft.close_group(group, true).await;
            Done::Closed(group)
        });
    }

    /// Erases, once, groups of an earlier life whose topic was deleted while
    /// this broker was down. Only when the image is sure to be newer than any
    /// of them: when it has the registration of this very process.
    async fn erase_orphans(&mut self, image: &Image, itself: ReplicaId) {
        if self.orphans_erased {
            return;
        }
        let process = self
            .raft
            .peers()
            .into_iter()
            .find(|peer| peer.broker == itself.broker);
        let registered = image.brokers.get(&itself.broker);
        let current = registered
            .zip(process)
            .is_some_and(|(registered, process)| {
                registered.replica == itself && registered.incarnation == process.incarnation
            });
        if !current {
            return;
        }
        self.orphans_erased = true;
        let store = Arc::clone(&self.store);
        let held = match tokio::task::spawn_blocking(move || store.groups()).await {
            Ok(Ok(held)) => held,
            Ok(Err(error)) => return warn!(%error, "the groups held can't be listed"),
            Err(error) => return warn!(%error, "the groups held can't be listed"),
        };
        for group in held {
            let known = !self.is_gone(group) || self.busy.contains(&group);
            if group.0 < PARTITION_GROUP_MIN || known {
                continue;
            }
            info!(%group, "erasing a replica whose topic is gone");
            self.busy.insert(group);
            let (raft, store) = (Arc::clone(&self.raft), Arc::clone(&self.store));
            let permits = Arc::clone(&self.permits);
            self.work.spawn(async move {
                let _permit = permits.acquire().await;
                raft.close_group(group, true).await;
                // It was not open, so that its data is still there.
                let erased = tokio::task::spawn_blocking(move || {
                    store.submit(group, drave_storage::Write::Drop, None);
                });
                if let Err(error) = erased.await {
                    warn!(%group, %error, "a replica can't be erased");
                }
                Done::Closed(group)
            });
        }
    }
}
