//! The broker at the moment of a scrape, read off its live state.

use std::collections::BTreeMap;

use drave_raft::GroupStatus;
use drave_storage::{Room, StoreActivity};

use super::requests::ApiRequests;
use crate::metadata::image::{METADATA_GROUP, PARTITION_GROUP_MIN};
use crate::metadata::{progress, view::ClusterView};
use crate::node::Broker;
use crate::server::Budget;

/// All that `/metrics` shows.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What clients have asked for.
    pub requests: Vec<ApiRequests>,
    /// The partitions with a replica here, by topic and number.
    pub partitions: Vec<Offsets>,
    /// Replicas of the partitions led here that are dead or out of sync.
    pub replicas_behind: usize,
    /// Replicas placed here that are still being rebuilt, once that is known.
    pub replicas_catching_up: Option<u32>,
    /// How many Raft groups of each kind this broker leads.
    pub groups_led: BTreeMap<&'static str, usize>,
    /// What the disk is busy with.
    pub store: StoreActivity,
    /// The room on its file system.
    pub disk: Room,
    /// What is kept free there.
    pub disk_reserve: u64,
    /// Bytes of requests that are being read or not yet answered.
    pub request_bytes_in_use: usize,
    /// Bytes that wait to be sent to each of the other brokers.
    pub peers: Vec<(u32, usize)>,
}

/// A replica of a partition.
#[derive(Clone, Debug, Default)]
pub struct Offsets {
    /// The partition's topic.
    pub topic: String,
    /// Its number.
    pub partition: usize,
    /// The offset after the last record that this replica has applied.
    pub log_end: i64,
    /// The offset after the last record that it lets clients read.
    pub high_watermark: i64,
    /// The first offset that can be read.
    pub log_start: i64,
    /// Log entries stored here that are not yet committed and applied.
    pub pending_entries: u64,
}

impl Snapshot {
    /// The broker now. Takes time in proportion to the partitions here.
    pub fn of(broker: &Broker, budget: &Budget) -> Snapshot {
        let mut snapshot = Snapshot {
            requests: broker.requests.counted(),
            groups_led: groups_led(broker),
            store: broker.store.activity(),
            disk: broker.partitions.disk.room(),
            disk_reserve: broker.partitions.disk.reserve(),
            request_bytes_in_use: budget.in_use(),
            peers: broker.raft.queued_bytes(),
            ..Snapshot::default()
        };
        snapshot.peers.sort_unstable();
        let cluster = ClusterView::now(broker.metadata.image(), &broker.raft);
        let progress = progress::of_this_broker(&cluster.image, &broker.raft);
        snapshot.replicas_catching_up = progress.map(|progress| progress.catching_up);
        for topic in broker.partitions.registry().topics() {
            let placements = topic.topic.partitions.iter();
            for (number, (slot, placement)) in topic.partitions.iter().zip(placements).enumerate() {
                let Some(replica) = slot.replica() else {
                    continue;
                };
                if replica.serving_epoch().is_some() {
                    let shown = cluster.partition(placement);
                    snapshot.replicas_behind += shown.replicas.len() - shown.in_sync.len();
                }
                let status = broker.raft.group(slot.group).map(|group| group.status());
                snapshot.partitions.push(Offsets {
                    topic: topic.topic.name.clone(),
                    partition: number,
                    log_end: replica.view.read().next_offset,
                    high_watermark: replica.view.high_watermark(),
                    log_start: replica.view.log_start_offset(),
                    pending_entries: status.as_ref().map_or(0, pending_entries),
                });
            }
        }
        let place = |offsets: &Offsets| (offsets.topic.clone(), offsets.partition);
        snapshot.partitions.sort_by_cached_key(place);
        snapshot
    }
}

fn groups_led(broker: &Broker) -> BTreeMap<&'static str, usize> {
    let mut led = BTreeMap::from([("coordinator", 0), ("metadata", 0), ("partition", 0)]);
    for group in broker.raft.groups_led() {
        let kind = match group {
            METADATA_GROUP => "metadata",
            group if group.0 < PARTITION_GROUP_MIN => "coordinator",
            _ => "partition",
        };
        *led.entry(kind).or_default() += 1;
    }
    led
}

fn pending_entries(status: &GroupStatus) -> u64 {
    let end = |last: Option<u64>| last.map_or(0, |index| index + 1);
    end(status.last_index).saturating_sub(end(status.applied))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_and_not_applied_is_pending() {
        let pending = |last_index, applied| {
            pending_entries(&GroupStatus {
                last_index,
                applied,
                ..GroupStatus::default()
            })
        };
        assert_eq!(pending(None, None), 0);
        assert_eq!(pending(Some(0), None), 1);
        assert_eq!(pending(Some(9), Some(6)), 3);
        // The two are not read at the same moment.
        assert_eq!(pending(Some(6), Some(9)), 0);
    }
}
