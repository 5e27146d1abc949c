//! Producers that remember what became of every record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use drave_durability::history::{Outcome, ProducerKind, Transaction, Write};
use drave_durability::record::{self, RecordId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};

use super::clock::Clock;
use crate::client::{Acknowledged, Cluster, Producer, ProducerConfig};

/// Records are handed over this often.
pub(super) const TICK: Duration = Duration::from_millis(5);
/// A record that is not acknowledged for so long is given up.
pub(super) const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// A broker that does not answer is given up after this time and two seconds
/// (clients' usual 30 s would hide how long the cluster itself takes).
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// How long what is under way may take when the producers stop.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(65);
/// A producer that failed for good is followed by another one after this pause.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// What all producers of a scenario have come to.
#[derive(Debug)]
pub(super) struct Counters {
    /// Records that were acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// When each partition last acknowledged something, in microseconds; 0: not yet.
    pub(super) last_us: Vec<AtomicU64>,
    /// The longest time that a partition acknowledged nothing.
    pub(super) worst_gap_us: AtomicU64,
    /// Numbers of producers that were given out,
    next_producer: AtomicU32,
    /// and of transactions.
    pub(super) next_transaction: AtomicU32,
}

impl Counters {
    pub(super) fn new(partitions: u32) -> Counters {
        Counters {
            acknowledged: AtomicU64::new(0),
            last_us: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            worst_gap_us: AtomicU64::new(0),
            next_producer: AtomicU32::new(0),
            next_transaction: AtomicU32::new(0),
        }
    }

    fn count(&self, partition: usize, records: usize, now_us: u64) {
        self.acknowledged
            .fetch_add(records as u64, Ordering::Relaxed);
        let last = self.last_us[partition].swap(now_us, Ordering::Relaxed);
        if last > 0 {
            let gap = now_us.saturating_sub(last);
            self.worst_gap_us.fetch_max(gap, Ordering::Relaxed);
        }
    }
}

/// One producer's work.
pub(super) struct Work {
    pub(super) cluster: Cluster,
    pub(super) topic: String,
    pub(super) partitions: u32,
    /// Kafka's `acks`.
    pub(super) acks: i16,
    pub(super) idempotent: bool,
    /// Records a second.
    pub(super) rate: u32,
    pub(super) value_bytes: usize,
    pub(super) clock: Clock,
    pub(super) counters: Arc<Counters>,
}

impl Work {
    /// A producer with a number of its own.
    pub(super) fn next_producer(&self) -> ProducerKind {
        ProducerKind {
            producer: self.counters.next_producer.fetch_add(1, Ordering::Relaxed),
            acks: self.acks,
            idempotent: self.idempotent,
        }
    }
}

/// What is known of a producer's work when it has ended.
#[derive(Default)]
pub(super) struct Produced {
    /// It, and those that followed it when it failed.
    pub(super) kinds: Vec<ProducerKind>,
    pub(super) writes: Vec<Write>,
    pub(super) transactions: Vec<Transaction>,
    /// See [`drave_durability::history::History::repeated`].
    pub(super) repeated: BTreeMap<String, u64>,
}

impl Produced {
    /// What a producer remembers that has ended; why what has no answer has none.
    pub(super) fn add(
        &mut self,
        kind: ProducerKind,
        memory: &Mutex<Memory>,
        ended: &str,
        now_us: u64,
    ) {
        let mut memory = memory.lock();
        memory.give_up(ended, now_us);
        self.kinds.push(kind);
        self.writes.append(&mut memory.writes);
        for (error, count) in std::mem::take(&mut memory.repeated) {
            *self.repeated.entry(error).or_default() += count;
        }
    }
}

/// What a producer remembers.
pub(super) struct Memory {
    writes: Vec<Write>,
    /// Of each partition, positions in `writes` of all that was handed over.
    handed_over: Vec<Vec<usize>>,
    pub(super) repeated: BTreeMap<String, u64>,
}

impl Memory {
    pub(super) fn new(partitions: u32) -> Arc<Mutex<Memory>> {
        Arc::new(Mutex::new(Memory {
            writes: Vec::new(),
            handed_over: vec![Vec::new(); partitions as usize],
            repeated: BTreeMap::new(),
        }))
    }

    /// What has no answer gets this one.
    fn give_up(&mut self, error: &str, now_us: u64) {
        for write in self.writes.iter_mut().filter(|it| it.answered_us == 0) {
            write.answered_us = now_us;
            write.outcome = Outcome::GivenUp {
                error: error.to_owned(),
            };
        }
    }
}

/// Writes until told to stop. A producer that fails for good, as one does whose
/// sequence the broker refuses, is followed by a new one with a number of its own.
pub(super) async fn produce(work: Work, mut stop: watch::Receiver<bool>) -> Produced {
    let mut produced = Produced::default();
    while !*stop.borrow() {
        let (kind, memory) = (work.next_producer(), Memory::new(work.partitions));
        let ended = incarnation(&work, kind, &memory, &mut stop).await;
        produced.add(kind, &memory, &ended, work.clock.now_us());
        sleep(PAUSE).await;
    }
    produced
}

