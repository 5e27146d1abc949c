//! Brokers that lose their disks: each is started again with the same configuration and an empty data directory, and
//! is rebuilt from the others by itself, in every group. What a disk was the only one to hold is not made up.

mod cluster;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::groups::{commit, committed};
use cluster::kafka::{self, Kafka, code, eventually};
use cluster::wire::Wire;
use serde_json::Value;

const TOPIC: &str = "kept";
const PARTITIONS: i32 = 6;
/// A topic with one partition whose records are large, so that its log can be purged.
const TRIMMED: &str = "trimmed";
/// A topic for writes that may fail.
const PROBED: &str = "probed";
const TRIMMED_BYTES: usize = 900_000;
/// Patience with a broker that is rebuilt, on a machine that is busy with other tests.
const REBUILT_MAX: Duration = Duration::from_secs(120);

/// One producer of one partition, and all that it was acknowledged.
struct Writer {
    topic: &'static str,
    partition: i32,
    producer: (i64, i16),
    values: Vec<String>,
}

impl Writer {
    fn new(kafka: &Kafka, topic: &'static str, partition: i32) -> Writer {
        Writer {
            topic,
            partition,
            producer: kafka.producer_id().expect("a producer id"),
            values: Vec::new(),
        }
    }

    /// Appends a record, again and again until it is acknowledged; it is written once.
    fn write(&mut self, kafka: &Kafka, padding: usize) {
        let offset = self.values.len();
        let value = format!(
            "{} {} {offset} {}",
            self.topic,
            self.partition,
            noise(offset, padding)
        );
        let (id, epoch) = self.producer;
        let batch = Batch::of(&[("key", &value)])
            .by(id, epoch, offset as i32)
            .encode();
        let base = eventually("a record to be acknowledged", || {
            let mut wire = kafka.leader(self.topic, self.partition).ok()?;
            let answer =
                kafka::produce(&mut wire, self.topic, self.partition, batch.clone()).ok()?;
            let error = answer.error_code;
            assert!(
                error == code::NONE || code::RETRIABLE.contains(&error),
                "error {error}"
            );
            (error == code::NONE).then_some(answer.base_offset)
        });
        assert_eq!(base, offset as i64);
        self.values.push(value);
    }

    /// Reads the partition from the start of its log, which must be at `start`, and compares every record.
    fn check(&self, kafka: &Kafka, start: usize) {
        let records = kafka.read_all(self.topic, self.partition);
        let what = format!("{} {}", self.topic, self.partition);
        assert_eq!(records.len(), self.values.len() - start, "{what}");
        for (record, offset) in records.iter().zip(start..) {
            assert_eq!(record.offset, offset as i64, "{what}");
            assert!(
                record.value == self.values[offset].as_bytes(),
                "{what}: offset {offset}"
            );
        }
    }
}

/// Text that hardly compresses.
fn noise(seed: usize, length: usize) -> String {
    let mut state = seed as u64 * 2 + 1;
    let next = |_| {
        state =
            (state.wrapping_mul(6_364_136_223_846_793_005)).wrapping_add(1_442_695_040_888_963_407);
        char::from(33 + (state >> 58) as u8)
    };
    (0..length).map(next).collect()
}

/// `drave cluster status --output json`, asked of one broker.
fn status(address: &str) -> Option<Value> {
    let output = Command::new(cluster::drave())
        .args([
            "cluster",
            "status",
            "--output",
            "json",
            "--bootstrap",
            address,
        ])
        .output()
        .expect("drave runs");
    serde_json::from_slice(&output.stdout).ok()
}

