//! Gets replication going again where openraft waits for a heartbeat.
//!
//! After a replica has installed a snapshot, openraft's leader sometimes sends
//! it nothing more until the next write or heartbeat. Heartbeats are off here
//! (see `crate::elections`), so a leader whose live replica stays behind
//! without moving writes a blank entry, which starts every replication anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use drave_storage::GroupId;
use openraft::async_runtime::WatchReceiver;
use tracing::{debug, info};

use crate::group::GroupInner;
use crate::node::NodeInner;

/// How often leaders look; what has not moved between two looks is stuck.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a blank entry may take.
const BLANK_TIMEOUT: Duration = Duration::from_secs(2);
/// Groups that are nudged in one look: others wait for the next.
const NUDGES_MAX: usize = 50;

/// Looks for stuck replicas of groups led here, for as long as the node runs.
pub(crate) async fn run_nudges(node: Arc<NodeInner>) {
    let mut before: HashMap<GroupId, u64> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let mut behind = HashMap::new();
        let mut stuck = Vec::new();
        for group in node.open_groups() {
            let Some(position) = slowest(&node, &group) else {
                continue;
            };
            if before.get(&group.id) == Some(&position) {
                stuck.push(group);
            } else {
                behind.insert(group.id, position);
            }
        }
        before = behind;
        stuck.truncate(NUDGES_MAX);
        for group in stuck {
            info!(group = %group.id, "a live replica stays behind, writing a blank entry");
            let blank = tokio::time::timeout(BLANK_TIMEOUT, group.write_blank());
            if !matches!(blank.await, Ok(true)) {
                debug!(group = %group.id, "the blank entry is not committed yet");
            }
        }
    }
}

/// The next index of the live replica that is furthest behind this leader, if one is.
fn slowest(node: &NodeInner, group: &GroupInner) -> Option<u64> {
    group.ready_term()?;
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    let end = metrics.last_log_index.map_or(0, |index| index + 1);
    let replicas = metrics.replication.iter().flatten();
    let live = replicas.filter(|(replica, _)| node.is_there(**replica));
    let next = live
        .map(|(_, id)| id.as_ref().map_or(0, |id| id.index() + 1))
        .min()?;
    (next < end).then_some(next)
}
