//! One file of a stopped broker is cut or has a flipped bit, one after another: started again, the broker heals, or
//! refuses with one line that says what to do. Clients read what was written in any case.
//!
//! `storage/tests/damage.rs` does this to every file at many places; here, real brokers do it to one file of each kind.

mod cluster;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::damage::{self, files, noise, read_patiently};
use cluster::kafka::{Kafka, code, eventually};

const TOPIC: &str = "handled-with-care";
const PARTITIONS: i32 = 3;
const RECORDS: i64 = 20;

fn value(partition: i32, offset: i64) -> String {
    noise((partition as u64) << 32 | offset as u64, 20_000)
}

fn check(kafka: &Kafka) {
    for partition in 0..PARTITIONS {
        let (records, _) = read_patiently(kafka, TOPIC, partition, RECORDS);
        for (record, offset) in records.iter().zip(0..) {
            assert!(
                record.value == value(partition, offset).as_bytes(),
                "partition {partition}, offset {offset}"
            );
        }
    }
}

/// What a file is for.
fn kind_of(path: &Path) -> String {
    let name = path.file_name().expect("a name").to_string_lossy();
    match path.extension() {
        Some(_) if name.starts_with("LOG") => "LOG".to_owned(),
        Some(_) if name.starts_with("LOG") => "LOG".to_owned(),
        Some(kind) => format!(".{}", kind.to_string_lossy()),
        None => name.split('-').next().expect("a name").to_owned(),
    }
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).expect("below"));
        fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
        fs::copy(file, target).expect("a copy");
    }
}

/// What a broker came to.
enum Outcome {
    Serves,
    Refused(String),
}

/// Starts a broker and waits until it serves or ends.
fn outcome(cluster: &mut Cluster, id: i32) -> Outcome {
    let before = fs::read_to_string(cluster.node(id).log())
        .expect("a log")
        .len();
    cluster.node_mut(id).start();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = cluster.node_mut(id).exit_status() {
            cluster.node_mut(id).wait();
            assert!(!status.success(), "it gave up without an error");
            let log = fs::read_to_string(cluster.node(id).log()).expect("a log");
            return Outcome::Refused(log[before..].to_owned());
        }
        let kafka = Kafka::new(&cluster.address(id));
        if kafka
            .metadata(&[])
            .is_ok_and(|metadata| metadata.brokers.len() == 3)
        {
            return Outcome::Serves;
        }
        assert!(Instant::now() < deadline, "it neither serves nor ends");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_broker_with_a_damaged_file_heals_or_says_what_to_do() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, PARTITIONS, &[]);
    for partition in 0..PARTITIONS {
        for offset in 0..RECORDS {
            let batch = Batch::of(&[("k", &value(partition, offset))]).encode();
            let produced = kafka.produce(TOPIC, partition, batch);
            assert_eq!(
                (produced.error_code, produced.base_offset),
                (code::NONE, offset)
            );
        }
    }
    let id = 3;
    let data = cluster.node(id).data();
    // Twice: what the write-ahead log holds goes to tables and blob files when a broker is started again.
    for _ in 0..2 {
        assert!(cluster.node_mut(id).terminate().success());
        cluster.node_mut(id).start();
        cluster.wait_ready();
    }
    assert!(cluster.node_mut(id).terminate().success());

    let mut kinds: Vec<String> = files(&data).iter().map(|path| kind_of(path)).collect();
    kinds.sort();
    kinds.dedup();
    for wanted in [
        ".blob", ".sst", ".log", ".json", "CURRENT", "MANIFEST", "synced",
    ] {
        assert!(
            kinds.iter().any(|kind| kind == wanted),
            "no {wanted} in {kinds:?}"
        );
    }
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    for (number, kind) in kinds.iter().enumerate() {
        let of_kind = |path: &PathBuf| {
            kind_of(path) == *kind && path.metadata().is_ok_and(|found| found.len() > 0)
        };
        let Some(path) = files(&data).into_iter().rfind(of_kind) else {
            continue;
        };
        let kept = tempfile::tempdir().expect("a folder");
        copy(&data, kept.path());
        let bytes = path.metadata().expect("a file").len();
        // Every other one is cut; each flip is somewhere else.
        let at = (number as u64 * 7_919 + 4_001) % bytes;
        let what = if number % 2 == 0 {
            damage::cut(&path, at);
            format!("{kind} cut at {at} of {bytes}")
        } else {
            damage::flip(&path, at);
            format!("{kind} flipped at {at} of {bytes}")
        };
        match outcome(&mut cluster, id) {
            Outcome::Serves => {
                check(&kafka);
                assert!(cluster.node_mut(id).terminate().success(), "{what}");
                served.push(what);
            }
            Outcome::Refused(log) => {
                let lines: Vec<_> = log
                    .lines()
                    .filter(|line| line.contains("remove the data directory"))
                    .collect();
                assert_eq!(lines.len(), 1, "{what}:\n{log}");
                assert!(
                    lines[0].contains(&*data.to_string_lossy()),
                    "{what}:\n{log}"
                );
                refused.push(what);
                check(&kafka);
                // It never joined the others: its directory may come back.
                fs::remove_dir_all(&data).expect("the damaged directory goes");
                copy(kept.path(), &data);
            }
        }
    }
    println!("served: {served:#?}\nrefused: {refused:#?}");
    assert!(!served.is_empty() && !refused.is_empty());

    cluster.node_mut(id).start();
    cluster.wait_ready();
    let here = Kafka::new(&cluster.address(id));
    eventually("the broker to lead what it prefers to lead", || {
        let leaders = here.leaders(TOPIC).ok()?;
        (leaders.len() == PARTITIONS as usize && leaders.values().any(|leader| *leader == id))
            .then_some(())
    });
    check(&kafka);
    for partition in 0..PARTITIONS {
        let produced = kafka.produce(TOPIC, partition, Batch::of(&[("k", "v")]).encode());
        assert_eq!(
            (produced.error_code, produced.base_offset),
            (code::NONE, RECORDS)
        );
    }
}
