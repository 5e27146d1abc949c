//! Damaged records on one broker's disk: never served, spoken of by file, group and index, and healed from the others.

mod cluster;

use std::time::Duration;

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::damage::{self, blob_files, noise, read_patiently};
use cluster::kafka::{Kafka, code, eventually};
use drave_storage::{Engine, EngineOptions, LogStore};

const VALUE_BYTES: usize = 300_000;
/// More than the log between two checkpoints: the oldest are not read when a broker starts.
const RECORDS: i64 = 80;

fn value(offset: i64) -> String {
    noise(offset as u64 + 1, VALUE_BYTES)
}

fn produce(kafka: &Kafka, topic: &str, offsets: std::ops::Range<i64>) {
    for offset in offsets {
        let produced = kafka.produce(topic, 0, Batch::of(&[("k", &value(offset))]).encode());
        assert_eq!(
            (produced.error_code, produced.base_offset),
            (code::NONE, offset)
        );
    }
}

/// Reads everything and compares it; the errors on the way.
fn check(kafka: &Kafka, topic: &str) -> Vec<i16> {
    let (records, errors) = read_patiently(kafka, topic, 0, RECORDS);
    for (record, offset) in records.iter().zip(0..) {
        assert!(record.value == value(offset).as_bytes(), "offset {offset}");
    }
    errors
}

/// Stops a broker with its records in blob files: what was in its write-ahead log goes there when it is started again.
fn stop_with_blobs(cluster: &mut Cluster, id: i32) {
    for _ in 0..2 {
        cluster.node_mut(id).kill();
        cluster.node_mut(id).start();
        cluster.wait_ready();
    }
    cluster.node_mut(id).kill();
    assert!(!blob_files(&cluster.node(id).data()).is_empty());
}

/// Lines of a broker's log that have all of these words.
fn logged(cluster: &Cluster, id: i32, words: &[&str]) -> Vec<String> {
    let log = std::fs::read_to_string(cluster.node(id).log()).expect("a log");
    let has = |line: &&str| words.iter().all(|word| line.contains(word));
    log.lines().filter(has).map(str::to_owned).collect()
}

/// Waits until this broker leads the partition again, and all replicas are in sync.
fn wait_led_by(cluster: &Cluster, topic: &str, id: i32) {
    let kafka = Kafka::new(&cluster.address(id));
    eventually("the restarted broker to lead", || {
        let metadata = kafka.metadata(&[topic]).ok()?;
        let partition = &metadata.topics[0].partitions[0];
        (partition.leader_id.0 == id && partition.isr_nodes.len() == 3).then_some(())
    });
}

#[test]
fn a_damaged_leader_serves_no_wrong_byte_and_heals_from_the_others() {
    let mut cluster = Cluster::start();
    let topic = "rotten";
    let kafka = cluster.kafka();
    kafka.create(topic, 1, &[]);
    produce(&kafka, topic, 0..RECORDS);
    let leader = kafka.leaders(topic).expect("leaders")[&0];
    stop_with_blobs(&mut cluster, leader);

    // One that is only read for a client, and one that is read to apply it again.
    let data = cluster.node(leader).data();
    let file = damage::flip_payload(&data, &value(3)[..40]);
    damage::flip_payload(&data, &value(RECORDS - 2)[..40]);
    cluster.node_mut(leader).start();
    cluster.wait_ready();
    wait_led_by(&cluster, topic, leader);
    check(&kafka, topic);
    let lines = logged(&cluster, leader, &["ERROR", "a damaged entry"]);
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("group=g") && line.contains("index=")),
        "{lines:#?}"
    );
    assert!(
        lines.iter().any(|line| line.contains(&file)),
        "{file}: {lines:#?}"
    );
    assert_eq!(
        logged(&cluster, leader, &["damaged entries are healed"]).len(),
        2
    );

    // Cut in half, no blob file can be read at all.
    cluster.node_mut(leader).kill();
    for path in blob_files(&data) {
        let bytes = path.metadata().expect("a blob file").len();
        damage::cut(&path, bytes / 2);
    }
    cluster.node_mut(leader).start();
    cluster.wait_ready();
    wait_led_by(&cluster, topic, leader);
    check(&kafka, topic);

    // What is on its disk now is whole without the others.
    assert!(cluster.node_mut(leader).terminate().success());
    let store = Engine::open(&data.join("store"), EngineOptions::default()).expect("the store");
    let mut entries = 0;
    for group in store.groups().expect("groups") {
        let state = store.open_group(group).expect("a group");
        let (mut next, end) = (state.first_index(), state.next_index());
        while next < end {
            let read = store.read(group, next, end, 8 << 20);
            let read = read.unwrap_or_else(|error| panic!("{error}"));
            next = read.last().expect("an entry").index + 1;
            entries += read.len();
        }
    }
    assert!(entries as i64 > RECORDS, "{entries} entries");
}

#[test]
fn what_no_other_replica_has_is_refused_and_the_rest_is_served() {
    let mut cluster = Cluster::start_with(1, &[]);
    let topic = "alone";
    let kafka = cluster.kafka();
    kafka.create(topic, 1, &[]);
    produce(&kafka, topic, 0..RECORDS);
    stop_with_blobs(&mut cluster, 1);
    damage::flip_payload(&cluster.node(1).data(), &value(9)[..40]);
    cluster.node_mut(1).start();
    cluster.wait_ready();
    kafka.wait_leaders(topic, 1);
    // The first answers may come while others are still asked for the entry.
    let read_from = |offset: i64| {
        eventually("an answer", || {
            let mut leader = kafka.leader(topic, 0).ok()?;
            let data = cluster::kafka::fetch(&mut leader, topic, 0, offset, 1 << 20).ok()?;
            match data.error_code {
                code::NONE => Some(cluster::batch::records(&data.records.unwrap_or_default())),
                code::KAFKA_STORAGE_ERROR => None,
                error => panic!("error {error}"),
            }
        })
    };
    for offset in [0, 8, 10, RECORDS - 1] {
        let records = read_from(offset);
        let first = &records[0];
        assert_eq!(first.offset, offset);
        assert!(first.value == value(offset).as_bytes(), "offset {offset}");
        assert!(records.iter().all(|record| record.offset != 9));
    }
    for _ in 0..5 {
        assert_eq!(
            kafka.fetch(topic, 0, 9).error_code,
            code::KAFKA_STORAGE_ERROR
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    produce(&kafka, topic, RECORDS..RECORDS + 1);
    assert_eq!(
        logged(&cluster, 1, &["no live replica has the damaged entry"]).len(),
        1
    );
}
