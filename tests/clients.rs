//! Real clients, unmodified and with their own default settings, against a cluster of three: see compat/README.md.
//!
//! Prints a table of client × compression. What a machine lacks and can't install is shown as skipped, with the reason.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use cluster::{Target, batch};

/// Clients, and the toolchain that each needs.
const CLIENTS: [(&str, &str); 6] = [
    ("java", "java"),
    ("java-console", "java"),
    ("librdkafka", "python"),
    ("franz-go", "go"),
    ("kafkajs", "node"),
    ("kcat", "kcat"),
];
/// Compression kinds, in the order of their number in a batch's attributes.
const COMPRESSIONS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// Exit code of a client that can't do what is asked.
const CANNOT: i32 = 77;
/// Patience with one round trip, for `timeout`.
const ROUND_TRIP_SECONDS: &str = "100";

/// How a round trip went.
enum Outcome {
    Passed(f32),
    Skipped(String),
    Failed(String),
}

#[test]
fn every_client_reads_back_what_it_wrote_under_every_compression() {
    let missing = install();
    let target = cluster::shared();
    let mut table = BTreeMap::new();
    for (client, toolchain) in CLIENTS {
        // Strict order over all records needs one partition; the sixth round trip spreads them by key.
        let round_trips = COMPRESSIONS
            .iter()
            .map(|compression| (*compression, 1))
            .chain([("none", 3)]);
        for (compression, partitions) in round_trips {
            let outcome = match missing.get(toolchain) {
                Some(reason) => Outcome::Skipped(reason.clone()),
                None => round_trip(target, client, compression, partitions),
            };
            table.insert((client, partitions, compression), outcome);
        }
    }
    show(&table);
    let failed: Vec<_> = table
        .iter()
        .filter_map(
            |((client, partitions, compression), outcome)| match outcome {
                Outcome::Failed(why) => Some(format!(
                    "{client}, {compression}, {partitions} partitions: {why}"
                )),
                _ => None,
            },
        )
        .collect();
    assert!(
        failed.is_empty(),
        "{} round trips failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

/// Installs the toolchains; those that are missing, with the reason.
fn install() -> BTreeMap<String, String> {
    let output = Command::new(compat("install"))
        .stderr(Stdio::inherit())
        .output()
        .expect("tests/compat/install runs");
    let lines = String::from_utf8(output.stdout).expect("text");
    let mut missing = BTreeMap::new();
    for line in lines.lines() {
        match line.split_once(' ') {
            Some(("ready", _)) => {}
            Some(("missing", rest)) => {
                let (toolchain, reason) = rest.split_once(' ').unwrap_or((rest, "no reason given"));
                missing.insert(toolchain.to_owned(), reason.to_owned());
            }
            _ => panic!("tests/compat/install said {line:?}"),
        }
    }
    let asked = CLIENTS
        .iter()
        .all(|(_, toolchain)| lines.contains(toolchain));
    assert!(
        output.status.success() && asked,
        "tests/compat/install: {}, {lines}",
        output.status
    );
    missing
}

fn round_trip(target: &Target, client: &str, compression: &str, partitions: i32) -> Outcome {
    let topic = format!("{client}-{compression}-{partitions}-{}", batch::now_ms());
    let started = Instant::now();
    let output = Command::new("timeout")
        .arg(ROUND_TRIP_SECONDS)
        .arg(compat("run"))
        .args([
            client,
            &target.bootstrap(),
            &topic,
            compression,
            &partitions.to_string(),
        ])
        .stdin(Stdio::null())
        .output()
        .expect("tests/compat/run runs");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        .trim()
        .to_owned();
    match output.status.code() {
        Some(0) => match stored(target, &topic, partitions, compression) {
            Ok(()) => Outcome::Passed(started.elapsed().as_secs_f32()),
            Err(why) => Outcome::Failed(why),
        },
        Some(CANNOT) => Outcome::Skipped(said),
        _ => Outcome::Failed(format!("{}\n{said}", output.status)),
    }
}

/// The batches are stored as they were sent: compressed as was asked for, save those that compression doesn't make
/// smaller, which some clients send as they are.
fn stored(target: &Target, topic: &str, partitions: i32, compression: &str) -> Result<(), String> {
    let kafka = target.kafka();
    for partition in 0..partitions {
        let data = kafka.fetch(topic, partition, 0);
        let bytes = data.records.unwrap_or_default();
        let batches = batch::batches(&bytes);
        let kinds: BTreeSet<_> = batches
            .iter()
            .map(|(header, _)| COMPRESSIONS[usize::from(header.attributes as u16 & 7)])
            .collect();
        if !kinds.contains(compression)
            || kinds
                .iter()
                .any(|kind| ![compression, "none"].contains(kind))
        {
            return Err(format!(
                "partition {partition} is stored with compression {kinds:?}"
            ));
        }
    }
    Ok(())
}

/// Prints the table past the test runner, which keeps the output of a test that passes to itself.
fn show(table: &BTreeMap<(&str, i32, &str), Outcome>) {
    let mut lines = format!("{:14}", "client");
    for heading in COMPRESSIONS.iter().chain([&"3 partitions"]) {
        lines += &format!("{heading:>14}");
    }
    let mut reasons = String::new();
    for (client, _) in CLIENTS {
        lines += &format!("\n{client:14}");
        for (compression, partitions) in COMPRESSIONS
            .iter()
            .map(|kind| (*kind, 1))
            .chain([("none", 3)])
        {
            let cell = match &table[&(client, partitions, compression)] {
                Outcome::Passed(seconds) => format!("ok {seconds:.1} s"),
                Outcome::Failed(_) => "FAILED".to_owned(),
                Outcome::Skipped(why) => {
                    reasons += &format!(
                        "skipped: {client}, {compression}, {partitions} partitions: {why}\n"
                    );
                    "skipped".to_owned()
                }
            };
            lines += &format!("{cell:>14}");
        }
    }
    let count =
        |wanted: fn(&Outcome) -> bool| table.values().filter(|outcome| wanted(outcome)).count();
    let passed = count(|outcome| matches!(outcome, Outcome::Passed(_)));
    let failed = count(|outcome| matches!(outcome, Outcome::Failed(_)));
    let skipped = table.len() - passed - failed;
    let summary = format!("round trips: {passed} passed, {failed} failed, {skipped} skipped");
    writeln!(std::io::stderr(), "\n{lines}\n{reasons}{summary}").expect("standard error");
}

/// A script of tests/compat.
fn compat(script: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/compat")
        .join(script)
}
