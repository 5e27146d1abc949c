//! A producer to one topic: batches records, keeps several requests under way,
//! and repeats what fails for a passing reason, in order.
//!
//! Callers append to the partition's open batch under one short lock. A single
//! task, [`Sender`], owns everything after that: it closes batches, gives them
//! sequence numbers, groups them into one request a broker, and reports them.
//! A worker task a broker writes the requests in order and waits for answers.
//!
//! Invariants: a partition's batches are sent in order of their sequence; while
//! one of them has to be repeated, nothing else of the partition is sent; its
//! batches are under way to one broker only.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    InitProducerIdRequest, ProduceRequest, ProduceResponse, ProducerId,
};
use kafka_protocol::protocol::Request;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::batch::{BatchBuilder, Compression};
use super::cluster::Cluster;
use super::connection::{Connection, PendingReply};
use super::error::{ClientError, check};

/// The first Produce version that is encoded here.
const PRODUCE_VERSION_MIN: i16 = 9;
const REFRESH_PAUSE: Duration = Duration::from_millis(50);
const OUT_OF_ORDER_SEQUENCE: i16 = 45;
const DUPLICATE_SEQUENCE: i16 = 46;

/// How a producer behaves.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// 0, 1 or -1 (all).
    pub acks: i16,
    /// Whether the broker removes duplicates that repeated requests make; needs `acks` -1.
    pub idempotent: bool,
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
}

/// A partition's records between `send` and their report.
struct Accumulator {
    leader: i32,
    open: Option<Open>,
    full: VecDeque<Open>,
    /// To be repeated, by sequence or order of sending.
    repeat: BTreeMap<u64, Batch>,
    not_before: Option<Instant>,
    under_way: usize,
    under_way_to: i32,
    sent: u64,
    last_bytes: usize,
}

struct Open {
    builder: BatchBuilder,
    /// What its records count in [`State::buffered`].
    buffered: usize,
    appended_at: Vec<Instant>,
}

