//! Acknowledged records survive the death of their leaders, and of all brokers at once.
//!
//! Writers that speak the protocol themselves, one to a partition, write idempotently with acks=all as fast as they
//! are answered, while the brokers are killed with `kill -9` one after another, five rounds, and then all together. A
//! real client, franz-go, with its several requests in flight, writes to another topic meanwhile. In the end every acknowledged
//! record must be at the acknowledged offset, once, and nothing else but what was tried and not acknowledged.

mod cluster;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::kafka::Kafka;
use cluster::ledger::{Ledger, Writers, check, wait_in_sync};

const TOPIC: &str = "kept";
const FRANZ_TOPIC: &str = "kept-by-franz";
const PARTITIONS: i32 = 12;
const ROUNDS: i32 = 5;
/// The promise: half of all kills stop a partition for no longer than this.
const MEDIAN_GAP_MAX: Duration = Duration::from_millis(1_500);
/// No kill of one broker may stop a partition for longer than this.
const GAP_MAX: Duration = Duration::from_secs(15);
/// Time that the writers get between a broker's return and the next kill.
const CALM: Duration = Duration::from_millis(1_500);

#[test]
fn acknowledged_records_survive_every_kill_at_their_offsets() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, PARTITIONS, &[]);
    kafka.create(FRANZ_TOPIC, PARTITIONS, &[]);
    let mut writers = Writers::of(TOPIC);
    for partition in 0..PARTITIONS {
        writers.follow(&cluster.bootstrap(), partition);
    }
    let mut franz = Franz::start(&cluster);
    std::thread::sleep(CALM);

    let mut kills = Vec::new();
    for round in 0..ROUNDS {
        for id in 1..=3 {
            let led = partitions_led_by(&kafka, id);
            let at = Instant::now();
            cluster.node_mut(id).kill();
            // Down for longer than its partitions need, so that another broker has to lead them.
            std::thread::sleep(Duration::from_secs(2));
            cluster.node_mut(id).start();
            cluster.wait_ready();
            wait_in_sync(&cluster.addresses(), &[TOPIC, FRANZ_TOPIC]);
            std::thread::sleep(CALM);
            kills.push(Kill {
                name: format!("round {}, broker {id}", round + 1),
                at,
                until: Instant::now(),
                led,
            });
            franz.assert_running();
        }
    }
    let at = Instant::now();
    cluster.nodes_mut().iter_mut().for_each(cluster::Node::kill);
    cluster
        .nodes_mut()
        .iter_mut()
        .for_each(cluster::Node::start);
    cluster.wait_ready();
    wait_in_sync(&cluster.addresses(), &[TOPIC, FRANZ_TOPIC]);
    std::thread::sleep(CALM);
    let all_at_once = Kill {
        name: "all at once".to_owned(),
        at,
        until: Instant::now(),
        led: (0..PARTITIONS).collect(),
    };

    let ledgers = writers.stop();
    let franz = franz.stop();

    for ledger in &ledgers {
        let (partition, batches) = (ledger.partition, ledger.acked.len());
        assert!(batches > 100, "partition {partition} took only {batches}");
    }
    let records = check(&kafka, TOPIC, &ledgers);
    let franz = franz.map(|acked| check_franz(&kafka, &acked));

    let mut report = String::new();
    let mut gaps: Vec<Duration> = Vec::new();
    for kill in &kills {
        let mut found = kill.gaps(&ledgers);
        report += &format!("{}: {}\n", kill.name, summary(&mut found));
        gaps.extend(found);
    }
    report += &format!(
        "{}: {}\n",
        all_at_once.name,
        summary(&mut all_at_once.gaps(&ledgers))
    );
    report += &format!("{records} records acknowledged and found at their offsets\n");
    match franz {
        Some(records) => {
            report +=
                &format!("franz-go: {records} records acknowledged and found at their offsets\n")
        }
        None => report += "franz-go: skipped, not installed\n",
    }
    report += &format!("single kills: {}\n", summary(&mut gaps));
    // Past the test runner, which keeps the output of a test that passes to itself.
    write!(
        std::io::stderr(),
        "\ntime without a write, per partition that the killed broker led\n{report}"
    )
    .expect("standard error");
    assert!(!gaps.is_empty(), "no kill met a leader");
    gaps.sort();
    assert!(
        gaps[gaps.len() / 2] <= MEDIAN_GAP_MAX,
        "the median gap is {:?}",
        gaps[gaps.len() / 2]
    );
    assert!(
        gaps[gaps.len() - 1] <= GAP_MAX,
        "the longest gap is {:?}",
        gaps[gaps.len() - 1]
    );
}

