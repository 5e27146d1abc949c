//! What is said of a cluster's availability. Times are microseconds since the scenario began.

use serde::{Deserialize, Serialize};

/// How well a cluster served its producers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Availability {
    /// By number of the partition.
    pub partitions: Vec<PartitionAvailability>,
    /// In the order of the history.
    pub faults: Vec<FaultImpact>,
    /// What the client said of records it gave up, most frequent first.
    pub errors: Vec<ErrorCount>,
    /// What made clients send batches again, which producers were not told; most frequent first.
    pub repeated: Vec<ErrorCount>,
    /// Of acknowledged writes.
    pub latency: LatencyByPhase,
    /// For plots.
    pub timeline: Timeline,
}

impl Availability {
    /// The longest time that any partition went without an acknowledgement.
    pub fn longest_gap(&self) -> Option<(u32, Gap)> {
        (self.partitions.iter())
            .filter_map(|it| Some((it.partition, it.longest_gap?)))
            .max_by_key(|(_, gap)| gap.length_us())
    }
}

/// A time in which a partition acknowledged nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// The acknowledgement before, or the first send.
    pub from_us: u64,
    /// The acknowledgement after, or the producers' stop.
    pub until_us: u64,
    /// Whether an acknowledgement ended it; if not, the producers' stop did.
    pub recovered: bool,
}

impl Gap {
    /// How long it was.
    pub fn length_us(&self) -> u64 {
        self.until_us.saturating_sub(self.from_us)
    }
}

/// How well one partition served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionAvailability {
    /// Its number.
    pub partition: u32,
    /// Records that it acknowledged.
    pub acknowledged: u64,
    /// The longest time without an acknowledgement; `None`: nothing was sent to it
    /// before the stop.
    pub longest_gap: Option<Gap>,
    /// All times without one that are longer than the threshold.
    pub outages: Vec<Gap>,
}

/// What a fault did to the partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultImpact {
    /// Its name.
    pub name: String,
    /// When it began.
    pub from_us: u64,
    /// When it was over.
    pub until_us: u64,
    /// What it did to each partition to which anything was sent.
    pub partitions: Vec<PartitionImpact>,
    /// From the beginning of the gap (of the fault, if that is later) to the next
    /// acknowledgement, over the interrupted partitions; `None`: it interrupted none.
    pub outage: Option<Spread>,
    /// From the beginning of the fault to the acknowledgement that ended the gap, over the
    /// interrupted partitions. More than `outage` where the gap began later than the fault.
    pub recovery: Option<Spread>,
}

/// What a fault did to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionImpact {
    /// Which partition.
    pub partition: u32,
    /// The longest gap that the fault can have caused.
    pub gap: Gap,
    /// Whether the gap is long enough not to be the pace of the load.
    pub interrupted: bool,
    /// From the beginning of the gap or the fault, whichever is later, to the gap's end.
    pub outage_us: u64,
    /// From the beginning of the fault to the gap's end.
    pub recovery_us: u64,
}

/// How some times are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Of how many.
    pub count: u64,
    /// Half of them are not above it.
    pub median_us: u64,
    /// The longest.
    pub worst_us: u64,
}

/// How often an error came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCount {
    /// Its text.
    pub error: String,
    /// Records that were given up for it, or batches that were sent again.
    pub count: u64,
}

/// Latency of acknowledged writes, from the send to the answer. A fault reaches from its
/// beginning to its end or to the recovery of the last partition it interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyByPhase {
    /// Answered before the first fault.
    pub before: Option<Latency>,
    /// Waiting at a moment that a fault reaches.
    pub during: Option<Latency>,
    /// Sent and answered between two faults.
    pub between: Option<Latency>,
    /// Sent after the last fault.
    pub after: Option<Latency>,
}

/// How long writes waited for their acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Of how many writes.
    pub count: u64,
    /// Half waited at most as long.
    pub p50_us: u64,
    /// 99 % waited at most as long.
    pub p99_us: u64,
    /// 99.9 % waited at most as long.
    pub p999_us: u64,
    /// The longest wait.
    pub max_us: u64,
}

/// The run in slices of equal width, from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// Width of a slice.
    pub bucket_us: u64,
    /// All slices, also those in which nothing happened.
    pub buckets: Vec<Bucket>,
}

/// One slice of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it begins.
    pub from_us: u64,
    /// Writes that were acknowledged in it.
    pub acknowledged: u64,
    /// Half of these had waited at most as long; `None`: there were none.
    pub p50_us: Option<u64>,
    /// 99 % of these had waited at most as long.
    pub p99_us: Option<u64>,
}
