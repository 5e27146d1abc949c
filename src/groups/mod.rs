//! Consumer groups: which coordinator a group belongs to, and the coordinators
//! that have a replica on this broker.
//!
//! A group belongs to the coordinator at position `crc32c(group id) mod count`
//! of `Image::coordinators`, whose Raft group is `COORDINATOR_GROUP_MIN +
//! position`. This is persisted by what the coordinators hold: neither the
//! hash nor the count of a cluster may ever change.
//!
//! [`Groups`] is owned by the broker; one task of it opens coordinators as the
//! metadata places them here, and each coordinator has one task of its own.

pub mod command;
pub mod coordinator;
#[cfg(test)]
mod fuzz_tests;
pub mod machine;
pub mod membership;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use drave_raft::{COMMIT_NOTICE_WAIT, GroupId, GroupSpec, RaftNode};
use kafka_protocol::ResponseError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info};

use self::coordinator::{Coordinator, EXPIRE_INTERVAL};
use self::machine::CoordinatorMachine;
use self::membership::Limits;
use crate::metadata::image::{COORDINATOR_GROUP_MIN, Image};

/// Bytes of log after which a coordinator's state is checkpointed.
const CHECKPOINT_BYTES: u64 = 4 << 20;
/// A leader that may not serve yet looks again after this long.
const LOADING_POLL: Duration = Duration::from_millis(10);
/// Between two attempts to open a coordinator that failed to open.
const OPEN_RETRY: Duration = Duration::from_secs(1);

/// Settings of consumer groups, named as in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupsConfig {
    /// `group.initial.rebalance.delay.ms`
    pub initial_rebalance_delay_ms: u64,
    /// `group.min.session.timeout.ms`
    pub session_timeout_ms_min: i32,
    /// `group.max.session.timeout.ms`
    pub session_timeout_ms_max: i32,
    /// `group.max.size`
    pub members_max: usize,
    /// Bytes of metadata, or of assignments, of all members of a group together.
    pub group_bytes_max: usize,
    /// `offset.metadata.max.bytes`
    pub offset_metadata_bytes_max: usize,
    /// `offsets.retention.minutes`
    pub offsets_retention: Duration,
}