/// Waits until the status says that nothing is missing; whether it ever showed broker `id` catching up.
fn wait_whole(cluster: &Cluster, id: i32) -> bool {
    let deadline = Instant::now() + REBUILT_MAX;
    let mut seen = false;
    loop {
        let status = status(&cluster.address(id)).unwrap_or_default();
        let brokers = status["brokers"].as_array().cloned().unwrap_or_default();
        let line = brokers.iter().find(|broker| broker["id"] == id);
        seen |= line.is_some_and(|line| line["catching_up"].as_i64().is_none_or(|count| count > 0));
        let whole = |broker: &Value| {
            broker["alive"] == true && broker["behind"] == 0 && broker["catching_up"] == 0
        };
        let complete = status["without_leader"] == 0 && status["under_replicated"] == 0;
        if complete && brokers.len() == 3 && brokers.iter().all(whole) {
            return seen;
        }
        assert!(
            Instant::now() < deadline,
            "the cluster is not whole: {status:#}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn directory_id(data: &Path) -> String {
    let identity = fs::read(data.join("identity.json")).expect("an identity");
    let identity: Value = serde_json::from_slice(&identity).expect("json");
    identity["directory_id"].as_str().expect("an id").to_owned()
}

/// Ends a broker and takes its disk away; the id that it had.
fn lose_disk(cluster: &mut Cluster, id: i32) -> String {
    cluster.node_mut(id).kill();
    let data = cluster.node(id).data();
    let directory = directory_id(&data);
    fs::remove_dir_all(data).expect("removed");
    directory
}

/// The newest write-ahead log that holds anything.
fn newest_wal(data: &Path) -> PathBuf {
    let files = fs::read_dir(data.join("store/rocksdb")).expect("a database");
    let logs = files.flatten().map(|file| file.path());
    let logs = logs.filter(|path| {
        path.extension().is_some_and(|kind| kind == "log")
            && path.metadata().is_ok_and(|file| file.len() > 1_000)
    });
    logs.max().expect("a write-ahead log")
}

#[test]
fn brokers_that_lose_their_disks_one_after_another_hold_everything_again() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, PARTITIONS, &[]);
    kafka.create(TRIMMED, 1, &[]);
    let mut writers: Vec<_> = (0..PARTITIONS)
        .map(|partition| Writer::new(&kafka, TOPIC, partition))
        .collect();
    let mut trimmed = Writer::new(&kafka, TRIMMED, 0);
    let mut write = |kafka: &Kafka, count: usize| {
        for writer in &mut writers {
            (0..count).for_each(|_| writer.write(kafka, 50));
        }
    };
    write(&kafka, 20);
    (0..40).for_each(|_| trimmed.write(&kafka, TRIMMED_BYTES));
    let groups: Vec<_> = (0..8).map(|n| format!("group-{n}")).collect();
    for (offset, group) in (1..).zip(&groups) {
        commit(&kafka, TOPIC, group, offset, "before");
    }
    assert!(!wait_whole(&cluster, 1), "nothing was missing");

    // Broker 1, which would form the cluster if there were none; and its new disk is lost at once.
    let first = lose_disk(&mut cluster, 1);
    write(&kafka, 10);
    (0..40).for_each(|_| trimmed.write(&kafka, TRIMMED_BYTES));
    // Checkpoints stand every 16 MiB: the beginning of the log goes while the broker is away.
    const START: i64 = 50;
    assert_eq!(kafka.delete_before(TRIMMED, START), (code::NONE, START));
    cluster.node_mut(1).start();
    std::thread::sleep(Duration::from_secs(2));
    let second = lose_disk(&mut cluster, 1);
    cluster.node_mut(1).start();
    assert!(wait_whole(&cluster, 1), "it was seen to catch up");
    let third = directory_id(&cluster.node(1).data());
    assert!(first != second && second != third && third != first);
    // Leadership comes back to where it is preferred.
    eventually("broker 1 to lead again", || {
        let led = kafka.leaders(TOPIC).ok()?;
        (led.values().filter(|leader| **leader == 1).count() == 2).then_some(())
    });

    // Now its copy counts, for writes and for reads.
    lose_disk(&mut cluster, 2);
    write(&kafka, 10);
    (0..5).for_each(|_| trimmed.write(&kafka, TRIMMED_BYTES));
    for (offset, group) in (11..).zip(&groups[..4]) {
        commit(&kafka, TOPIC, group, offset, "between");
    }
    cluster.node_mut(2).start();
    assert!(wait_whole(&cluster, 2), "it was seen to catch up");

    // Only what two rebuilt brokers hold is left.
    cluster.node_mut(3).kill();
    for (topic, partitions) in [(TOPIC, PARTITIONS as usize), (TRIMMED, 1)] {
        eventually("other leaders", || {
            let led = kafka.leaders(topic).ok()?;
            let others = led.values().filter(|leader| [1, 2].contains(*leader));
            (others.count() == partitions).then_some(())
        });
    }
    write(&kafka, 1);
    for writer in &writers {
        writer.check(&kafka, 0);
    }
    trimmed.check(&kafka, START as usize);
    for (number, group) in (0..).zip(&groups) {
        let expected = match number {
            0..4 => (number + 11, "between".to_owned()),
            _ => (number + 1, "before".to_owned()),
        };
        assert_eq!(committed(&kafka, TOPIC, group), expected, "{group}");
    }
}

