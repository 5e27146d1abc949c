//! Writers that remember what was acknowledged to them, and the check that all of it is there.
//!
//! A writer writes idempotently with acks=all to one partition, batch after batch, each until it is acknowledged.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::kafka::{self, Kafka, code};
use super::wire::Wire;

/// Records of 100 bytes in each batch.
pub const BATCH_RECORDS: i32 = 10;
/// No partition may refuse writes for longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a replica may take to catch up.
const IN_SYNC_MAX: Duration = Duration::from_secs(60);

/// A batch that was acknowledged.
pub struct Acked {
    /// Sequence number of its first record.
    pub sequence: i32,
    /// The offset that was acknowledged for it.
    pub offset: i64,
    /// When.
    pub at: Instant,
}

/// What was acknowledged to one writer.
pub struct Ledger {
    /// Its name, with which its keys begin.
    pub writer: String,
    /// The partition it wrote to.
    pub partition: i32,
    /// Every acknowledged batch, in order.
    pub acked: Vec<Acked>,
}

/// Writers at work.
pub struct Writers {
    topic: String,
    /// From an acknowledgement to the next batch.
    pause: Duration,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Ledger>>,
}

/// Whom a writer writes to.
enum Target {
    /// Whoever leads the partition, as the brokers say.
    Leader(Kafka),
    /// Always this broker, whatever it answers.
    Broker(String),
}

impl Writers {
    /// No writer yet. They will write as fast as they are answered.
    pub fn of(topic: &str) -> Writers {
        Writers::with_pauses(topic, Duration::ZERO)
    }

    /// No writer yet. They will rest for so long after each acknowledgement.
    pub fn with_pauses(topic: &str, pause: Duration) -> Writers {
        Writers {
            topic: topic.to_owned(),
            pause,
            stop: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Adds a writer that follows the partition's leader, as the brokers at `bootstrap` name it. It fails the test
    /// when the partition takes no write for a minute.
    pub fn follow(&mut self, bootstrap: &str, partition: i32) {
        let kafka = Kafka::new(bootstrap);
        let producer = kafka.producer_id().expect("a producer id");
        let name = format!("follower{partition}");
        self.spawn(name, partition, producer, Target::Leader(kafka));
    }

    /// Adds a writer that knows one broker only and tries it until it is stopped.
    pub fn insist(&mut self, address: &str, partition: i32) {
        let producer = Kafka::new(address).producer_id().expect("a producer id");
        let name = format!("insister{partition}");
        let target = Target::Broker(address.to_owned());
        self.spawn(name, partition, producer, target);
    }

    fn spawn(&mut self, writer: String, partition: i32, producer: (i64, i16), target: Target) {
        let (topic, pause, stop) = (self.topic.clone(), self.pause, Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            let batches = Batches {
                topic: &topic,
                writer: &writer,
                partition,
                producer,
                pause,
            };
            let acked = batches.write(&target, &stop);
            Ledger {
                writer,
                partition,
                acked,
            }
        }));
    }

    /// Stops them all.
    pub fn stop(self) -> Vec<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        let ledgers = self.threads.into_iter().map(|thread| thread.join());
        ledgers.map(|ledger| ledger.expect("a writer")).collect()
    }
}

/// What a writer writes.
struct Batches<'a> {
    topic: &'a str,
    writer: &'a str,
    partition: i32,
    producer: (i64, i16),
    pause: Duration,
}

