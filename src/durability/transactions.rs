//! Producers that write in transactions, and remember how each of them ended.
//!
//! A transaction is committed, or one in five aborted, when all its records are
//! acknowledged. After an error its producer begins anew and takes its transactional
//! id again: the cluster then aborts what was left open, or completes it if its commit
//! had arrived.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use drave_durability::history::{Ending, ProducerKind, Transaction};
use drave_durability::record::RecordId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::producers::{
    DELIVERY_TIMEOUT, Memory, PAUSE, Pace, Produced, REQUEST_TIMEOUT, Work, flush, hand_over,
    reporter,
};
use crate::client::{ClientError, Cluster, Producer, ProducerConfig, Transactional};

/// Records are written to one transaction for so long.
const LENGTH: Duration = Duration::from_millis(100);
/// Partitions that a transaction is about, at most.
const PARTITIONS: u32 = 3;
/// One in so many transactions is aborted.
const ABORTED_ONE_IN: u32 = 5;
/// The cluster aborts a transaction that lasts longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A commit without an answer is sent again for so long. Shorter than some faults, so
/// that how a transaction ended is not always known.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How long the cluster may take for everything else that is asked of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The transactional id of a producer of transactions on a topic.
pub(super) fn transactional_id(topic: &str, number: u32) -> String {
    format!("{topic}-{number}")
}

/// Has the cluster make ready for transactions; false: it has none.
pub(super) async fn prepare(cluster: &Cluster, topic: &str) -> Result<bool, ClientError> {
    let supported = cluster
        .retry(ANSWER_WITHIN, || Transactional::are_supported(cluster))
        .await?;
    if supported {
        take(cluster, &transactional_id(topic, 0)).await?;
    }
    Ok(supported)
}

async fn take(cluster: &Cluster, id: &str) -> Result<Transactional, ClientError> {
    Transactional::take(cluster.clone(), id, TIMEOUT, ANSWER_WITHIN).await
}

/// Writes transactions until told to stop.
pub(super) async fn produce(
    work: Work,
    transactional_id: String,
    mut stop: watch::Receiver<bool>,
) -> Produced {
    let mut produced = Produced::default();
    let mut left_open = false;
    while !*stop.borrow() {
        let taken = tokio::select! {
            taken = take(&work.cluster, &transactional_id) => taken,
            _ = stop.changed() => break,
        };
        if let Ok(held) = taken {
            let (kind, memory) = (work.next_producer(), Memory::new(work.partitions));
            let transactions = &mut produced.transactions;
            let outcome = incarnation(&work, kind, &memory, &held, transactions, &stop).await;
            left_open = outcome.is_err();
            let ended = outcome.err().unwrap_or_else(|| "stopped".to_owned());
            produced.add(kind, &memory, &ended, work.clock.now_us());
        }
        sleep(PAUSE).await;
    }
    if left_open {
        // It would hold up readers until the cluster aborts it, which it does if this fails.
        take(&work.cluster, &transactional_id).await.ok();
    }
    produced
}

/// Writes as one producer, up to an error or the end of the transaction in which it is told to stop.
async fn incarnation(
    work: &Work,
    kind: ProducerKind,
    memory: &Arc<Mutex<Memory>>,
    held: &Transactional,
    transactions: &mut Vec<Transaction>,
    stop: &watch::Receiver<bool>,
) -> Result<(), String> {
    let config = ProducerConfig {
        acks: kind.acks,
        idempotent: kind.idempotent,
        transactional: Some(held.identity().clone()),
        request_timeout: REQUEST_TIMEOUT,
        delivery_timeout: DELIVERY_TIMEOUT,
        ..ProducerConfig::default()
    };
    let report = reporter(work, memory);
    let producer = Producer::new(work.cluster.clone(), &work.topic, config, report)
        .await
        .map_err(|error| error.to_string())?;
    let ended = write(work, kind, memory, held, &producer, transactions, stop).await;
    memory.lock().repeated = producer.repeated();
    ended
}

async fn write(
    work: &Work,
    kind: ProducerKind,
    memory: &Mutex<Memory>,
    held: &Transactional,
    producer: &Producer,
    transactions: &mut Vec<Transaction>,
    stop: &watch::Receiver<bool>,
) -> Result<(), String> {
    let text = |error: ClientError| error.to_string();
    let mut pace = Pace::new(work.rate);
    let mut sequence = 0;
    while !*stop.borrow() {
        let counter = &work.counters.next_transaction;
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let count = work.partitions.min(PARTITIONS);
        let partitions = (0..count).map(|n| (number.wrapping_add(n) % work.partitions) as i32);
        let partitions: Vec<i32> = partitions.collect();
        held.add_partitions(&work.topic, &partitions, ANSWER_WITHIN)
            .await
            .map_err(text)?;
        let place = transactions.len();
        transactions.push(Transaction {
            number,
            producer: kind.producer,
            ending: Ending::Aborted,
        });
        let until = Instant::now() + LENGTH;
        while Instant::now() < until {
            for _ in 0..pace.due(sequence).await {
                let id = RecordId {
                    producer: kind.producer,
                    sequence,
                };
                let partition = partitions[sequence as usize % partitions.len()] as u32;
                match hand_over(work, memory, producer, id, partition, Some(number))? {
                    true => sequence += 1,
                    false => break,
                }
            }
        }
        flush(producer).await?;
        if number % ABORTED_ONE_IN == ABORTED_ONE_IN - 1 {
            held.end(false, END_WITHIN).await.map_err(text)?;
            continue;
        }
        let asked_us = work.clock.now_us();
        transactions[place].ending = Ending::Unknown { asked_us };
        held.end(true, END_WITHIN).await.map_err(text)?;
        transactions[place].ending = Ending::Committed { asked_us };
    }
    Ok(())
}