/// What the metadata said while another disk was in its place must not make the broker forget what is on this one.
#[test]
fn an_old_disk_that_is_put_back_is_taken_up_as_it_is() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, 3, &[]);
    let writer = |partition| Writer::new(&kafka, TOPIC, partition);
    let mut writers: Vec<_> = (0..3).map(writer).collect();
    let mut write = || {
        for writer in &mut writers {
            (0..10).for_each(|_| writer.write(&kafka, 100));
        }
    };
    write();
    let (data, kept) = (cluster.node(2).data(), cluster.dir().join("kept"));
    cluster.node_mut(2).kill();
    fs::rename(&data, &kept).expect("moved");
    cluster.node_mut(2).start();
    wait_whole(&cluster, 2);
    write();
    let new = lose_disk(&mut cluster, 2);
    write();
    fs::rename(&kept, &data).expect("moved back");
    assert_ne!(directory_id(&data), new);
    cluster.node_mut(2).start();
    wait_whole(&cluster, 2);
    cluster.node_mut(3).kill();
    write();
    for writer in &writers {
        writer.check(&kafka, 0);
    }
    let log = fs::read_to_string(cluster.node(2).log()).expect("a log");
    assert!(!log.contains("erasing"), "what it had was erased");
}

#[test]
fn what_was_on_one_disk_only_is_not_made_up() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    assert_eq!(kafka.try_create("single", 3, 1, &[]).0, code::NONE);
    kafka.wait_leaders("single", 3);
    kafka.create("goes", 3, &[]);
    let produce = |partition: i32| {
        let batch = Batch::of(&[("k", "v")]).encode();
        let mut wire = kafka.leader("single", partition).ok()?;
        wire.set_patience(Duration::from_secs(3)).ok()?;
        Some(
            kafka::produce(&mut wire, "single", partition, batch)
                .ok()?
                .error_code,
        )
    };
    assert_eq!(
        (0..3).map(produce).collect::<Vec<_>>(),
        [Some(code::NONE); 3]
    );
    let leaders = kafka.leaders("single").expect("leaders");
    let lost = leaders.iter().find(|(_, leader)| **leader == 3);
    let lost = *lost.expect("each broker leads one").0;

    // Topics come and go while the broker is away: the one is still placed on it, or on the others only.
    cluster.node_mut(3).kill();
    let (error, message) = kafka.try_create("comes", 3, -1, &[]);
    assert_eq!(error, code::NONE, "{message}");
    kafka.delete("goes");
    fs::remove_dir_all(cluster.node(3).data()).expect("removed");
    cluster.node_mut(3).start();
    cluster.wait_ready();
    kafka.wait_leaders("comes", 3);
    let log = cluster.node(3).log();
    eventually("broker 3 to say what is lost", || {
        let said = fs::read_to_string(&log).ok()?;
        said.contains(&format!("single-{lost}")).then_some(())
    });
    let shown = eventually("the status to settle", || {
        let status = status(&cluster.address(1))?;
        let settled = status["brokers"].as_array()?.iter().all(|broker| {
            let lost = if broker["id"] == 3 { 1 } else { 0 };
            broker["alive"] == true && broker["catching_up"] == lost
        });
        settled.then_some(status)
    });
    assert_eq!(shown["without_leader"], 1, "{shown:#}");
    assert_ne!(produce(lost), Some(code::NONE));
    for partition in (0..3).filter(|partition| *partition != lost) {
        assert_eq!(produce(partition), Some(code::NONE));
    }

    // What was made while it was away is whole.
    let mut wire = kafka.leader("comes", 0).expect("a leader");
    let produced = kafka::produce(&mut wire, "comes", 0, Batch::of(&[("k", "v")]).encode());
    assert_eq!(produced.expect("an answer").error_code, code::NONE);
    // The way out.
    kafka.delete("single");
    assert_eq!(kafka.try_create("single", 3, 1, &[]).0, code::NONE);
    kafka.wait_leaders("single", 3);
    assert_eq!(
        (0..3).map(produce).collect::<Vec<_>>(),
        [Some(code::NONE); 3]
    );
    wait_whole(&cluster, 3);
}