impl Batches<'_> {
    fn batch(&self, sequence: i32) -> Vec<u8> {
        let records: Vec<_> = (sequence..sequence + BATCH_RECORDS)
            .map(|n| (key(self.writer, n), "v".repeat(100)))
            .collect();
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        let (producer_id, epoch) = self.producer;
        Batch::of(&records)
            .by(producer_id, epoch, sequence)
            .encode()
    }

    fn write(&self, target: &Target, stop: &AtomicBool) -> Vec<Acked> {
        let mut connection = None;
        let mut acked = Vec::new();
        let mut sequence = 0;
        loop {
            let batch = self.batch(sequence);
            let began = Instant::now();
            let offset = loop {
                if stop.load(Ordering::Relaxed) {
                    return acked;
                }
                match attempt(target, &mut connection, self.topic, self.partition, &batch) {
                    Ok(offset) => break offset,
                    Err(_) => {
                        connection = None;
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                assert!(
                    matches!(target, Target::Broker(_)) || began.elapsed() < PATIENCE,
                    "partition {} took no write for {PATIENCE:?}",
                    self.partition
                );
            };
            acked.push(Acked {
                sequence,
                offset,
                at: Instant::now(),
            });
            sequence += BATCH_RECORDS;
            std::thread::sleep(self.pause);
        }
    }
}

/// One try to append a batch. An answer that isn't one of a change of leaders ends the test.
fn attempt(
    target: &Target,
    connection: &mut Option<Wire>,
    topic: &str,
    partition: i32,
    batch: &[u8],
) -> io::Result<i64> {
    if connection.is_none() {
        let mut wire = match target {
            Target::Leader(kafka) => kafka.leader(topic, partition)?,
            Target::Broker(address) => Wire::connect(address)?,
        };
        wire.set_patience(Duration::from_secs(3))?;
        *connection = Some(wire);
    }
    let wire = connection.as_mut().expect("connected above");
    let answer = kafka::produce(wire, topic, partition, batch.to_vec())?;
    match answer.error_code {
        code::NONE => Ok(answer.base_offset),
        error if code::RETRIABLE.contains(&error) => {
            Err(io::Error::other(format!("error {error}")))
        }
        error => panic!("partition {partition}: Produce gives error {error}, which no retry mends"),
    }
}

fn key(writer: &str, sequence: i32) -> String {
    format!("{writer}-{sequence}")
}

/// Reads the topic: every acknowledged record is at its offset, and each writer's records are there once and in
/// order. Returns how many were acknowledged.
pub fn check(kafka: &Kafka, topic: &str, ledgers: &[Ledger]) -> usize {
    let mut partitions: Vec<i32> = ledgers.iter().map(|ledger| ledger.partition).collect();
    partitions.sort_unstable();
    partitions.dedup();
    for partition in partitions {
        let mut next: HashMap<String, i32> = HashMap::new();
        let mut offsets: HashMap<String, i64> = HashMap::new();
        for record in kafka.read_all(topic, partition) {
            let found = String::from_utf8(record.key).expect("a key of text");
            let (writer, _) = found.rsplit_once('-').expect("a writer and a number");
            let sequence = next.entry(writer.to_owned()).or_default();
            assert_eq!(
                found,
                key(writer, *sequence),
                "partition {partition}, offset {}",
                record.offset
            );
            *sequence += 1;
            offsets.insert(found, record.offset);
        }
        for ledger in ledgers
            .iter()
            .filter(|ledger| ledger.partition == partition)
        {
            for batch in &ledger.acked {
                for n in 0..BATCH_RECORDS {
                    let key = key(&ledger.writer, batch.sequence + n);
                    assert_eq!(
                        offsets.get(&key),
                        Some(&(batch.offset + i64::from(n))),
                        "partition {partition}: {key} was acknowledged"
                    );
                }
            }
        }
    }
    let batches: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
    batches * BATCH_RECORDS as usize
}

/// Waits until each of these brokers shows every partition led and all its replicas in sync, which only its leader
/// knows.
pub fn wait_in_sync(brokers: &[String], topics: &[&str]) {
    let deadline = Instant::now() + IN_SYNC_MAX;
    for address in brokers {
        let kafka = Kafka::new(address);
        loop {
            let mut behind = String::new();
            let metadata = kafka.metadata(topics).expect("metadata");
            for topic in &metadata.topics {
                for partition in &topic.partitions {
                    let (leader, in_sync) = (partition.leader_id.0, partition.isr_nodes.len());
                    if leader < 0 || in_sync < partition.replica_nodes.len() {
                        let (name, index) = (
                            topic.name.as_ref().map(|name| name.as_str()),
                            partition.partition_index,
                        );
                        behind += &format!(
                            "{name:?} {index}: leader {leader}, in sync {:?}\n",
                            partition.isr_nodes
                        );
                    }
                }
            }
            if behind.is_empty() {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "after {IN_SYNC_MAX:?} {address} shows\n{behind}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
