//! A broker whose disk fills up: producers are told so and retry, everything else goes on, and writes resume by
//! themselves when there is room. A follower without room does not hold the others up, and comes back.
//!
//! The small disk is a memory file system, which takes root to mount; without, these tests are skipped, and say so.

mod cluster;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::damage::{noise, read_patiently};
use cluster::kafka::{self, Kafka, code, eventually};

const DISK: &str = "size=800m";
/// A twentieth of it.
const RESERVE: u64 = 40 << 20;
const VALUE_BYTES: usize = 900_000;
/// More batches than the disk has room for.
const BATCHES_MAX: i64 = 1_500;

/// Refusals, a fifth of a second apart, after which there is no room for good.
const REFUSALS_MIN: u32 = 25;

/// A small disk, mounted for as long as this lives.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Puts the data directory of a stopped broker on a small disk; `None` where that is not allowed.
    fn under(data: &Path) -> Option<SmallDisk> {
        let aside = data.with_extension("aside");
        std::fs::rename(data, &aside).expect("the data directory moves");
        std::fs::create_dir(data).expect("a place to mount on");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", DISK, "drave-test"])
            .arg(data)
            .output();
        let disk = match mounted {
            Ok(output) if output.status.success() => SmallDisk(data.to_owned()),
            refused => {
                cluster::skipped("a full disk", &format!("can't mount one: {refused:?}"));
                return None;
            }
        };
        let copied = Command::new("cp")
            .arg("-a")
            .arg(aside.join("."))
            .arg(data)
            .status();
        assert!(copied.expect("cp runs").success());
        Some(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a broker that is being ended may still hold files.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// A cluster with a broker on a small disk. The disk goes after the brokers.
fn cluster_with_small_disk(count: u16, id: i32) -> Option<(Cluster, SmallDisk)> {
    let mut cluster = Cluster::start_with(count, &[]);
    assert!(cluster.node_mut(id).terminate().success());
    let disk = SmallDisk::under(&cluster.node(id).data())?;
    cluster.node_mut(id).start();
    cluster.wait_ready();
    Some((cluster, disk))
}

fn value(offset: i64) -> String {
    format!("{offset}:{}", noise(offset as u64 % 7, VALUE_BYTES))
}

/// Fills a partition until batches are refused and stay so: flushes and deletions may make room for some time. How
/// many were taken, and what the refusal says.
fn fill(kafka: &Kafka, topic: &str, partition: i32, batches: i64) -> (i64, Option<String>) {
    let mut leader = kafka.leader(topic, partition).expect("a leader");
    let (mut offset, mut refusals) = (0, 0);
    while offset < batches {
        let batch = Batch::of(&[("k", &value(offset))]).encode();
        let answer = kafka::produce(&mut leader, topic, partition, batch).expect("Produce");
        match answer.error_code {
            code::NONE => {
                assert_eq!(answer.base_offset, offset);
                (offset, refusals) = (offset + 1, 0);
            }
            code::KAFKA_STORAGE_ERROR if refusals < REFUSALS_MIN => {
                refusals += 1;
                std::thread::sleep(Duration::from_millis(200));
            }
            code::KAFKA_STORAGE_ERROR => {
                let message = answer.error_message.expect("a reason").to_string();
                return (offset, Some(message));
            }
            error => panic!("offset {offset}: error {error}, {:?}", answer.error_message),
        }
    }
    (batches, None)
}

fn check(kafka: &Kafka, topic: &str, partition: i32, end: i64) {
    let (records, errors) = read_patiently(kafka, topic, partition, end);
    assert!(errors.is_empty(), "{errors:?}");
    for (record, offset) in records.iter().zip(0..) {
        assert!(record.value == value(offset).as_bytes(), "offset {offset}");
    }
}

fn drave(cluster: &Cluster, args: &[&str]) -> String {
    let output = Command::new(cluster::drave())
        .args(args)
        .args(["--bootstrap", &cluster.bootstrap()])
        .output()
        .expect("the built binary starts");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `drave cluster status` says of a broker's disk.
fn free_bytes(cluster: &Cluster, id: usize) -> u64 {
    let status = drave(cluster, &["cluster", "status", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let free = &status["brokers"][id - 1]["disk_free_bytes"];
    free.as_u64().expect("a number")
}

#[test]
fn producers_wait_for_room_and_all_else_goes_on() {
    let Some((mut cluster, _disk)) = cluster_with_small_disk(1, 1) else {
        return;
    };
    let kafka = cluster.kafka();
    kafka.create("kept", 1, &[]);
    kafka.create("filler", 1, &[]);
    assert_eq!(fill(&kafka, "kept", 0, 3), (3, None));
    let (taken, refusal) = fill(&kafka, "filler", 0, BATCHES_MAX);
    let refusal = refusal.expect("the disk fills up");
    println!("{taken} batches were taken, then: {refusal}");
    assert!(
        refusal.starts_with("the disk of broker 1 has ")
            && refusal.contains("less than the reserve of 40.0 MiB"),
        "{refusal}"
    );
    assert!(taken > 50, "only {taken} batches fit");
    let mut leader = kafka.leader("kept", 0).expect("a leader");
    let batch = Batch::of(&[("k", &value(3))]).encode();
    let answer = kafka::produce(&mut leader, "kept", 0, batch).expect("Produce");
    assert_eq!(answer.error_code, code::KAFKA_STORAGE_ERROR);
    assert_eq!(cluster.node_mut(1).exit_status(), None);

    // Reads, committed offsets and metadata go on, also after a restart.
    check(&kafka, "filler", 0, taken);
    let consume = [
        "consume",
        "kept",
        "--group",
        "readers",
        "--from-beginning",
        "--print-offset",
    ];
    let read = |count: &str| {
        drave(
            &cluster,
            &[&consume[..], &["--max-messages", count]].concat(),
        )
    };
    assert!(read("1").starts_with('0'));
    assert!(
        read("1").starts_with('1'),
        "the group's offset was committed"
    );
    assert!(free_bytes(&cluster, 1) < RESERVE);
    assert!(drave(&cluster, &["cluster", "status"]).contains("DISK FREE"));
    cluster.node_mut(1).kill();
    cluster.node_mut(1).start();
    cluster.wait_ready();
    kafka.wait_leaders("kept", 1);
    check(&kafka, "kept", 0, 3);

    // And so does what makes room.
    kafka.delete("filler");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut leader = kafka.leader("kept", 0).expect("a leader");
        let batch = Batch::of(&[("k", &value(3))]).encode();
        let answer = kafka::produce(&mut leader, "kept", 0, batch).expect("Produce");
        match answer.error_code {
            code::NONE => break assert_eq!(answer.base_offset, 3),
            error => assert!(code::RETRIABLE.contains(&error), "error {error}"),
        }
        assert!(
            Instant::now() < deadline,
            "still refused: {:?}",
            answer.error_message
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    check(&kafka, "kept", 0, 4);
}

#[test]
fn a_follower_without_room_holds_nobody_up_and_catches_up_later() {
    let full = 3;
    let Some((mut cluster, _disk)) = cluster_with_small_disk(3, full) else {
        return;
    };
    let kafka = cluster.kafka();
    kafka.create("wide", 3, &[]);
    let leaders = kafka.leaders("wide").expect("leaders");
    let (partition, _) = leaders
        .iter()
        .find(|(_, leader)| **leader != full)
        .expect("another leader");
    let batches = 1_000;
    assert_eq!(fill(&kafka, "wide", *partition, batches), (batches, None));
    assert_eq!(cluster.node_mut(full).exit_status(), None);
    let in_sync = |topic: &str, partition: i32| {
        let metadata = kafka.metadata(&[topic]).ok()?;
        let found = metadata.topics[0].partitions.iter();
        let mut found = found.filter(|found| found.partition_index == partition);
        found.next().map(|found| found.isr_nodes.len())
    };
    // It is alive, and takes what is small.
    let free = free_bytes(&cluster, full as usize);
    assert!(free < RESERVE, "{free} bytes are free");
    assert_eq!(kafka.metadata(&[]).expect("metadata").brokers.len(), 3);
    kafka.create("small", 1, &[]);
    let small = Batch::of(&[("k", "v")]).encode();
    eventually("a small record to be everywhere", || {
        let produced = kafka.produce("small", 0, small.clone());
        (produced.error_code == code::NONE && in_sync("small", 0) == Some(3)).then_some(())
    });
    kafka.delete("wide");
    kafka.create("next", 1, &[]);
    eventually("the follower to take records again", || {
        let produced = kafka.produce("next", 0, Batch::of(&[("k", &value(0))]).encode());
        (produced.error_code == code::NONE && in_sync("next", 0) == Some(3)).then_some(())
    });
    assert_eq!(cluster.node_mut(full).exit_status(), None);
}
