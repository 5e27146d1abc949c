//! A producer to one topic: batches records, keeps several requests under way,
//! and repeats what fails for a passing reason, in order.
//!
//! Callers append to the partition's open batch under one short lock. A single
//! task, `Sender`, owns everything after that: it closes batches, gives them
//! sequence numbers, groups them into one request a broker, and reports them.
//! A worker task a broker writes the requests in order and waits for answers.
//!
//! Invariants: a partition's batches are sent in order of their sequence; while
//! one of them has to be repeated, nothing else of the partition is sent; its
//! batches are under way to one broker only.

mod accumulator;
mod partitioner;
mod sender;
mod worker;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use kafka_protocol::messages::{InitProducerIdRequest, ProducerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::accumulator::{Accumulator, Open};
use self::partitioner::murmur2;
use self::sender::Sender;
use super::batch::{BatchBuilder, Compression};
use super::cluster::Cluster;
use super::error::{ClientError, check};
use super::transactions::Identity;

/// How a producer behaves.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// 0, 1 or -1 (all).
    pub acks: i16,
    /// Whether the broker removes duplicates that repeated requests make; needs `acks` -1.
    pub idempotent: bool,
    /// The identity of a producer whose records are part of transactions; needs `idempotent`.
    /// Its partitions are added to the transaction, and it is ended, by [`super::Transactional`].
    pub transactional: Option<Identity>,
    /// How long a batch waits for more records.
    pub linger: Duration,
    /// Largest batch, uncompressed, unless a single record is larger.
    pub batch_bytes: usize,
    /// Largest request, unless a single batch is larger.
    pub request_bytes: usize,
    /// Bytes held in all before `send` waits.
    pub buffer_bytes: usize,
    /// Requests under way to one broker.
    pub in_flight_max: usize,
    /// How batches are compressed.
    pub compression: Compression,
    /// How long the broker may take for one request.
    pub request_timeout: Duration,
    /// How long a batch is repeated before it is given up.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            acks: -1,
            idempotent: true,
            transactional: None,
            linger: Duration::from_millis(5),
            batch_bytes: 256 << 10,
            request_bytes: 4 << 20,
            buffer_bytes: 32 << 20,
            in_flight_max: 5,
            compression: Compression::None,
            request_timeout: Duration::from_secs(10),
            delivery_timeout: Duration::from_secs(120),
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Acknowledged {
    /// Its partition.
    pub partition: i32,
    /// Records that were handed over for the partition before its first one.
    /// Batches may be reported in another order than they were handed over.
    pub first: u64,
    /// Its bytes as sent.
    pub bytes: usize,
    /// When each of its records was handed to the producer.
    pub appended_at: Vec<Instant>,
    /// Offset of its first record (-1: the broker did not say), or why it is given up.
    pub outcome: Result<i64, ClientError>,
}

type Report = Box<dyn Fn(Acknowledged) + Send + Sync>;

/// Sends records to one topic.
pub struct Producer {
    shared: Arc<Shared>,
    partitions: usize,
    sender: tokio::task::JoinHandle<()>,
}

struct Shared {
    config: ProducerConfig,
    state: Mutex<State>,
    /// Wakes the sender.
    work: Notify,
    /// Wakes callers that wait for space, and `flush`.
    progress: Notify,
    flushing: AtomicBool,
}

struct State {
    partitions: Vec<Accumulator>,
    /// Bytes of records that are not reported yet.
    buffered: usize,
    failed: Option<ClientError>,
    /// Batches that were sent again, by the kind of error that made them.
    repeated: BTreeMap<String, u64>,
}

impl Producer {
    /// Finds the topic's partitions (creating the topic where brokers do so)
    /// and, for an idempotent producer, takes a producer id.
    pub async fn new(
        cluster: Cluster,
        topic: &str,
        config: ProducerConfig,
        report: impl Fn(Acknowledged) + Send + Sync + 'static,
    ) -> Result<Producer, ClientError> {
        let leaders = cluster
            .retry(
                config.delivery_timeout.min(Duration::from_secs(30)),
                || async {
                    let leaders = cluster.leaders(topic, true).await?;
                    match leaders.iter().position(|leader| *leader < 0) {
                        None if !leaders.is_empty() => Ok(leaders),
                        missing => Err(ClientError::NoLeader {
                            topic: topic.to_owned(),
                            partition: missing.unwrap_or(0) as i32,
                        }),
                    }
                },
            )
            .await?;
        let identity = match &config.transactional {
            Some(identity) => (identity.producer_id, identity.epoch),
            None if config.idempotent => producer_id(&cluster).await?,
            None => (-1, -1),
        };
        let partitions = leaders.len();
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(State {
                partitions: leaders.into_iter().map(Accumulator::new).collect(),
                buffered: 0,
                failed: None,
                repeated: BTreeMap::new(),
            }),
            work: Notify::new(),
            progress: Notify::new(),
            flushing: AtomicBool::new(false),
        });
        let (events, inbox) = mpsc::channel(1024);
        let sender = Sender {
            shared: shared.clone(),
            cluster,
            topic: topic.into(),
            identity,
            report: Box::new(report),
            brokers: Default::default(),
            events,
            refreshing: false,
            start: 0,
        };
        Ok(Producer {
            shared,
            partitions,
            sender: tokio::spawn(sender.run(inbox)),
        })
    }

    /// The topic's partitions.
    pub fn partitions(&self) -> usize {
        self.partitions
    }

    /// How many batches had to be sent again so far, by the kind of error.
    pub fn repeated(&self) -> BTreeMap<String, u64> {
        self.shared.state.lock().repeated.clone()
    }

    /// The partition that a key belongs to, as Kafka's own clients choose it.
    pub fn partition_of(&self, key: &[u8]) -> usize {
        (murmur2(key) & 0x7fff_ffff) as usize % self.partitions
    }

    /// Hands over a record; waits while too many bytes are under way.
    pub async fn send(
        &self,
        partition: usize,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<(), ClientError> {
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.try_send(partition, key, value)? {
                return Ok(());
            }
            progress.await;
        }
    }

    /// Hands over a record unless too many bytes are under way.
    pub fn try_send(
        &self,
        partition: usize,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, ClientError> {
        let config = &self.shared.config;
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.buffered >= config.buffer_bytes {
            return Ok(false);
        }
        let bytes = BatchBuilder::record_bytes_max(key, value);
        state.buffered += bytes;
        let accumulator = &mut state.partitions[partition];
        let mut wake = false;
        if let Some(open) = accumulator
            .open
            .take_if(|open| open.builder.bytes() + bytes > config.batch_bytes)
        {
            accumulator.full.push_back(open);
            wake = true;
        }
        let open = accumulator.open.get_or_insert_with(|| {
            wake = true;
            let capacity = (accumulator.last_bytes + bytes).clamp(256, config.batch_bytes + bytes);
            Open {
                builder: BatchBuilder::with_capacity(capacity),
                buffered: 0,
                appended_at: Vec::new(),
            }
        });
        let timestamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        open.builder.push(
            timestamp.map_or(0, |since| since.as_millis() as i64),
            key,
            value,
        );
        open.appended_at.push(now);
        open.buffered += bytes;
        drop(state);
        if wake {
            self.shared.work.notify_one();
        }
        Ok(true)
    }

    /// Waits until every record handed over is reported.
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.shared.flushing.store(true, Ordering::Release);
        self.shared.work.notify_one();
        let outcome = loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let state = self.shared.state.lock();
                if let Some(error) = &state.failed {
                    break Err(error.clone());
                }
                if state.buffered == 0 {
                    break Ok(());
                }
            }
            progress.await;
        };
        self.shared.flushing.store(false, Ordering::Release);
        outcome
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.sender.abort();
    }
}

async fn producer_id(cluster: &Cluster) -> Result<(i64, i16), ClientError> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(60_000)
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1);
    cluster
        .retry(Duration::from_secs(30), || async {
            let answer = cluster.call(&request).await?;
            check(answer.error_code, || "producer id".to_owned(), None)?;
            Ok((*answer.producer_id, answer.producer_epoch))
        })
        .await
}
