//! A consumer of one topic: follows all its partitions from given offsets.
//!
//! One task a broker keeps a Fetch under way for the partitions that the broker
//! leads and hands what it got to a bounded queue, so that fetching and
//! processing overlap. One process reads every partition.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::aborted::leave_out_aborted;
use super::batch::{Batch, batches};
use super::cluster::{Cluster, topic_name};
use super::error::{ClientError, check};
use super::offsets::{EARLIEST, list_offsets};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
const OFFSET_OUT_OF_RANGE: i16 = 1;

/// How a consumer fetches.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// How long a broker waits for records when there are none.
    pub wait: Duration,
    /// Most bytes of one answer.
    pub bytes_max: i32,
    /// Most bytes of one partition in an answer.
    pub partition_bytes_max: i32,
    /// Whether records of open and aborted transactions are left out.
    pub committed_only: bool,
    /// Reads everything from this broker, whether it leads or not; followers of Kafka serve
    /// consumers (KIP-392).
    pub only_from: Option<i32>,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            wait: Duration::from_millis(500),
            bytes_max: 50 << 20,
            partition_bytes_max: 1 << 20,
            committed_only: false,
            only_from: None,
        }
    }
}

/// Batches of one partition, in order.
#[derive(Debug)]
pub struct Fetched {
    /// The partition.
    pub partition: i32,
    /// The first batch may begin before the offset that was asked for.
    pub from_offset: i64,
    /// The offset after the last record that readers may see.
    pub high_watermark: i64,
    /// Bytes of the batches.
    pub bytes: usize,
    /// The batches; those that a reader is not to see are left out.
    pub batches: Vec<Batch>,
    /// The offset after all of them, and after those that were left out.
    pub next_offset: i64,
}

/// Reads one topic.
pub struct Consumer {
    queue: mpsc::Receiver<Result<Fetched, ClientError>>,
    _tasks: JoinSet<()>,
}

struct Shared {
    cluster: Cluster,
    topic: String,
    config: ConsumerConfig,
    positions: Mutex<BTreeMap<i32, Position>>,
    /// Held while batches are queued and the position moves behind them: when a
    /// leader changes, the old one's task and the new one's may have the same.
    delivery: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Position {
    offset: i64,
    leader: i32,
}

impl Consumer {
    /// Begins to read partitions from the given offsets.
    pub async fn start(
        cluster: Cluster,
        topic: &str,
        offsets: &BTreeMap<i32, i64>,
        config: ConsumerConfig,
    ) -> Result<Consumer, ClientError> {
        let leaders = cluster.leaders(topic, false).await?;
        let only_from = config.only_from;
        let position = |(partition, offset): (&i32, &i64)| {
            let leader = leaders.get(*partition as usize).copied().unwrap_or(-1);
            let leader = only_from.unwrap_or(leader);
            (
                *partition,
                Position {
                    offset: *offset,
                    leader,
                },
            )
        };
        let shared = Arc::new(Shared {
            cluster,
            topic: topic.to_owned(),
            config,
            positions: Mutex::new(offsets.iter().map(position).collect()),
            delivery: tokio::sync::Mutex::new(()),
        });
        let (queue, fetched) = mpsc::channel(4);
        let mut tasks = JoinSet::new();
        tasks.spawn(shared.run(queue));
        Ok(Consumer {
            queue: fetched,
            _tasks: tasks,
        })
    }

    /// The next batches of some partition; `None` when the consumer has ended.
    pub async fn next(&mut self) -> Option<Result<Fetched, ClientError>> {
        self.queue.recv().await
    }
}

impl Shared {
    /// Keeps a fetching task for each broker that leads something, and the leaders up to date.
    async fn run(self: Arc<Self>, queue: mpsc::Sender<Result<Fetched, ClientError>>) {
        let mut fetchers: JoinSet<i32> = JoinSet::new();
        let mut running: HashMap<i32, tokio::task::AbortHandle> = HashMap::new();
        loop {
            let leaders: Vec<i32> = self
                .positions
                .lock()
                .values()
                .map(|position| position.leader)
                .collect();
            for leader in leaders.iter().copied().filter(|leader| *leader >= 0) {
                running.entry(leader).or_insert_with(|| {
                    fetchers.spawn(self.clone().fetch_from(leader, queue.clone()))
                });
            }
            let leaderless = leaders.contains(&-1);
            tokio::select! {
                ended = fetchers.join_next(), if !fetchers.is_empty() => {
                    if let Some(Ok(broker)) = ended {
                        running.remove(&broker);
                    }
                }
                () = tokio::time::sleep(REFRESH_PAUSE), if leaderless => {}
                () = queue.closed() => return,
            }
            if queue.is_closed() {
                return;
            }
            tokio::time::sleep(REFRESH_PAUSE).await;
            match self.cluster.leaders(&self.topic, false).await {
                Ok(leaders) => {
                    for (partition, position) in self.positions.lock().iter_mut() {
                        let leader = leaders.get(*partition as usize).copied().unwrap_or(-1);
                        position.leader = self.config.only_from.unwrap_or(leader);
                    }
                }
                Err(error) if error.is_retriable() => {}
                Err(error) => return drop(queue.send(Err(error)).await),
            }
        }
    }