/// Writes as one producer; why what is still under way at its end has no answer.
async fn incarnation(
    work: &Work,
    kind: ProducerKind,
    memory: &Arc<Mutex<Memory>>,
    stop: &mut watch::Receiver<bool>,
) -> String {
    let config = ProducerConfig {
        acks: kind.acks,
        idempotent: kind.idempotent,
        request_timeout: REQUEST_TIMEOUT,
        delivery_timeout: DELIVERY_TIMEOUT,
        ..ProducerConfig::default()
    };
    let report = reporter(work, memory);
    let started = Producer::new(work.cluster.clone(), &work.topic, config, report);
    let producer = tokio::select! {
        started = started => match started {
            Ok(producer) => producer,
            Err(error) => return error.to_string(),
        },
        _ = stop.changed() => return "stopped".to_owned(),
    };
    let ended = write(work, kind, memory, &producer, stop).await;
    memory.lock().repeated = producer.repeated();
    match ended {
        Ok(()) => "stopped".to_owned(),
        Err(error) => error,
    }
}

/// Hands over what is due until told to stop, and waits for what is under way.
async fn write(
    work: &Work,
    kind: ProducerKind,
    memory: &Mutex<Memory>,
    producer: &Producer,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), String> {
    let mut pace = Pace::new(work.rate);
    let mut sequence = 0;
    loop {
        tokio::select! {
            due = pace.due(sequence) => {
                for _ in 0..due {
                    let id = RecordId {
                        producer: kind.producer,
                        sequence,
                    };
                    // Each partition gets every one in turn.
                    let partition = (sequence + u64::from(kind.producer)) % u64::from(work.partitions);
                    match hand_over(work, memory, producer, id, partition as u32, None)? {
                        true => sequence += 1,
                        false => break,
                    }
                }
            }
            _ = stop.changed() => break,
        }
    }
    flush(producer).await
}

/// When a producer is to write.
pub(super) struct Pace {
    began: Instant,
    ticks: Interval,
    /// Records a second.
    rate: u32,
}

impl Pace {
    /// Begins now.
    pub(super) fn new(rate: u32) -> Pace {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Pace {
            began: Instant::now(),
            ticks,
            rate,
        }
    }

    /// Waits for the next time to write; how many records, if so many were written already.
    pub(super) async fn due(&mut self, written: u64) -> u64 {
        self.ticks.tick().await;
        let due = (self.began.elapsed().as_secs_f64() * f64::from(self.rate)) as u64;
        // What could not be sent in time is not made up for in one burst.
        let burst = u64::from(self.rate).div_ceil(20).max(1);
        due.saturating_sub(written).min(burst)
    }
}

/// Waits until all that was handed over has an answer.
pub(super) async fn flush(producer: &Producer) -> Result<(), String> {
    match timeout(FLUSH_TIMEOUT, producer.flush()).await {
        Ok(flushed) => flushed.map_err(|error| error.to_string()),
        Err(_) => Err("no answer until the end".to_owned()),
    }
}

/// Hands a record to the client; false: too much is under way.
pub(super) fn hand_over(
    work: &Work,
    memory: &Mutex<Memory>,
    producer: &Producer,
    id: RecordId,
    partition: u32,
    transaction: Option<u32>,
) -> Result<bool, String> {
    let place = partition as usize;
    let value = record::encode(id, work.value_bytes);
    {
        let mut memory = memory.lock();
        let position = memory.writes.len();
        memory.handed_over[place].push(position);
        memory.writes.push(Write {
            id,
            partition,
            transaction,
            sent_us: work.clock.now_us(),
            answered_us: 0,
            outcome: Outcome::GivenUp {
                error: "no answer".to_owned(),
            },
        });
    }
    let sent = producer.try_send(place, None, Some(&value));
    if !matches!(sent, Ok(true)) {
        let mut memory = memory.lock();
        memory.handed_over[place].pop();
        memory.writes.pop();
    }
    sent.map_err(|error| error.to_string())
}

/// Notes what the client says of each batch.
pub(super) fn reporter(
    work: &Work,
    memory: &Arc<Mutex<Memory>>,
) -> impl Fn(Acknowledged) + Send + Sync + 'static {
    let (clock, memory, counters) = (work.clock, memory.clone(), work.counters.clone());
    move |report| {
        let now_us = clock.now_us();
        let (partition, records) = (report.partition as usize, report.appended_at.len());
        if report.outcome.is_ok() {
            counters.count(partition, records, now_us);
        }
        let mut memory = memory.lock();
        for n in 0..records {
            let position = memory.handed_over[partition][report.first as usize + n];
            let write = &mut memory.writes[position];
            // Never 0, which is for what has no answer.
            write.answered_us = now_us.max(1);
            write.outcome = match &report.outcome {
                Ok(base) => Outcome::Acknowledged {
                    offset: (*base >= 0).then_some(base + n as i64),
                },
                Err(error) => Outcome::GivenUp {
                    error: error.to_string(),
                },
            };
        }
    }
}
