//! Retention while producers write at full rate: what is deleted gives its space back as fast as records come, memory
//! stays flat, a slow reader is told, and a follower that was down comes back complete.
//!
//! `DRAVE_RETENTION_SECONDS=180` runs it for three minutes. The chart's path is printed.

mod cluster;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::{self, Batch};
use cluster::kafka::{self, Kafka, code};
use cluster::ledger::wait_in_sync;
use cluster::plot;

const TOPIC: &str = "flow";
const PARTITIONS: i32 = 6;
const RETENTION_BYTES: u64 = 100_000_000;
/// Of all partitions together.
const BYTES_PER_SECOND: u64 = 50_000_000;
const VALUE_BYTES: usize = 10_000;
const BATCH_RECORDS: i64 = 25;
const SECONDS: u64 = 60;
/// Disk use of a broker over what it retains.
const DISK_MAX: f64 = 2.2;
/// The broker that is down in the second third.
const DOWN: i32 = 3;
const EARLIEST: i64 = -2;

/// One second of the load.
struct Sample {
    second: f64,
    /// Of each broker, in MB.
    disk: [f64; 3],
    resident: [f64; 3],
    p99_ms: f64,
}

#[test]
fn space_comes_back_as_fast_as_records_come() {
    let seconds = std::env::var("DRAVE_RETENTION_SECONDS").map_or(SECONDS, |seconds| {
        seconds.parse().expect("a number of seconds")
    });
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    let retention = RETENTION_BYTES.to_string();
    kafka.create(TOPIC, PARTITIONS, &[("retention.bytes", &retention)]);

    let stop = Arc::new(AtomicBool::new(false));
    let latencies: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let bootstrap = cluster.bootstrap_without(DOWN);
    let producers: Vec<_> = (0..PARTITIONS)
        .map(|partition| {
            let (kafka, stop, latencies) = (
                Kafka::new(&bootstrap),
                Arc::clone(&stop),
                Arc::clone(&latencies),
            );
            std::thread::spawn(move || produce(&kafka, partition, &stop, &latencies))
        })
        .collect();
    let slow = {
        let (kafka, stop) = (Kafka::new(&bootstrap), Arc::clone(&stop));
        std::thread::spawn(move || read_slowly(&kafka, &stop))
    };

    let mut samples = Vec::new();
    let began = Instant::now();
    for second in 1..=seconds {
        if second == seconds / 3 {
            assert!(cluster.node_mut(DOWN).terminate().success());
        } else if second == seconds * 2 / 3 {
            cluster.node_mut(DOWN).start();
        }
        std::thread::sleep(
            (began + Duration::from_secs(second)).saturating_duration_since(Instant::now()),
        );
        let mut latencies = std::mem::take(&mut *latencies.lock().expect("no panic"));
        samples.push(sample(&mut cluster, second, &mut latencies));
    }
    stop.store(true, Ordering::Relaxed);
    let written: u64 = producers
        .into_iter()
        .map(|producer| producer.join().expect("a producer"))
        .sum();
    let times_told = slow.join().expect("the slow reader");
    let chart = draw(&samples);

    wait_in_sync(&cluster.addresses(), &[TOPIC]);
    let retained = (RETENTION_BYTES * PARTITIONS as u64) as f64 / 1e6;
    let full = samples.len() / 3;
    let disk = highest(&samples, |sample| &sample.disk);
    let (early, late) = samples.split_at(samples.len() / 2);
    let (early, late) = (
        highest(&early[full.min(early.len() - 1)..], |sample| {
            &sample.resident
        }),
        highest(late, |sample| &sample.resident),
    );
    say(&format!(
        "{:.1} GB written in {seconds} s ({:.0} MB/s), {retained:.0} MB retained a broker, {disk:.0} MB of disk at most \
         ({:.2}×), {early:.0} MB, later {late:.0} MB of memory at most, the slow reader was told {times_told} times\n{}",
        written as f64 / 1e9,
        written as f64 / 1e6 / seconds as f64,
        disk / retained,
        chart.display()
    ));
    assert!(
        written as f64 > retained * 2e6,
        "too slow to retain anything"
    );
    assert!(disk < retained * DISK_MAX, "{disk:.0} MB of disk");
    assert!(times_told > 0, "the slow reader never fell behind");
    assert!(
        late < early * 1.5 + 100.0,
        "memory grew from {early:.0} to {late:.0} MB"
    );
    check_everything(&mut cluster);
}

/// Writes to one partition at its share of the rate; bytes written.
fn produce(
    kafka: &Kafka,
    partition: i32,
    stop: &AtomicBool,
    latencies: &Mutex<Vec<Duration>>,
) -> u64 {
    let batch_bytes = (VALUE_BYTES as u64) * BATCH_RECORDS as u64;
    let pause =
        Duration::from_secs_f64((batch_bytes * PARTITIONS as u64) as f64 / BYTES_PER_SECOND as f64);
    let (producer_id, epoch) = kafka.producer_id().expect("a producer id");
    let mut leader = None;
    let (mut next, mut sequence) = (Instant::now(), 0i64);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pause;
        let records: Vec<_> = (sequence..sequence + BATCH_RECORDS)
            .map(|n| (n.to_string(), value(partition, n)))
            .collect();
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let batch = Batch::of(&records)
            .by(producer_id, epoch, sequence as i32)
            .encode();
        let asked = Instant::now();
        while !attempt(kafka, &mut leader, partition, &batch) {
            assert!(
                asked.elapsed() < Duration::from_secs(60),
                "no write for a minute"
            );
            leader = None;
            std::thread::sleep(Duration::from_millis(20));
        }
        latencies.lock().expect("no panic").push(asked.elapsed());
        sequence += BATCH_RECORDS;
    }
    sequence as u64 * VALUE_BYTES as u64
}