    /// Fetches until the broker fails or stops leading something; returns the broker.
    async fn fetch_from(
        self: Arc<Self>,
        broker: i32,
        queue: mpsc::Sender<Result<Fetched, ClientError>>,
    ) -> i32 {
        loop {
            match self.fetch(broker).await {
                Ok((fetched, moved)) => {
                    for fetched in fetched {
                        if self.deliver(fetched, &queue).await.is_err() {
                            return broker;
                        }
                    }
                    if moved {
                        return broker;
                    }
                }
                Err(error) if error.is_retriable() => return broker,
                Err(error) => {
                    drop(queue.send(Err(error)).await);
                    return broker;
                }
            }
        }
    }

    /// Queues batches unless another task was first; `Err` when nobody listens any more.
    async fn deliver(
        &self,
        fetched: Fetched,
        queue: &mpsc::Sender<Result<Fetched, ClientError>>,
    ) -> Result<(), ()> {
        let _order = self.delivery.lock().await;
        let (partition, from_offset) = (fetched.partition, fetched.from_offset);
        let next = fetched.next_offset;
        let at = self
            .positions
            .lock()
            .get(&partition)
            .map(|position| position.offset);
        if at != Some(from_offset) {
            return Ok(());
        }
        queue.send(Ok(fetched)).await.map_err(|_| ())?;
        if let Some(position) = self.positions.lock().get_mut(&partition) {
            position.offset = next;
        }
        Ok(())
    }

    /// One Fetch; whether a partition was not led there any more.
    async fn fetch(&self, broker: i32) -> Result<(Vec<Fetched>, bool), ClientError> {
        let wanted: BTreeMap<i32, i64> = {
            let positions = self.positions.lock();
            let led = positions
                .iter()
                .filter(|(_, position)| position.leader == broker);
            led.map(|(partition, position)| (*partition, position.offset))
                .collect()
        };
        if wanted.is_empty() {
            return Ok((Vec::new(), true));
        }
        let partitions = wanted.iter().map(|(partition, offset)| {
            FetchPartition::default()
                .with_partition(*partition)
                .with_current_leader_epoch(-1)
                .with_fetch_offset(*offset)
                .with_last_fetched_epoch(-1)
                .with_log_start_offset(-1)
                .with_partition_max_bytes(self.config.partition_bytes_max)
        });
        let topic = FetchTopic::default()
            .with_topic(topic_name(&self.topic))
            .with_partitions(partitions.collect());
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(self.config.wait.as_millis() as i32)
            .with_min_bytes(1)
            .with_max_bytes(self.config.bytes_max)
            .with_isolation_level(i8::from(self.config.committed_only))
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let connection = self.cluster.broker(broker).await?;
        let answer = connection
            .call(&request, self.config.wait + REQUEST_TIMEOUT)
            .await?;
        check(
            answer.error_code,
            || format!("fetch from broker {broker}"),
            None,
        )?;
        let mut fetched = Vec::new();
        let mut moved = false;
        for partition in answer
            .responses
            .into_iter()
            .flat_map(|topic| topic.partitions)
        {
            let index = partition.partition_index;
            let Some(from_offset) = wanted.get(&index).copied() else {
                continue;
            };
            let about = || format!("fetch of {}-{index} at {from_offset}", self.topic);
            match check(partition.error_code, about, None) {
                Ok(()) => {}
                Err(error) if error.code() == Some(OFFSET_OUT_OF_RANGE) => {
                    self.restart(index, partition.log_start_offset, error)
                        .await?;
                    continue;
                }
                Err(error) if error.is_retriable() => {
                    moved = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let bytes = partition.records.unwrap_or_default();
            let size = bytes.len();
            let mut batches = split(bytes, connection.address())?;
            let Some(last) = batches.last() else {
                continue;
            };
            let next_offset = last.last_offset + 1;
            if self.config.committed_only {
                let aborted = partition.aborted_transactions.unwrap_or_default();
                leave_out_aborted(&mut batches, aborted);
            }
            fetched.push(Fetched {
                partition: index,
                from_offset,
                high_watermark: partition.high_watermark,
                bytes: size,
                batches,
                next_offset,
            });
        }
        Ok((fetched, moved))
    }

    /// What was to be read next is deleted: goes on with the first that is there.
    async fn restart(
        &self,
        partition: i32,
        log_start: i64,
        error: ClientError,
    ) -> Result<(), ClientError> {
        let earliest = match log_start {
            start if start >= 0 => start,
            _ => {
                let found = list_offsets(&self.cluster, &self.topic, EARLIEST).await?;
                found.get(&partition).copied().ok_or(error)?
            }
        };
        if let Some(position) = self.positions.lock().get_mut(&partition) {
            position.offset = earliest;
        }
        Ok(())
    }
}

fn split(bytes: Bytes, address: &str) -> Result<Vec<Batch>, ClientError> {
    batches(bytes).map_err(|error| ClientError::Malformed {
        address: address.to_owned(),
        reason: format!("{error:#}"),
    })
}
