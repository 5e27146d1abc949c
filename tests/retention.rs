//! Old records: deleted by time, by size and when a client asks, on every replica, and their space with them.

mod cluster;

use std::path::Path;
use std::time::Duration;

use cluster::Cluster;
use cluster::batch::{self, Batch};
use cluster::kafka::{Kafka, code, eventually};

/// ListOffsets: where the log starts.
const EARLIEST: i64 = -2;
const VALUE_BYTES: usize = 900_000;

fn noise(seed: u64) -> String {
    let mut state = seed | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(33 + (state >> 58) as u8)
    };
    (0..VALUE_BYTES).map(next).collect()
}

fn value(offset: i64) -> String {
    format!("{offset}:{}", noise(offset as u64))
}

/// Bytes of the files that hold records for good, under a data directory.
fn blob_bytes(data: &Path) -> u64 {
    let entries = std::fs::read_dir(data).expect("a data directory");
    let size = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => blob_bytes(&path),
        path if path.extension().is_some_and(|kind| kind == "blob") => {
            // It may be gone by now.
            entry.metadata().map_or(0, |metadata| metadata.len())
        }
        _ => 0,
    };
    entries.flatten().map(size).sum()
}

#[test]
fn a_client_moves_the_start_of_a_log() {
    let kafka = cluster::shared().kafka();
    let topic = format!("deleted-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    for round in 0..10 {
        let records = [("k", "a"), ("k", "b"), ("k", "c")];
        let produced = kafka.produce(&topic, 0, Batch::of(&records).encode());
        assert_eq!(produced.base_offset, round * 3);
    }
    assert_eq!(kafka.delete_before(&topic, 31).0, code::OFFSET_OUT_OF_RANGE);
    assert_eq!(kafka.delete_before(&topic, -2).0, code::OFFSET_OUT_OF_RANGE);
    assert_eq!(kafka.delete_before(&topic, 7), (code::NONE, 7));
    assert_eq!(kafka.delete_before(&topic, 5), (code::NONE, 7));
    assert_eq!(kafka.offset(&topic, 0, EARLIEST).offset, 7);
    assert_eq!(
        kafka.fetch(&topic, 0, 6).error_code,
        code::OFFSET_OUT_OF_RANGE
    );
    let fetched = kafka.fetch(&topic, 0, 7);
    assert_eq!(
        (fetched.error_code, fetched.log_start_offset),
        (code::NONE, 7)
    );
    // The batch that holds the offset comes whole, as in Kafka.
    let first = batch::batches(&fetched.records.unwrap_or_default())[0]
        .0
        .base_offset;
    assert_eq!(first, 6);
    assert_eq!(kafka.delete_before(&topic, -1), (code::NONE, 30));
    assert_eq!(
        (
            kafka.offset(&topic, 0, EARLIEST).offset,
            kafka.end(&topic, 0)
        ),
        (30, 30)
    );
    let produced = kafka.produce(&topic, 0, Batch::of(&[("k", "d")]).encode());
    assert_eq!((produced.base_offset, produced.log_start_offset), (30, 30));
    assert_eq!(kafka.fetch(&topic, 0, 30).error_code, code::NONE);
}

#[test]
fn records_go_when_they_are_old() {
    let kafka = cluster::shared().kafka();
    let topic = format!("aged-{}", batch::now_ms());
    kafka.create(&topic, 1, &[("retention.ms", "15000")]);
    let produced = kafka.produce(&topic, 0, Batch::of(&[("k", "old")]).encode());
    assert_eq!((produced.error_code, produced.base_offset), (code::NONE, 0));
    assert_eq!(kafka.offset(&topic, 0, EARLIEST).offset, 0);
    eventually("the old record to go", || {
        (kafka.offset(&topic, 0, EARLIEST).offset == 1).then_some(())
    });
    let produced = kafka.produce(&topic, 0, Batch::of(&[("k", "new")]).encode());
    assert_eq!(produced.base_offset, 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(kafka.offset(&topic, 0, EARLIEST).offset, 1);
}

/// A replica that was down while the log's beginning was purged starts from a checkpoint, and serves as leader.
#[test]
fn a_log_keeps_its_size_and_a_replica_that_was_down_comes_back_complete() {
    const KEPT_BYTES: u64 = 16 << 20;
    const RECORDS: i64 = 170;
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    let topic = "sized";
    kafka.create(topic, 1, &[("retention.bytes", &KEPT_BYTES.to_string())]);
    let produce = |offset: i64| {
        let produced = kafka.produce(topic, 0, Batch::of(&[("k", &value(offset))]).encode());
        assert_eq!(
            (produced.error_code, produced.base_offset),
            (code::NONE, offset)
        );
    };
    (0..5).for_each(produce);
    let leader = kafka.leaders(topic).expect("leaders")[&0];
    let down = (1..=3).find(|id| *id != leader).expect("a follower");
    cluster.node_mut(down).kill();
    (5..RECORDS).for_each(produce);
    let start = eventually("old records to go", || {
        let start = kafka.offset(topic, 0, EARLIEST).offset;
        let bytes = (RECORDS - start) as u64 * VALUE_BYTES as u64;
        (bytes < KEPT_BYTES * 2).then_some(start)
    });
    assert!((RECORDS - start) as u64 * VALUE_BYTES as u64 >= KEPT_BYTES - VALUE_BYTES as u64);
    assert_eq!(
        kafka.fetch(topic, 0, start - 1).error_code,
        code::OFFSET_OUT_OF_RANGE
    );
    eventually("space to come back", || {
        let used = blob_bytes(&cluster.node(leader).data());
        (used < RECORDS as u64 * VALUE_BYTES as u64 * 4 / 5).then_some(())
    });

    cluster.node_mut(down).start();
    cluster.wait_ready();
    eventually("the replica to catch up", || {
        let others: Vec<i32> = (1..=3).filter(|id| *id != leader).collect();
        let isr = kafka.metadata(&[topic]).ok()?.topics[0].partitions[0]
            .isr_nodes
            .clone();
        others
            .iter()
            .all(|id| isr.iter().any(|node| node.0 == *id))
            .then_some(())
    });
    // Only the replica that was down and one other are left: both are needed, and either may lead.
    cluster.node_mut(leader).kill();
    let kafka = Kafka::new(&cluster.address(down));
    eventually("another leader", || {
        let now = *kafka.leaders(topic).ok()?.get(&0)?;
        (now >= 0 && now != leader).then_some(())
    });
    let kafka = cluster.kafka();
    let start = kafka.offset(topic, 0, EARLIEST).offset;
    let records = kafka.read_all(topic, 0);
    assert_eq!(records.len() as i64, RECORDS - start);
    for (record, offset) in records.iter().zip(start..) {
        assert_eq!(record.offset, offset);
        assert!(record.value == value(offset).as_bytes(), "offset {offset}");
    }
}