fn attempt(
    kafka: &Kafka,
    leader: &mut Option<cluster::wire::Wire>,
    partition: i32,
    batch: &[u8],
) -> bool {
    if leader.is_none() {
        *leader = kafka.leader(TOPIC, partition).ok();
    }
    let Some(wire) = leader else { return false };
    kafka::produce(wire, TOPIC, partition, batch.to_vec())
        .is_ok_and(|answer| answer.error_code == code::NONE)
}

/// The value of the record at an offset.
fn value(partition: i32, offset: i64) -> String {
    let mut value = format!("{partition}:{offset}:");
    let letter = char::from(b'a' + (offset % 26) as u8);
    value.extend(std::iter::repeat_n(letter, VALUE_BYTES - value.len()));
    value
}

/// Reads a little every second; how often it was told that what it wants next is gone, and went on from the start.
fn read_slowly(kafka: &Kafka, stop: &AtomicBool) -> usize {
    let (mut next, mut told) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_secs(1));
        let Ok(mut leader) = kafka.leader(TOPIC, 0) else {
            continue;
        };
        let Ok(data) = kafka::fetch(&mut leader, TOPIC, 0, next, 300_000) else {
            continue;
        };
        match data.error_code {
            code::OFFSET_OUT_OF_RANGE => {
                told += 1;
                let start = kafka.offset(TOPIC, 0, EARLIEST).offset;
                assert!(
                    start > next,
                    "offset {next} was refused, {start} is the start"
                );
                next = start;
            }
            code::NONE => {
                for record in batch::records(data.records.as_deref().unwrap_or_default()) {
                    if record.offset >= next {
                        assert_eq!(record.offset, next, "a gap");
                        assert_record(0, &record);
                        next += 1;
                    }
                }
            }
            error => assert!(code::RETRIABLE.contains(&error), "Fetch: error {error}"),
        }
    }
    told
}

fn assert_record(partition: i32, record: &batch::Record) {
    let expected = value(partition, record.offset);
    assert!(
        record.value == expected.as_bytes(),
        "partition {partition}, offset {}: another value",
        record.offset
    );
}

/// Everything that is retained is there: from every leader, and then from the broker that was down as leader.
fn check_everything(cluster: &mut Cluster) {
    let all: Vec<i32> = (0..PARTITIONS).collect();
    check(&cluster.kafka(), &all);
    // It leads what it led before, and needs one other broker to do so.
    let other = Kafka::new(&cluster.address(DOWN));
    let led = kafka::eventually("leadership to come back", || {
        let leaders = other.leaders(TOPIC).ok()?;
        let led = leaders.into_iter().filter(|(_, leader)| *leader == DOWN);
        let led: Vec<i32> = led.map(|(partition, _)| partition).collect();
        (!led.is_empty()).then_some(led)
    });
    check(&other, &led);
}

fn check(kafka: &Kafka, partitions: &[i32]) {
    for partition in partitions {
        let start = kafka.offset(TOPIC, *partition, EARLIEST).offset;
        assert!(start > 0, "partition {partition} deleted nothing");
        let records = kafka.read_all(TOPIC, *partition);
        let bytes = records.len() as u64 * VALUE_BYTES as u64;
        assert!(
            bytes >= RETENTION_BYTES * 9 / 10,
            "partition {partition} has {bytes} bytes"
        );
        for record in &records {
            assert_record(*partition, record);
        }
    }
}

fn sample(cluster: &mut Cluster, second: u64, latencies: &mut [Duration]) -> Sample {
    latencies.sort();
    let p99 = latencies.get(latencies.len() * 99 / 100);
    let mut sample = Sample {
        second: second as f64,
        disk: [0.0; 3],
        resident: [0.0; 3],
        p99_ms: p99.map_or(0.0, |p99| p99.as_secs_f64() * 1e3),
    };
    for (index, node) in cluster.nodes_mut().iter_mut().enumerate() {
        sample.disk[index] = disk_bytes(&node.data()) as f64 / 1e6;
        if node.is_running() {
            sample.resident[index] = node.resident_bytes() as f64 / 1e6;
        }
    }
    sample
}

fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let size = |entry: std::fs::DirEntry| match entry.path() {
        path if path.is_dir() => disk_bytes(&path),
        // It may be gone by now.
        path => path.metadata().map_or(0, |metadata| {
            std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
        }),
    };
    entries.flatten().map(size).sum()
}

fn highest(samples: &[Sample], of: impl Fn(&Sample) -> &[f64; 3]) -> f64 {
    let values = samples.iter().flat_map(|sample| of(sample).iter().copied());
    values.fold(0.0, f64::max)
}

fn draw(samples: &[Sample]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("retention.svg");
    let line = |of: &dyn Fn(&Sample) -> f64| -> Vec<(f64, f64)> {
        samples
            .iter()
            .map(|sample| (sample.second, of(sample)))
            .collect()
    };
    let brokers = |of: fn(&Sample) -> &[f64; 3]| {
        vec![
            ("broker 1", line(&move |sample| of(sample)[0])),
            ("broker 2", line(&move |sample| of(sample)[1])),
            ("broker 3", line(&move |sample| of(sample)[2])),
        ]
    };
    let charts = [
        ("disk use, MB", brokers(|sample| &sample.disk)),
        ("resident memory, MB", brokers(|sample| &sample.resident)),
        (
            "acknowledged after, p99, ms",
            vec![("all producers", line(&|sample| sample.p99_ms))],
        ),
    ];
    plot::draw(&path, &charts);
    path
}

/// Past the test runner, which keeps the output of a test that passes to itself.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}
