//! The load generator: records of random bytes, one after the other to each
//! partition, acks=all, idempotent, uncompressed.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use drave::client::{
    ClientError, Consumer, ConsumerConfig, EARLIEST, LATEST, Producer, ProducerConfig, check,
    list_offsets, topic_name,
};
use hdrhistogram::Histogram;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::{CreateTopicsRequest, DeleteTopicsRequest};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::report::Figures;
use crate::servers::{Servers, Usage};

/// Records handed over before others get a turn on the one thread.
const RECORDS_PER_TURN: u64 = 64;
/// Bytes under way at full speed.
const BUFFER_BYTES: usize = 16 << 20;

/// What is sent where for how long.
pub(crate) struct Load {
    /// What the figures are called.
    pub(crate) name: &'static str,
    /// The topic.
    pub(crate) topic: String,
    /// Its partitions.
    pub(crate) partitions: i32,
    /// Bytes of a record's value.
    pub(crate) record_bytes: usize,
    /// Time before the figures count.
    pub(crate) warm_up: Duration,
    /// Time that counts.
    pub(crate) measured: Duration,
}

/// Counted by the producer's reports.
struct Counted {
    /// Records appended before it don't count.
    from: Instant,
    until: Instant,
    records: u64,
    /// Time from append to acknowledgement, µs.
    latencies: Histogram<u64>,
    failure: Option<ClientError>,
}

impl Load {
    /// Makes the topic, three replicas each, and waits until it has leaders.
    pub(crate) async fn create_topic(&self, servers: &Servers) -> anyhow::Result<()> {
        let topic = CreatableTopic::default()
            .with_name(topic_name(&self.topic))
            .with_num_partitions(self.partitions)
            .with_replication_factor(3);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(60_000);
        let cluster = servers.cluster();
        for topic in cluster.call(&request).await?.topics {
            check(topic.error_code, || self.topic.clone(), None)?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let leaders = cluster.leaders(&self.topic, false).await;
            if leaders.is_ok_and(|leaders| !leaders.is_empty() && !leaders.contains(&-1)) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} has no leaders", self.topic);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Deletes the topic, so that the next load finds the space.
    pub(crate) async fn delete_topic(&self, servers: &Servers) -> anyhow::Result<()> {
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![
                DeleteTopicState::default().with_name(Some(topic_name(&self.topic))),
            ])
            .with_timeout_ms(60_000);
        for topic in servers.cluster().call(&request).await?.responses {
            check(topic.error_code, || self.topic.clone(), None)?;
        }
        Ok(())
    }

    async fn producer(
        &self,
        servers: &Servers,
        linger: Duration,
        counted: &Arc<Mutex<Counted>>,
    ) -> anyhow::Result<Producer> {
        let config = ProducerConfig {
            linger,
            batch_bytes: 1_000_000,
            buffer_bytes: BUFFER_BYTES,
            // Brokers that flush 600 files one by one take their time.
            request_timeout: Duration::from_secs(60),
            delivery_timeout: Duration::from_secs(120),
            ..ProducerConfig::default()
        };
        let counted = counted.clone();
        let report = move |batch: drave::client::Acknowledged| {
            let now = Instant::now();
            let mut counted = counted.lock();
            if let Err(error) = batch.outcome {
                counted.failure.get_or_insert(error);
                return;
            }
            if now >= counted.from && now < counted.until {
                counted.records += batch.appended_at.len() as u64;
                for appended_at in batch.appended_at {
                    if appended_at >= counted.from {
                        counted
                            .latencies
                            .saturating_record((now - appended_at).as_micros() as u64);
                    }
                }
            }
        };
        Ok(Producer::new(servers.cluster(), &self.topic, config, report).await?)
    }

    fn counted(&self) -> anyhow::Result<Arc<Mutex<Counted>>> {
        let from = Instant::now() + self.warm_up;
        Ok(Arc::new(Mutex::new(Counted {
            from,
            until: from + self.measured,
            records: 0,
            latencies: Histogram::new_with_max(120_000_000, 3)?,
            failure: None,
        })))
    }

    /// Waits for the last answers and adds up.
    async fn finish(
        &self,
        servers: &Servers,
        producer: Producer,
        counted: Arc<Mutex<Counted>>,
        before: Option<Usage>,
    ) -> anyhow::Result<Figures> {
        let after = servers.usage()?;
        let own = self.warm_up + self.measured;
        producer.flush().await.context("flush")?;
        drop(producer);
        let counted = counted.lock();
        if let Some(failure) = &counted.failure {
            return Err(failure.clone().into());
        }
        let before = before.with_context(|| format!("no usage was taken within {own:?}"))?;
        let bytes = counted.records as f64 * self.record_bytes as f64;
        let percentile = |which| counted.latencies.value_at_quantile(which) as f64 / 1000.0;
        Ok(Figures {
            mb_a_second: bytes / 1e6 / self.measured.as_secs_f64(),
            records_a_second: counted.records as f64 / self.measured.as_secs_f64(),
            p50_ms: Some(percentile(0.5)),
            p99_ms: Some(percentile(0.99)),
            p999_ms: Some(percentile(0.999)),
            cpu_cores: (after.cpu_seconds - before.cpu_seconds) / self.measured.as_secs_f64(),
            cpu_seconds_a_gb: (after.cpu_seconds - before.cpu_seconds) / (bytes / 1e9),
            written_a_byte: (after.written_bytes - before.written_bytes) as f64 / bytes,
            resident_mb: after.resident_bytes as f64 / 1e6,
        })
    }
}