/// A batch that is sent or about to be.
struct Batch {
    partition: usize,
    /// Records of the partition sent before it: its sequence, not wrapped.
    order: u64,
    buffered: usize,
    bytes: Bytes,
    appended_at: Vec<Instant>,
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
        let identity = match config.idempotent {
            true => producer_id(&cluster).await?,
            false => (-1, -1),
        };
        let partitions = leaders.len();
        let shared = Arc::new(Shared {
            config,
            state: Mutex::new(State {
                partitions: leaders.into_iter().map(Accumulator::new).collect(),
                buffered: 0,
                failed: None,
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
            brokers: HashMap::new(),
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

impl Accumulator {
    fn new(leader: i32) -> Accumulator {
        Accumulator {
            leader,
            open: None,
            full: VecDeque::new(),
            repeat: BTreeMap::new(),
            not_before: None,
            under_way: 0,
            under_way_to: -1,
            sent: 0,
            last_bytes: 0,
        }
    }

    /// Whether a batch of it may go to its leader now; otherwise the time when one may.
    fn ready(&self, now: Instant, linger: Duration) -> Result<(), Option<Instant>> {
        if self.leader < 0 || (self.under_way > 0 && self.under_way_to != self.leader) {
            return Err(None);
        }
        if let Some(not_before) = self.not_before.filter(|time| *time > now) {
            return Err(Some(not_before));
        }
        if !self.repeat.is_empty() {
            return if self.under_way == 0 {
                Ok(())
            } else {
                Err(None)
            };
        }
        if !self.full.is_empty() {
            return Ok(());
        }
        match &self.open {
            None => Err(None),
            Some(open) => match open.appended_at[0] + linger {
                due if due <= now => Ok(()),
                due => Err(Some(due)),
            },
        }
    }
}

enum Event {
    Answered {
        broker: i32,
        batches: Vec<Batch>,
        answer: Result<Option<ProduceResponse>, ClientError>,
    },
    Leaders(Result<Vec<i32>, ClientError>),
}

struct Broker {
    requests: mpsc::Sender<Vec<Batch>>,
    under_way: usize,
}

/// The task that owns batches from their closing to their report.
struct Sender {
    shared: Arc<Shared>,
    cluster: Cluster,
    topic: Arc<str>,
    identity: (i64, i16),
    report: Report,
    brokers: HashMap<i32, Broker>,
    events: mpsc::Sender<Event>,
    refreshing: bool,
    /// The partition to begin with, so that each gets its turn.
    start: usize,
}

impl Sender {
    async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
        loop {
            let wake_at = self.send_ready();
            let sleep = async {
                match wake_at {
                    Some(time) => tokio::time::sleep_until(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = inbox.recv() => {
                    let Some(event) = event else { return };
                    self.handle(event);
                    while let Ok(event) = inbox.try_recv() {
                        self.handle(event);
                    }
                }
                () = self.shared.work.notified() => {}
                () = sleep => {}
            }
        }
    }

    /// Sends what may be sent; says when to look again.
    fn send_ready(&mut self) -> Option<Instant> {
        let shared = self.shared.clone();
        let config = &shared.config;
        let now = Instant::now();
        let linger = match shared.flushing.load(Ordering::Acquire) {
            true => Duration::ZERO,
            false => config.linger,
        };
        loop {
            let mut wake_at: Option<Instant> = None;
            let mut leaderless = false;
            let mut requests: BTreeMap<i32, (usize, Vec<Batch>)> = BTreeMap::new();
            let mut taken = Vec::new();
            {
                let mut state = shared.state.lock();
                if state.failed.is_some() {
                    return None;
                }
                let hungry = state.buffered >= config.buffer_bytes;
                let linger = if hungry { Duration::ZERO } else { linger };
                let count = state.partitions.len();
                self.start = (self.start + 1) % count;
                for position in 0..count {
                    let partition = (self.start + position) % count;
                    let accumulator = &mut state.partitions[partition];
                    match accumulator.ready(now, linger) {
                        Ok(()) => {}
                        Err(due) => {
                            wake_at = wake_at.into_iter().chain(due).min();
                            leaderless |= accumulator.leader < 0;
                            continue;
                        }
                    }
                    let leader = accumulator.leader;
                    let under_way = self
                        .brokers
                        .get(&leader)
                        .map_or(0, |broker| broker.under_way);
                    let (bytes, batches) = requests.entry(leader).or_default();
                    if under_way >= config.in_flight_max || *bytes >= config.request_bytes {
                        continue;
                    }
                    accumulator.under_way += 1;
                    accumulator.under_way_to = leader;
                    if let Some((_, batch)) = accumulator.repeat.pop_first() {
                        *bytes += batch.bytes.len();
                        batches.push(batch);
                        continue;
                    }
                    let next = accumulator
                        .full
                        .pop_front()
                        .or_else(|| accumulator.open.take());
                    if let Some(open) = next {
                        *bytes += open.builder.bytes();
                        accumulator.last_bytes = open.builder.bytes();
                        let order = accumulator.sent;
                        accumulator.sent += open.builder.records() as u64;
                        taken.push((leader, partition, order, open));
                    }
                }
            }
            for (leader, partition, order, open) in taken {
                match self.close(partition, order, open) {
                    Ok(batch) => requests.entry(leader).or_default().1.push(batch),
                    Err(error) => self.fail(ClientError::Undelivered(format!("{error:#}"))),
                }
            }
            if leaderless {
                self.refresh();
            }
            let mut sent = false;
            for (leader, (_, batches)) in requests {
                if !batches.is_empty() {
                    sent = true;
                    self.dispatch(leader, batches);
                }
            }
            if !sent {
                return wake_at;
            }
        }
    }

    fn close(&self, partition: usize, order: u64, open: Open) -> anyhow::Result<Batch> {
        let (id, epoch) = self.identity;
        // Sequences count to 2^31 and begin again at 0.
        let sequence = if id < 0 {
            -1
        } else {
            (order & 0x7fff_ffff) as i32
        };
        let buffered = open.buffered;
        let bytes = open
            .builder
            .finish(self.shared.config.compression, id, epoch, sequence)?;
        Ok(Batch {
            partition,
            order,
            buffered,
            bytes,
            appended_at: open.appended_at,
        })
    }

    fn dispatch(&mut self, leader: i32, batches: Vec<Batch>) {
        let broker = self.brokers.entry(leader).or_insert_with(|| {
            let (requests, queue) = mpsc::channel(self.shared.config.in_flight_max.max(1));
            let worker = Worker {
                broker: leader,
                cluster: self.cluster.clone(),
                topic: self.topic.clone(),
                config: self.shared.config.clone(),
                events: self.events.clone(),
            };
            tokio::spawn(worker.run(queue));
            Broker {
                requests,
                under_way: 0,
            }
        });
        broker.under_way += 1;
        // The queue holds as many as may be under way, so it is never full.
        if broker.requests.try_send(batches).is_err() {
            self.fail(ClientError::Undelivered(
                "a broker's worker has ended".to_owned(),
            ));
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Leaders(outcome) => {
                self.refreshing = false;
                if let Ok(leaders) = outcome {
                    let mut state = self.shared.state.lock();
                    for (accumulator, leader) in state.partitions.iter_mut().zip(leaders) {
                        accumulator.leader = leader;
                    }
                }
            }
            Event::Answered {
                broker,
                batches,
                answer,
            } => {
                if let Some(broker) = self.brokers.get_mut(&broker) {
                    broker.under_way -= 1;
                }
                self.settle(batches, answer);
            }
        }
    }

    fn settle(
        &mut self,
        batches: Vec<Batch>,
        answer: Result<Option<ProduceResponse>, ClientError>,
    ) {
        let outcomes: HashMap<i32, Result<i64, ClientError>> = match &answer {
            Ok(Some(answer)) => {
                let partitions = answer
                    .responses
                    .iter()
                    .flat_map(|topic| &topic.partition_responses);
                let outcome = |code: i16, offset, message: Option<&str>| match code {
                    DUPLICATE_SEQUENCE => Ok(-1),
                    code => check(code, || self.topic.to_string(), message).map(|()| offset),
                };
                let outcomes = partitions.map(|partition| {
                    let message = partition.error_message.as_ref().map(|text| text.as_str());
                    (
                        partition.index,
                        outcome(partition.error_code, partition.base_offset, message),
                    )
                });
                outcomes.collect()
            }
            _ => HashMap::new(),
        };
        for batch in batches {
            let outcome = match (&answer, outcomes.get(&(batch.partition as i32))) {
                (Err(error), _) => Err(error.clone()),
                (Ok(None), _) => Ok(-1),
                (Ok(Some(_)), Some(outcome)) => outcome.clone(),
                (Ok(Some(_)), None) => Err(ClientError::Undelivered("not answered".to_owned())),
            };
            self.settle_batch(batch, outcome);
        }
    }

    fn settle_batch(&mut self, batch: Batch, outcome: Result<i64, ClientError>) {
        let shared = self.shared.clone();
        let mut state = shared.state.lock();
        let accumulator = &mut state.partitions[batch.partition];
        accumulator.under_way -= 1;
        let error = match outcome {
            Ok(offset) => {
                state.buffered -= batch.buffered;
                drop(state);
                shared.progress.notify_waiters();
                return (self.report)(acknowledged(batch, Ok(offset)));
            }
            Err(error) => error,
        };
        // It follows one that has to be repeated.
        let follows = error.code() == Some(OUT_OF_ORDER_SEQUENCE)
            && accumulator.repeat.range(..batch.order).next().is_some();
        let age = batch.appended_at[0].elapsed();
        if (error.is_retriable() || follows) && age < shared.config.delivery_timeout {
            accumulator.not_before = Some(Instant::now() + REFRESH_PAUSE);
            accumulator.repeat.insert(batch.order, batch);
            drop(state);
            self.refresh();
            return;
        }
        state.buffered -= batch.buffered;
        drop(state);
        (self.report)(acknowledged(batch, Err(error.clone())));
        // What follows would leave a gap, which the broker refuses too.
        self.fail(error);
    }

    fn fail(&self, error: ClientError) {
        self.shared.state.lock().failed.get_or_insert(error);
        self.shared.progress.notify_waiters();
    }

    fn refresh(&mut self) {
        if std::mem::replace(&mut self.refreshing, true) {
            return;
        }
        let (cluster, topic, events) = (
            self.cluster.clone(),
            self.topic.clone(),
            self.events.clone(),
        );
        tokio::spawn(async move {
            tokio::time::sleep(REFRESH_PAUSE).await;
            let leaders = cluster.leaders(&topic, false).await;
            drop(events.send(Event::Leaders(leaders)).await);
        });
    }
}

fn acknowledged(batch: Batch, outcome: Result<i64, ClientError>) -> Acknowledged {
    Acknowledged {
        partition: batch.partition as i32,
        bytes: batch.bytes.len(),
        appended_at: batch.appended_at,
        outcome,
    }
}

/// The task that writes one broker's requests in order.
struct Worker {
    broker: i32,
    cluster: Cluster,
    topic: Arc<str>,
    config: ProducerConfig,
    events: mpsc::Sender<Event>,
}

impl Worker {
    async fn run(self, mut queue: mpsc::Receiver<Vec<Batch>>) {
        while let Some(batches) = queue.recv().await {
            let pending = self.write(&batches).await;
            let (broker, events) = (self.broker, self.events.clone());
            let timeout = self.config.request_timeout + Duration::from_secs(2);
            tokio::spawn(async move {
                let answer = match pending {
                    Ok(Some(pending)) => pending.answer(timeout).await.map(Some),
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                drop(
                    events
                        .send(Event::Answered {
                            broker,
                            batches,
                            answer,
                        })
                        .await,
                );
            });
        }
    }

    async fn write(
        &self,
        batches: &[Batch],
    ) -> Result<Option<PendingReply<ProduceResponse>>, ClientError> {
        let connection = self.cluster.broker(self.broker).await?;
        let version = connection.version::<ProduceRequest>()?;
        if version < PRODUCE_VERSION_MIN {
            return Err(ClientError::Unsupported(ProduceRequest::KEY));
        }
        let correlation_id = connection.next_correlation_id();
        let chunks = self.encode(&connection, version, correlation_id, batches);
        match self.config.acks {
            0 => connection.send_unanswered(chunks).await.map(|()| None),
            _ => connection
                .send_encoded(chunks, version, correlation_id)
                .await
                .map(Some),
        }
    }

    /// Versions 9 to 12 look alike. The batches are passed on, not copied.
    fn encode(
        &self,
        connection: &Connection,
        version: i16,
        correlation_id: i32,
        batches: &[Batch],
    ) -> Vec<Bytes> {
        let mut chunks = Vec::with_capacity(batches.len() * 2 + 1);
        let mut head = BytesMut::with_capacity(256);
        head.put_i16(ProduceRequest::KEY);
        head.put_i16(version);
        head.put_i32(correlation_id);
        head.put_i16(connection.client_id().len() as i16);
        head.put_slice(connection.client_id().as_bytes());
        head.put_u8(0); // tagged fields of the header
        head.put_u8(0); // no transactional id
        head.put_i16(self.config.acks);
        head.put_i32(self.config.request_timeout.as_millis() as i32);
        head.put_u8(2); // one topic
        put_uvarint(&mut head, self.topic.len() + 1);
        head.put_slice(self.topic.as_bytes());
        put_uvarint(&mut head, batches.len() + 1);
        for batch in batches {
            head.put_i32(batch.partition as i32);
            put_uvarint(&mut head, batch.bytes.len() + 1);
            chunks.push(head.split().freeze());
            chunks.push(batch.bytes.clone());
            head.put_u8(0); // tagged fields of the partition
        }
        head.put_u8(0); // of the topic
        head.put_u8(0); // of the request
        chunks.push(head.freeze());
        chunks
    }
}

fn put_uvarint(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

/// The hash by which Kafka's clients choose a keyed record's partition.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (position, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * position);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_kafkas_own_clients_send_them() {
        for (key, hash) in [
            ("21", -973932308),
            ("foobar", -790332482),
            ("a-little-bit-long-string", -985981536),
            ("a-little-bit-longer-string", -1486304829),
            (
                "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58897971,
            ),
            ("abc", 479470107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }
}