impl Default for GroupsConfig {
    fn default() -> GroupsConfig {
        GroupsConfig {
            initial_rebalance_delay_ms: 0,
            session_timeout_ms_min: 6_000,
            session_timeout_ms_max: 1_800_000,
            members_max: 10_000,
            group_bytes_max: 4 << 20,
            offset_metadata_bytes_max: 4096,
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// Where clients find a coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorAddress {
    /// Broker id.
    pub broker: u32,
    /// Host that clients are told.
    pub host: String,
    /// Port that clients are told.
    pub port: u16,
}

/// The consumer groups of this broker; see the module.
pub struct Groups {
    raft: Arc<RaftNode>,
    image: watch::Receiver<Arc<Image>>,
    config: GroupsConfig,
    coordinators: RwLock<BTreeMap<usize, Opened>>,
}

struct Opened {
    coordinator: Arc<Coordinator>,
    task: JoinHandle<()>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Groups {
    /// Starts to follow the metadata and to open what is placed here. Ends
    /// when the metadata's sender goes, or by aborting the returned task.
    pub fn start(
        raft: Arc<RaftNode>,
        image: watch::Receiver<Arc<Image>>,
        config: GroupsConfig,
    ) -> (Arc<Groups>, JoinHandle<()>) {
        let groups = Arc::new(Groups {
            raft,
            image,
            config,
            coordinators: RwLock::default(),
        });
        let task = tokio::spawn(follow_placement(groups.clone()));
        (groups, task)
    }

    /// The settings.
    pub fn config(&self) -> &GroupsConfig {
        &self.config
    }

    /// The metadata as this broker knows it.
    pub fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    /// The coordinator of a group, if it has a replica here. It refuses by
    /// itself when it does not lead.
    pub fn coordinator(&self, group: &str) -> Result<Arc<Coordinator>, ResponseError> {
        let count = self.image.borrow().coordinators.len();
        let position = position(group, count).ok_or(ResponseError::CoordinatorNotAvailable)?;
        let coordinators = self
            .coordinators
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let opened = coordinators
            .get(&position)
            .ok_or(ResponseError::NotCoordinator)?;
        Ok(opened.coordinator.clone())
    }

    /// Every coordinator with a replica here.
    pub fn coordinators(&self) -> Vec<Arc<Coordinator>> {
        let coordinators = self
            .coordinators
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        coordinators
            .values()
            .map(|opened| opened.coordinator.clone())
            .collect()
    }

    /// Where clients find the coordinator of a group.
    pub fn find(&self, group: &str) -> Result<CoordinatorAddress, ResponseError> {
        let image = self.image.borrow().clone();
        let not_available = ResponseError::CoordinatorNotAvailable;
        let position = position(group, image.coordinators.len()).ok_or(not_available)?;
        let leadership = self
            .raft
            .leadership(raft_group(position))
            .ok_or(not_available)?;
        let broker = image
            .brokers
            .get(&leadership.leader.broker)
            .ok_or(not_available)?;
        let host = broker.host.clone();
        Ok(CoordinatorAddress {
            broker: leadership.leader.broker,
            host,
            port: broker.port,
        })
    }

    /// Opens the coordinators that the metadata places here. False: one failed.
    async fn open_placed(&self, image: &Image) -> bool {
        let here = self.raft.replica();
        let mut complete = true;
        for (position, placement) in image.coordinators.iter().enumerate() {
            if !placement.replicas.contains(&here) {
                continue;
            }
            if self.is_open(position) {
                if let Some(open) = self.raft.group(raft_group(position)) {
                    open.prefer(placement.replicas.clone());
                }
                continue;
            }
            let (machine, view) = CoordinatorMachine::new();
            let spec = GroupSpec {
                group: raft_group(position),
                voters: placement.first_voters(here),
                checkpoint_bytes: CHECKPOINT_BYTES,
                purge_behind_checkpoints: Some(1),
                commit_notice_wait: COMMIT_NOTICE_WAIT,
            };
            let group = match self.raft.open_group(spec, Box::new(machine)).await {
                Ok(group) => group,
                Err(reason) => {
                    error!(position, %reason, "coordinator can't be opened");
                    complete = false;
                    continue;
                }
            };
            group.prefer(placement.replicas.clone());
            let limits = Limits {
                initial_rebalance_delay_ms: self.config.initial_rebalance_delay_ms,
                members_max: self.config.members_max,
                bytes_max: self.config.group_bytes_max,
            };
            let coordinator = Coordinator::new(group, here, view, limits);
            let retention = self.config.offsets_retention;
            let task = tokio::spawn(run(coordinator.clone(), self.image.clone(), retention));
            info!(position, "coordinator opened");
            self.coordinators
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(position, Opened { coordinator, task });
        }
        complete
    }

    fn is_open(&self, position: usize) -> bool {
        let coordinators = self
            .coordinators
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        coordinators.contains_key(&position)
    }

    /// Closes the coordinators that the metadata has moved elsewhere. Their
    /// data stays: only whoever moves replicas knows when it may go.
    async fn close_moved(&self, image: &Image) {
        let here = self.raft.replica();
        let stays = |position: usize| {
            // No coordinators at all: the metadata is not there yet.
            image.coordinators.is_empty()
                || image
                    .coordinators
                    .get(position)
                    .is_some_and(|placement| placement.replicas.contains(&here))
        };
        let moved: Vec<usize> = {
            let mut coordinators = self
                .coordinators
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let moved = coordinators
                .keys()
                .copied()
                .filter(|at| !stays(*at))
                .collect::<Vec<_>>();
            coordinators.retain(|position, _| stays(*position));
            moved
        };
        for position in moved {
            self.raft.close_group(raft_group(position), false).await;
            info!(position, "coordinator closed");
        }
    }
}

/// The coordinator of a group: CRC-32C of its id, modulo their number. Persisted; see the module.
pub fn position(group: &str, count: usize) -> Option<usize> {
    usize::try_from(crc32c::crc32c(group.as_bytes()))
        .ok()?
        .checked_rem(count)
}

fn raft_group(position: usize) -> GroupId {
    GroupId(COORDINATOR_GROUP_MIN + position as u64)
}

async fn follow_placement(groups: Arc<Groups>) {
    let mut changes = groups.image.clone();
    loop {
        let image = changes.borrow_and_update().clone();
        groups.close_moved(&image).await;
        if !groups.open_placed(&image).await {
            tokio::time::sleep(OPEN_RETRY).await;
            continue;
        }
        // Other changes of the metadata don't matter here.
        let placed = |now: &Arc<Image>| now.coordinators != image.coordinators;
        if changes.wait_for(placed).await.is_err() {
            return;
        }
    }
}

/// The task of one coordinator.
async fn run(
    coordinator: Arc<Coordinator>,
    mut image: watch::Receiver<Arc<Image>>,
    retention: Duration,
) {
    let mut leadership = coordinator.raft_group().watch_leadership();
    let mut expire_at = Instant::now() + EXPIRE_INTERVAL;
    let mut seen = image.borrow().clone();
    let mut led = false;
    loop {
        leadership.borrow_and_update();
        let settled = coordinator.follow_leadership();
        let leads = coordinator.raft_group().ready_term().is_some();
        if leads && !led {
            // What was deleted while others led, or nobody did.
            let now = image.borrow_and_update().clone();
            coordinator.drop_deleted_topics(&now).await;
            seen = now;
        }
        led = leads;
        let deadline = match coordinator.next_deadline() {
            _ if !settled => Some(Instant::now() + LOADING_POLL),
            deadline => deadline,
        };
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = sleep_until(deadline) => coordinator.tick(),
            () = coordinator.rescheduled.notified() => {}
            () = tokio::time::sleep_until(expire_at), if leads => {
                expire_at = Instant::now() + EXPIRE_INTERVAL;
                coordinator.expire_offsets(retention).await;
            }
            changed = image.changed() => {
                if changed.is_err() { return }
                let now = image.borrow_and_update().clone();
                let deleted = |id| !now.topic_names.contains_key(id);
                if leads && seen.topic_names.keys().any(deleted) {
                    coordinator.drop_deleted_topics(&now).await;
                }
                seen = now;
            }
        }
    }
}

/// Sleeps for ever without a deadline.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_never_changes_its_coordinator() {
        assert_eq!(position("123456789", 1 << 32), Some(0xe306_9283));
        assert_eq!(
            position("orders-readers", 16),
            position("orders-readers", 16)
        );
        assert_eq!(position("any", 0), None);
    }
}