#[test]
fn a_broker_that_lost_what_it_had_synced_does_not_start_until_its_directory_is_removed() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, 3, &[]);
    kafka.create(PROBED, 1, &[]);
    let mut writers: Vec<_> = (0..3)
        .map(|partition| Writer::new(&kafka, TOPIC, partition))
        .collect();
    for writer in &mut writers {
        (0..20).for_each(|_| writer.write(&kafka, 2_000));
    }
    wait_whole(&cluster, 2);
    assert!(cluster.node_mut(2).terminate().success());
    let data = cluster.node(2).data();
    let wal = newest_wal(&data);
    let bytes = wal.metadata().expect("a file").len();
    let file = File::options().write(true).open(&wal).expect("opens");
    file.set_len(bytes / 2).expect("cut");
    drop(file);

    let refuse = |cluster: &mut Cluster, words: &[&str]| {
        cluster.node_mut(2).start();
        let exit = cluster.node_mut(2).wait();
        assert_eq!(exit.code(), Some(1));
        let log = fs::read_to_string(cluster.node(2).log()).expect("a log");
        let last = log.lines().last().expect("a line");
        assert!(last.starts_with("error: "), "{last}");
        for word in words {
            assert!(last.contains(word), "{word}: {last}");
        }
    };
    let data_shown = data.display().to_string();
    let way_out = "remove the data directory";
    refuse(
        &mut cluster,
        &[&data_shown, "synced data was lost", way_out],
    );
    // Half of the way out is none: under its old id an empty broker would vote as what it was.
    fs::remove_dir_all(data.join("store")).expect("removed");
    refuse(&mut cluster, &[&data_shown, "lost its store", way_out]);
    let before = directory_id(&data);
    fs::remove_dir_all(&data).expect("removed");

    // Another broker is down just then: nothing has a majority until it is back.
    cluster.node_mut(3).kill();
    cluster.node_mut(2).start();
    std::thread::sleep(Duration::from_secs(3));
    let mut wire = Wire::connect(&cluster.address(1)).expect("broker 1 lives");
    wire.set_patience(Duration::from_secs(3))
        .expect("a time-out");
    let answer = kafka::produce(&mut wire, PROBED, 0, Batch::of(&[("k", "v")]).encode());
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.error_code != code::NONE));
    cluster.node_mut(3).start();
    cluster.wait_ready();
    wait_whole(&cluster, 2);
    assert_ne!(directory_id(&data), before);
    cluster.node_mut(1).kill();
    for writer in &mut writers {
        writer.write(&kafka, 2_000);
        writer.check(&kafka, 0);
    }
}
