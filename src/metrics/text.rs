//! A snapshot as text: the samples of every series, encoded by `prometheus-client`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::registry::Registry;

use super::series::{PREFIX, SERIES, Value};
use super::snapshot::Snapshot;

impl Snapshot {
    /// In OpenMetrics' text format, which Prometheus reads.
    pub fn into_text(self) -> String {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        text::encode(&mut written, &registry).expect("a string takes everything");
        written
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for series in SERIES {
            let mut metric =
                encoder.encode_descriptor(series.name, series.help, None, series.kind)?;
            for sample in (series.samples)(self) {
                if sample.labels.is_empty() {
                    encode_value(&mut metric, &sample.value)?;
                    continue;
                }
                let labels: Vec<_> = (series.labels.iter().copied()).zip(sample.labels).collect();
                encode_value(&mut metric.encode_family(&labels)?, &sample.value)?;
            }
        }
        Ok(())
    }
}

fn encode_value(metric: &mut MetricEncoder<'_>, value: &Value<'_>) -> fmt::Result {
    match value {
        Value::Counter(count) => metric.encode_counter::<NoLabelSet, _, u64>(count, None),
        Value::Gauge(value) => metric.encode_gauge(value),
        Value::Histogram(counts) => metric.encode_histogram::<NoLabelSet>(
            counts.sum_seconds,
            counts.count(),
            &counts.buckets,
            None,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kafka_protocol::messages::ApiKey;

    use super::*;
    use crate::metrics::Requests;
    use crate::metrics::snapshot::Offsets;
    use crate::server::Served;

    fn snapshot() -> Snapshot {
        let requests = Requests::default();
        requests.count(&Served {
            api_key: ApiKey::Produce as i16,
            request_bytes: 1_000,
            response_bytes: 50,
            took: Duration::from_millis(4),
        });
        Snapshot {
            requests: requests.counted(),
            partitions: vec![Offsets {
                topic: "orders".to_owned(),
                partition: 2,
                log_end: 7,
                high_watermark: 6,
                log_start: 3,
                pending_entries: 1,
            }],
            groups_led: [("partition", 5)].into(),
            peers: vec![(2, 77)],
            ..Snapshot::default()
        }
    }

    #[test]
    fn every_value_stands_on_a_line_of_its_own() {
        let text = snapshot().into_text();
        for line in [
            "# HELP drave_requests Client requests completed.",
            "# TYPE drave_requests counter",
            "drave_requests_total{api=\"Produce\"} 1",
            "drave_requests_total{api=\"Fetch\"} 0",
            "drave_request_bytes_total{api=\"Produce\"} 1000",
            "drave_response_bytes_total{api=\"Produce\"} 50",
            "# TYPE drave_request_duration_seconds histogram",
            "drave_request_duration_seconds_sum{api=\"Produce\"} 0.004",
            "drave_request_duration_seconds_count{api=\"Produce\"} 1",
            "drave_request_duration_seconds_bucket{le=\"0.0025\",api=\"Produce\"} 0",
            "drave_request_duration_seconds_bucket{le=\"0.005\",api=\"Produce\"} 1",
            "drave_request_duration_seconds_bucket{le=\"+Inf\",api=\"Produce\"} 1",
            "drave_partition_log_end_offset{topic=\"orders\",partition=\"2\"} 7",
            "drave_partition_high_watermark{topic=\"orders\",partition=\"2\"} 6",
            "drave_partition_log_start_offset{topic=\"orders\",partition=\"2\"} 3",
            "drave_partition_pending_entries{topic=\"orders\",partition=\"2\"} 1",
            "drave_replicas_behind 0",
            "drave_groups_led{kind=\"partition\"} 5",
            "drave_storage_sync_duration_seconds_count 0",
            "drave_peer_queue_bytes{broker=\"2\"} 77",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n"));
    }

    #[test]
    fn names_keep_to_the_conventions() {
        let snapshot = snapshot();
        for series in SERIES {
            let legal = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(series.name.chars().all(legal), "{}", series.name);
            let help = series.help;
            assert!(help.ends_with('.') && !help.contains('\n'), "{help}");
            for sample in (series.samples)(&snapshot) {
                assert_eq!(sample.labels.len(), series.labels.len(), "{}", series.name);
            }
        }
    }
}