/// Bytes that don't compress; every record is a slice of them.
fn random_bytes(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// At full speed.
pub(crate) async fn throughput(load: &Load, servers: &Servers) -> anyhow::Result<Figures> {
    let counted = load.counted()?;
    let producer = load
        .producer(servers, Duration::from_millis(5), &counted)
        .await?;
    let (from, until) = span(&counted);
    let random = random_bytes(1 << 20);
    let mut before = None;
    let mut sent = 0u64;
    loop {
        for _ in 0..RECORDS_PER_TURN {
            let at = (sent as usize * 8191) % (random.len() - load.record_bytes);
            let value = &random[at..at + load.record_bytes];
            producer
                .send((sent % load.partitions as u64) as usize, None, Some(value))
                .await?;
            sent += 1;
        }
        tokio::task::yield_now().await;
        let now = Instant::now();
        if before.is_none() && now >= from {
            before = Some(servers.usage()?);
        }
        if now >= until {
            break;
        }
    }
    load.finish(servers, producer, counted, before).await
}

fn span(counted: &Mutex<Counted>) -> (Instant, Instant) {
    let counted = counted.lock();
    (counted.from, counted.until)
}

/// At a fixed rate, whatever the brokers do: records that are late are made up for.
pub(crate) async fn latency(load: &Load, servers: &Servers, rate: u64) -> anyhow::Result<Figures> {
    let counted = load.counted()?;
    let producer = load.producer(servers, Duration::ZERO, &counted).await?;
    let (from, until) = span(&counted);
    let random = random_bytes(1 << 20);
    let start = Instant::now();
    let mut before = None;
    let mut sent = 0u64;
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    while Instant::now() < until {
        tick.tick().await;
        let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
        while sent < due {
            let at = (sent as usize * 8191) % (random.len() - load.record_bytes);
            let value = &random[at..at + load.record_bytes];
            producer
                .send((sent % load.partitions as u64) as usize, None, Some(value))
                .await?;
            sent += 1;
        }
        if before.is_none() && Instant::now() >= from {
            before = Some(servers.usage()?);
        }
    }
    load.finish(servers, producer, counted, before).await
}

/// Reads everything that a load wrote, once.
pub(crate) async fn read_back(load: &Load, servers: &Servers) -> anyhow::Result<Figures> {
    let cluster = servers.cluster();
    let first = list_offsets(&cluster, &load.topic, EARLIEST).await?;
    let end = list_offsets(&cluster, &load.topic, LATEST).await?;
    let total: i64 = end.values().sum::<i64>() - first.values().sum::<i64>();
    let config = ConsumerConfig {
        partition_bytes_max: 8 << 20,
        ..ConsumerConfig::default()
    };
    let before = servers.usage()?;
    let start = Instant::now();
    let mut consumer = Consumer::start(cluster, &load.topic, &first, config).await?;
    let (mut records, mut bytes) = (0i64, 0usize);
    let positions = RefCell::new(first);
    while records < total {
        let next = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await;
        let fetched = next
            .context("nothing came for 30 s")?
            .context("the consumer ended")??;
        bytes += fetched.bytes;
        for batch in &fetched.batches {
            records += i64::from(batch.record_count);
            let mut positions = positions.borrow_mut();
            let position = positions.entry(fetched.partition).or_default();
            ensure!(
                batch.base_offset == *position,
                "partition {} has offset {} where {position} was due",
                fetched.partition,
                batch.base_offset
            );
            *position = batch.last_offset + 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = servers.usage()?;
    let bytes = bytes as f64;
    Ok(Figures {
        mb_a_second: bytes / 1e6 / seconds,
        records_a_second: records as f64 / seconds,
        p50_ms: None,
        p99_ms: None,
        p999_ms: None,
        cpu_cores: (after.cpu_seconds - before.cpu_seconds) / seconds,
        cpu_seconds_a_gb: (after.cpu_seconds - before.cpu_seconds) / (bytes / 1e9),
        written_a_byte: (after.written_bytes - before.written_bytes) as f64 / bytes,
        resident_mb: after.resident_bytes as f64 / 1e6,
    })
}
