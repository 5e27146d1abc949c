//! Every series of `/metrics`: its name, what it means and where its samples
//! come from. docs/OPERATIONS.md has the same table, written from this one.

use std::borrow::Cow;

use drave_storage::DurationCounts;
use prometheus_client::metrics::MetricType;

use super::requests::ApiRequests;
use super::snapshot::{Offsets, Snapshot};

/// What all names begin with.
pub const PREFIX: &str = "drave";

/// A family of samples that differ in their labels.
pub struct Series {
    /// Its name, without [`PREFIX`] and a counter's `_total`.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means; one sentence.
    pub help: &'static str,
    pub(super) samples: fn(&Snapshot) -> Vec<Sample<'_>>,
}

/// One value.
pub(super) struct Sample<'a> {
    /// In the order of the series' labels.
    pub(super) labels: Vec<Cow<'a, str>>,
    pub(super) value: Value<'a>,
}

pub(super) enum Value<'a> {
    Counter(u64),
    Gauge(i64),
    Histogram(&'a DurationCounts),
}

impl Series {
    /// The name of its samples; of a histogram, what comes before `_bucket`, `_count` and `_sum`.
    pub fn sample_name(&self) -> String {
        let suffix = match self.kind {
            MetricType::Counter => "_total",
            _ => "",
        };
        format!("{PREFIX}_{}{suffix}", self.name)
    }
}

/// Every series.
pub const SERIES: &[Series] = &[
    Series {
        name: "requests",
        kind: MetricType::Counter,
        labels: &["api"],
        help: "Client requests completed.",
        samples: |now| per_api(now, |api| Value::Counter(api.durations.count())),
    },
    Series {
        name: "request_bytes",
        kind: MetricType::Counter,
        labels: &["api"],
        help: "Bytes of those requests, with length and header.",
        samples: |now| per_api(now, |api| Value::Counter(api.request_bytes)),
    },
    Series {
        name: "response_bytes",
        kind: MetricType::Counter,
        labels: &["api"],
        help: "Bytes of their replies, with length and header.",
        samples: |now| per_api(now, |api| Value::Counter(api.response_bytes)),
    },
    Series {
        name: "request_duration_seconds",
        kind: MetricType::Histogram,
        labels: &["api"],
        help: "Time from a request read to its reply ready to be sent; waits of fetches and group members count.",
        samples: |now| per_api(now, |api| Value::Histogram(&api.durations)),
    },
    Series {
        name: "request_bytes_in_use",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Bytes of requests being read or not yet answered; bounded by request_bytes_in_flight_max.",
        samples: |now| one(Value::Gauge(now.request_bytes_in_use as i64)),
    },
    Series {
        name: "partition_log_end_offset",
        kind: MetricType::Gauge,
        labels: &["topic", "partition"],
        help: "Offset after the last record that the replica here has applied; offsets are given when records are committed.",
        samples: |now| per_partition(now, |offsets| offsets.log_end),
    },
    Series {
        name: "partition_high_watermark",
        kind: MetricType::Gauge,
        labels: &["topic", "partition"],
        help: "Offset after the last record that the replica here knows to be committed and lets clients read.",
        samples: |now| per_partition(now, |offsets| offsets.high_watermark),
    },
    Series {
        name: "partition_log_start_offset",
        kind: MetricType::Gauge,
        labels: &["topic", "partition"],
        help: "First offset that can be read.",
        samples: |now| per_partition(now, |offsets| offsets.log_start),
    },
    Series {
        name: "partition_pending_entries",
        kind: MetricType::Gauge,
        labels: &["topic", "partition"],
        help: "Log entries stored here that are not yet committed and applied.",
        samples: |now| per_partition(now, |offsets| offsets.pending_entries as i64),
    },
    Series {
        name: "replicas_behind",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Replicas, on any broker, of the partitions led here that are dead or out of sync.",
        samples: |now| one(Value::Gauge(now.replicas_behind as i64)),
    },
    Series {
        name: "replicas_catching_up",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Replicas placed on this broker that are still being rebuilt, or know of no leader; internal groups count too.",
        samples: |now| {
            let known = now.replicas_catching_up.into_iter();
            known
                .flat_map(|count| one(Value::Gauge(i64::from(count))))
                .collect()
        },
    },
    Series {
        name: "groups_led",
        kind: MetricType::Gauge,
        labels: &["kind"],
        help: "Raft groups that this broker leads: metadata, coordinator or partition.",
        samples: |now| {
            let sample = |(kind, count): (&&'static str, &usize)| Sample {
                labels: vec![Cow::Borrowed(*kind)],
                value: Value::Gauge(*count as i64),
            };
            now.groups_led.iter().map(sample).collect()
        },
    },
    Series {
        name: "storage_sync_duration_seconds",
        kind: MetricType::Histogram,
        labels: &[],
        help: "Time that each fsync of the write-ahead log took.",
        samples: |now| one(Value::Histogram(&now.store.syncs)),
    },
    Series {
        name: "storage_queue_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Bytes that wait to be written to the store.",
        samples: |now| one(Value::Gauge(now.store.queued_bytes as i64)),
    },
    Series {
        name: "storage_unsynced_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Bytes written to the store that wait for an fsync.",
        samples: |now| one(Value::Gauge(now.store.unsynced_bytes as i64)),
    },
    Series {
        name: "disk_free_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Room on the disk of the data directory, less what the store is going to write.",
        samples: |now| one(Value::Gauge(now.disk.free as i64)),
    },
    Series {
        name: "disk_reserve_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Room that is kept free: producers are refused while there is less.",
        samples: |now| one(Value::Gauge(now.disk_reserve as i64)),
    },
    Series {
        name: "disk_size_bytes",
        kind: MetricType::Gauge,
        labels: &[],
        help: "Size of that disk.",
        samples: |now| one(Value::Gauge(now.disk.total as i64)),
    },
    Series {
        name: "peer_queue_bytes",
        kind: MetricType::Gauge,
        labels: &["broker"],
        help: "Bytes that wait to be sent to another broker.",
        samples: |now| {
            let sample = |(broker, bytes): &(u32, usize)| Sample {
                labels: vec![Cow::Owned(broker.to_string())],
                value: Value::Gauge(*bytes as i64),
            };
            now.peers.iter().map(sample).collect()
        },
    },
];

fn one(value: Value<'_>) -> Vec<Sample<'_>> {
    let labels = Vec::new();
    vec![Sample { labels, value }]
}

fn per_api<'a>(now: &'a Snapshot, value: fn(&'a ApiRequests) -> Value<'a>) -> Vec<Sample<'a>> {
    let sample = |requests: &'a ApiRequests| Sample {
        labels: vec![Cow::Owned(format!("{:?}", requests.api))],
        value: value(requests),
    };
    now.requests.iter().map(sample).collect()
}

fn per_partition<'a>(now: &'a Snapshot, value: fn(&Offsets) -> i64) -> Vec<Sample<'a>> {
    let sample = |offsets: &'a Offsets| Sample {
        labels: vec![
            Cow::Borrowed(offsets.topic.as_str()),
            Cow::Owned(offsets.partition.to_string()),
        ],
        value: Value::Gauge(value(offsets)),
    };
    now.partitions.iter().map(sample).collect()
}