/// A kill, and the partitions that the broker led.
struct Kill {
    name: String,
    at: Instant,
    until: Instant,
    led: Vec<i32>,
}

impl Kill {
    /// For each partition: from the last acknowledgement before the kill, or the kill, to the first one after it.
    fn gaps(&self, ledgers: &[Ledger]) -> Vec<Duration> {
        let gap = |partition: &i32| {
            let acked = &ledgers[*partition as usize].acked;
            let after = acked.partition_point(|batch| batch.at <= self.at);
            // An answer may still be on its way when the process dies: the longest wait from the kill on is meant.
            let times = acked[after..]
                .iter()
                .map(|batch| batch.at)
                .take_while(|at| *at <= self.until);
            let mut longest = Duration::ZERO;
            let mut last = self.at;
            for at in times.chain(
                (acked.last().is_none_or(|batch| batch.at <= self.until)).then_some(self.until),
            ) {
                longest = longest.max(at - last);
                last = at;
            }
            longest
        };
        self.led.iter().map(gap).collect()
    }
}

/// Median and maximum in milliseconds; sorts.
fn summary(gaps: &mut [Duration]) -> String {
    gaps.sort();
    match gaps {
        [] => "led nothing".to_owned(),
        [.., longest] => {
            let longest = longest.as_millis();
            format!(
                "{} partitions, median {} ms, longest {longest} ms",
                gaps.len(),
                gaps[gaps.len() / 2].as_millis()
            )
        }
    }
}

fn partitions_led_by(kafka: &Kafka, id: i32) -> Vec<i32> {
    let leaders = kafka.leaders(TOPIC).expect("metadata");
    leaders
        .into_iter()
        .filter(|(_, leader)| *leader == id)
        .map(|(partition, _)| partition)
        .collect()
}

/// The real client at work, if it can be had.
struct Franz {
    process: Option<Child>,
    file: PathBuf,
}

impl Franz {
    fn start(cluster: &Cluster) -> Franz {
        let file = cluster.dir().join("franz-acked");
        let installed =
            Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/install"))
                .arg("go")
                .output()
                .expect("tests/compat/install runs");
        if !String::from_utf8_lossy(&installed.stdout).contains("ready go") {
            return Franz {
                process: None,
                file,
            };
        }
        let process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/run"))
            .args(["franz-go-write", &cluster.bootstrap(), FRANZ_TOPIC])
            .arg(&file)
            .stdin(Stdio::piped())
            .spawn();
        Franz {
            process: Some(process.expect("the client starts")),
            file,
        }
    }

    fn assert_running(&mut self) {
        if let Some(process) = &mut self.process {
            assert_eq!(
                process.try_wait().expect("its status"),
                None,
                "franz-go gave up"
            );
        }
    }

    /// Lets it finish; partition, offset and key of each record that was acknowledged to it.
    fn stop(mut self) -> Option<Vec<(i32, i64, String)>> {
        let mut process = self.process.take()?;
        drop(process.stdin.take());
        let status = process.wait().expect("its status");
        assert!(status.success(), "franz-go: {status}");
        let lines = std::fs::read_to_string(&self.file).expect("what was acknowledged");
        let acked = lines.lines().map(|line| {
            let mut fields = line.split(' ');
            let mut next = || fields.next().expect("three fields");
            (
                next().parse().expect("a partition"),
                next().parse().expect("an offset"),
                next().to_owned(),
            )
        });
        Some(acked.collect())
    }
}

impl Drop for Franz {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

/// Everything acknowledged to franz-go is at its offset, and nothing is there twice.
fn check_franz(kafka: &Kafka, acked: &[(i32, i64, String)]) -> usize {
    let mut there: BTreeMap<i32, HashMap<i64, String>> = BTreeMap::new();
    let mut keys = BTreeSet::new();
    for partition in 0..PARTITIONS {
        for record in kafka.read_all(FRANZ_TOPIC, partition) {
            let key = String::from_utf8(record.key).expect("text");
            assert!(keys.insert(key.clone()), "{key} is there twice");
            there
                .entry(partition)
                .or_default()
                .insert(record.offset, key);
        }
    }
    for (partition, offset, key) in acked {
        let found = there.get(partition).and_then(|records| records.get(offset));
        assert_eq!(found, Some(key), "partition {partition}, offset {offset}");
    }
    acked.len()
}
