//! The load of a scenario: producers, consumers and those who contend for
//! metadata and group state, started and stopped together.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use drave_durability::history::{History, LiveRead};
use drave_durability::operation::Operation;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::caller::Caller;
use super::clock::Clock;
use super::producers::{self, Counters, Produced, Work};
use super::{admins, committers, consumers, transactions};
use crate::client::Cluster;

/// Clients that contend for topic names,
const ADMINS: u32 = 2;
/// and for committed offsets.
const COMMITTERS: u32 = 3;
/// Replicas of the topics that are created: fewer than there are brokers, so
/// that one that is away does not end it all.
const REPLICAS_MAX: usize = 2;

/// What producers and consumers do.
#[derive(Clone, Debug)]
pub struct Load {
    /// Partitions of the topic.
    pub partitions: u32,
    /// Idempotent producers with acks=all,
    pub producers: u32,
    /// producers without idempotence, with acks=all,
    pub plain_producers: u32,
    /// producers with acks=1,
    pub acks1_producers: u32,
    /// and idempotent producers that write in transactions.
    pub transactional_producers: u32,
    /// Consumers that read everything as it comes.
    pub consumers: u32,
    /// Records a second of all producers together.
    pub rate: u32,
    /// Size of a record's value.
    pub value_bytes: usize,
}

impl Load {
    /// What of it the target can take, with a remark for the report on what it can't; the
    /// target is made ready for it.
    pub(super) async fn prepare(
        &self,
        topic: &str,
        cluster: &Cluster,
    ) -> anyhow::Result<(Load, Option<String>)> {
        let mut load = self.clone();
        if load.transactional_producers == 0 || transactions::prepare(cluster, topic).await? {
            return Ok((load, None));
        }
        load.transactional_producers = 0;
        ensure!(
            load.all_producers() > 0,
            "nothing but transactions is to be written, and the target has none"
        );
        let note = "no transactions were written: the target does not have them";
        Ok((load, Some(note.to_owned())))
    }

    /// Producers of all kinds.
    pub fn all_producers(&self) -> u32 {
        self.producers + self.plain_producers + self.acks1_producers + self.transactional_producers
    }

    /// What each producer does, and its transactional id if it is to have one.
    fn works(
        &self,
        topic: &str,
        cluster: &dyn Fn() -> Cluster,
        clock: Clock,
        counters: &Arc<Counters>,
    ) -> Vec<(Work, Option<String>)> {
        let work = |acks, idempotent| Work {
            cluster: cluster(),
            topic: topic.to_owned(),
            partitions: self.partitions,
            acks,
            idempotent,
            rate: self.rate.div_ceil(self.all_producers()),
            value_bytes: self.value_bytes,
            clock,
            counters: counters.clone(),
        };
        let idempotent = (0..self.producers).map(|_| (work(-1, true), None));
        let plain = (0..self.plain_producers).map(|_| (work(-1, false), None));
        let acks1 = (0..self.acks1_producers).map(|_| (work(1, false), None));
        let transactional = (0..self.transactional_producers).map(|number| {
            let id = transactions::transactional_id(topic, number);
            (work(-1, true), Some(id))
        });
        (idempotent.chain(plain).chain(acks1).chain(transactional)).collect()
    }
}

/// Clients at work.
pub(super) struct Clients {
    topic: String,
    admin: Cluster,
    stop_producers: watch::Sender<bool>,
    stop_consumers: watch::Sender<bool>,
    producers: JoinSet<Produced>,
    consumers: JoinSet<Vec<LiveRead>>,
    callers: JoinSet<Vec<Operation>>,
}

impl Clients {
    pub(super) fn start(
        load: &Load,
        topic: &str,
        brokers: usize,
        cluster: &dyn Fn() -> Cluster,
        clock: Clock,
        counters: &Arc<Counters>,
    ) -> Clients {
        let mut clients = Clients {
            topic: topic.to_owned(),
            admin: cluster(),
            stop_producers: watch::Sender::new(false),
            stop_consumers: watch::Sender::new(false),
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
            callers: JoinSet::new(),
        };
        for (work, transactional_id) in load.works(topic, cluster, clock, counters) {
            let stop = clients.stop_producers.subscribe();
            match transactional_id {
                Some(id) => clients
                    .producers
                    .spawn(transactions::produce(work, id, stop)),
                None => clients.producers.spawn(producers::produce(work, stop)),
            };
        }
        for consumer in 0..load.consumers {
            let stop = clients.stop_consumers.subscribe();
            clients.consumers.spawn(consumers::consume(
                cluster(),
                topic.to_owned(),
                load.partitions,
                consumer,
                clock,
                stop,
            ));
        }
        for client in 0..ADMINS + COMMITTERS {
            let stop = clients.stop_producers.subscribe();
            let caller = Caller::new(client, cluster(), clock, stop);
            let topic = topic.to_owned();
            if client < ADMINS {
                let replicas = brokers.min(REPLICAS_MAX) as i16;
                let work = admins::administer(caller, topic, replicas);
                clients.callers.spawn(work);
            } else {
                clients.callers.spawn(committers::commit(caller, topic));
            }
        }
        clients
    }

    /// Ends them, producers first, and writes down what they remember. What
    /// can't be cleared away behind them becomes a remark for the report.
    pub(super) async fn stop(
        mut self,
        clock: Clock,
        history: &mut History,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<()> {
        self.stop_producers.send_replace(true);
        history.stopped_us = clock.now_us();
        while let Some(ended) = self.producers.join_next().await {
            let produced = ended.context("a producer")?;
            history.producers.extend(produced.kinds);
            history.writes.extend(produced.writes);
            history.transactions.extend(produced.transactions);
            for (error, count) in produced.repeated {
                *history.repeated.entry(error).or_default() += count;
            }
        }
        history.producers.sort_by_key(|kind| kind.producer);
        history
            .writes
            .sort_by_key(|write| (write.sent_us, write.id));
        history.transactions.sort_by_key(|it| it.number);
        while let Some(ended) = self.callers.join_next().await {
            let operations = ended.context("a client")?;
            history.operations.extend(operations);
        }
        history
            .operations
            .sort_by_key(|operation| (operation.called_us, operation.client));
        if let Err(error) = admins::remove(&self.admin, &self.topic).await {
            notes.push(format!("created topics are left behind: {error}"));
        }
        if let Err(error) = committers::remove(&self.admin, &self.topic).await {
            notes.push(format!("groups are left behind: {error}"));
        }
        // What was acknowledged last is still to be seen.
        sleep(Duration::from_millis(500)).await;
        self.stop_consumers.send_replace(true);
        while let Some(ended) = self.consumers.join_next().await {
            history.live.extend(ended.context("a consumer")?);
        }
        Ok(())
    }
}
