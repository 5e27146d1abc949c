//! The task that owns batches from their closing to their report.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kafka_protocol::messages::ProduceResponse;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::accumulator::{Batch, Open};
use super::worker::Worker;
use super::{Acknowledged, Report, Shared};
use crate::client::cluster::Cluster;
use crate::client::error::{ClientError, check};

const REFRESH_PAUSE: Duration = Duration::from_millis(50);
const OUT_OF_ORDER_SEQUENCE: i16 = 45;
const DUPLICATE_SEQUENCE: i16 = 46;

pub(super) enum Event {
    Answered {
        broker: i32,
        batches: Vec<Batch>,
        answer: Result<Option<ProduceResponse>, ClientError>,
    },
    Leaders(Result<Vec<i32>, ClientError>),
}

pub(super) struct Broker {
    pub(super) requests: mpsc::Sender<Vec<Batch>>,
    pub(super) under_way: usize,
}

/// The task that owns batches from their closing to their report.
pub(super) struct Sender {
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Cluster,
    pub(super) topic: Arc<str>,
    pub(super) identity: (i64, i16),
    pub(super) report: Report,
    pub(super) brokers: HashMap<i32, Broker>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) refreshing: bool,
    /// The partition to begin with, so that each gets its turn.
    pub(super) start: usize,
}

impl Sender {
    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Event>) {
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
                    accumulator.under_way_to = leader;
                    if let Some((order, batch)) = accumulator.repeat.pop_first() {
                        accumulator.under_way.insert(order);
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
                        accumulator.under_way.insert(order);
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

    fn close(&self, partition: usize, order: u64, mut open: Open) -> anyhow::Result<Batch> {
        let (id, epoch) = self.identity;
        // Sequences count to 2^31 and begin again at 0.
        let sequence = if id < 0 {
            -1
        } else {
            (order & 0x7fff_ffff) as i32
        };
        let buffered = open.buffered;
        let config = &self.shared.config;
        if config.transactional.is_some() {
            open.builder.set_transactional();
        }
        let bytes = open
            .builder
            .finish(config.compression, id, epoch, sequence)?;
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
        accumulator.under_way.remove(&batch.order);
        let error = match outcome {
            Ok(offset) => {
                accumulator.introduced = true;
                drop(state);
                return self.report(batch, Ok(offset));
            }
            Err(error) => error,
        };
        // It follows one that has to be repeated.
        let follows =
            error.code() == Some(OUT_OF_ORDER_SEQUENCE) && accumulator.follows_another(batch.order);
        let age = batch.appended_at[0].elapsed();
        if (error.is_retriable() || follows) && age < shared.config.delivery_timeout {
            accumulator.not_before = Some(Instant::now() + REFRESH_PAUSE);
            // Nothing goes to the old leader before it is known to be the new one too.
            accumulator.leader = -1;
            accumulator.repeat(batch);
            *state.repeated.entry(error.kind()).or_default() += 1;
            drop(state);
            self.refresh();
            return;
        }
        drop(state);
        // What follows would leave a gap, which the broker refuses too.
        self.fail(error.clone());
        self.report(batch, Err(error));
    }

    /// A batch counts as under way until it is reported: who waits for that knows all.
    fn report(&self, batch: Batch, outcome: Result<i64, ClientError>) {
        let buffered = batch.buffered;
        (self.report)(acknowledged(batch, outcome));
        self.shared.state.lock().buffered -= buffered;
        self.shared.progress.notify_waiters();
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
        first: batch.order,
        bytes: batch.bytes.len(),
        appended_at: batch.appended_at,
        outcome,
    }
}
