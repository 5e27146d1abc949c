//! Handing leadership over: to the preferred replica when it is back, and to
//! anyone when this node stops.
//!
//! Once openraft has been told to hand over, that leader takes no write any
//! more, whether the other one takes over or not. So a transfer that was begun
//! is repeated, to each live voter in turn, until this replica leads no more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::group::GroupInner;
use crate::node::NodeInner;
use crate::types::ReplicaId;

/// How often leaders look whether the preferred replica is back.
const BALANCE_EVERY: Duration = Duration::from_secs(5);
/// How long the preferred replica's node has to be alive first.
const BALANCE_CALM: Duration = Duration::from_secs(5);
/// Groups that are handed back in one look: others wait for the next.
const BALANCE_BATCH: usize = 100;
/// A preferred replica that lacks more entries than this catches up first.
const BALANCE_LAG_ENTRIES: u64 = 16;
/// How long one voter is given to take over.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Hands a group over, to `to` if it can, and returns when this replica leads no more.
pub(crate) async fn hand_over(node: Arc<NodeInner>, group: Arc<GroupInner>, to: ReplicaId) {
    if group.transferring.swap(true, Ordering::AcqRel) {
        return;
    }
    let term = group.leading_term();
    // A replica that has written nothing since its process began does not know how far its log is on disk, and would
    // refuse to lead, again and again: it is given something to write.
    if !matches!(
        tokio::time::timeout(ATTEMPT, group.write_blank()).await,
        Ok(true)
    ) {
        debug!(group = %group.id, "no entry could be written before handing over");
    }
    let mut next = Some(to);
    while term.is_some() && group.leading_term() == term {
        let Some(to) = next.take().or_else(|| successor(&node, &group)) else {
            tokio::time::sleep(ATTEMPT).await;
            continue;
        };
        debug!(group = %group.id, %to, "handing over");
        if group.raft.trigger().transfer_leader(to).await.is_err() {
            break;
        }
        let mut metrics = group.raft.server_metrics();
        let deadline = Instant::now() + ATTEMPT;
        while group.leading_term() == term {
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { break },
                () = tokio::time::sleep_until(deadline) => break,
                () = group.closed() => break,
            }
        }
        if group.is_closed() {
            break;
        }
    }
    group.transferring.store(false, Ordering::Release);
}

/// The live voter with the longest log.
pub(crate) fn successor(node: &NodeInner, group: &GroupInner) -> Option<ReplicaId> {
    let metrics = group.raft.metrics().borrow_watched().clone();
    let matched = metrics.replication.unwrap_or_default();
    let voters = metrics.membership_config.membership().voter_ids();
    let others = voters.filter(|voter| *voter != node.replica && node.is_there(*voter));
    others.max_by_key(|voter| matched.get(voter).cloned().flatten())
}

/// Gives leadership back to preferred replicas, for as long as the node runs.
pub(crate) async fn run_balance(node: Arc<NodeInner>) {
    loop {
        tokio::time::sleep(BALANCE_EVERY).await;
        let mut due = node.open_groups();
        due.retain(|group| is_due(&node, group));
        due.truncate(BALANCE_BATCH);
        if !due.is_empty() {
            info!(
                groups = due.len(),
                "handing leadership back to preferred replicas"
            );
        }
        for group in due {
            if let Some(&preferred) = group.preferred().first() {
                tokio::spawn(hand_over(node.clone(), group, preferred));
            }
        }
    }
}

fn is_due(node: &NodeInner, group: &GroupInner) -> bool {
    let placed = group.preferred();
    let Some(preferred) = placed.first() else {
        return false;
    };
    if *preferred == node.replica || group.ready_term().is_none() {
        return false;
    }
    if !node.is_calm(*preferred, BALANCE_CALM) || !group.voters().contains(preferred) {
        return false;
    }
    let metrics = group.raft.metrics().borrow_watched().clone();
    let matched = metrics
        .replication
        .unwrap_or_default()
        .get(preferred)
        .cloned()
        .flatten();
    let next = |index: Option<u64>| index.map_or(0, |index| index + 1);
    let lag = next(metrics.last_log_index).saturating_sub(next(matched.map(|id| id.index())));
    lag <= BALANCE_LAG_ENTRIES
}
