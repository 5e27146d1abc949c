//! Consumers that remember what they were given, while the cluster is hurt and afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use drave_durability::history::{FinalRead, LiveRead, Seen};
use drave_durability::record;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::clock::Clock;
use crate::client::{
    ClientError, Cluster, Consumer, ConsumerConfig, Fetched, LATEST, list_offsets, records,
    stable_offsets,
};

/// A consumer that failed starts again after this pause.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the cluster may take to serve everything that it acknowledged.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// How long the log's end may lie before what was acknowledged: a new leader
/// learns late how far its followers are.
const END_WITHIN: Duration = Duration::from_secs(30);

/// Where a partition ends,
#[derive(Clone, Copy, Default)]
struct End {
    end: i64,
    /// and how far a reader of committed records gets: up to the first transaction that is open.
    stable: i64,
}

/// Reads all partitions from their start until told to stop: what is committed, as all readers here.
pub(super) async fn consume(
    cluster: Cluster,
    topic: String,
    partitions: u32,
    consumer: u32,
    clock: Clock,
    mut stop: watch::Receiver<bool>,
) -> Vec<LiveRead> {
    let mut reads: Vec<LiveRead> = (0..partitions)
        .map(|partition| LiveRead {
            consumer,
            partition,
            seen: Vec::new(),
        })
        .collect();
    let mut positions: BTreeMap<i32, i64> = (0..partitions as i32).map(|p| (p, 0)).collect();
    while !*stop.borrow() {
        let started = Consumer::start(cluster.clone(), &topic, &positions, config()).await;
        if let Ok(mut started) = started {
            loop {
                let next = tokio::select! {
                    next = started.next() => next,
                    _ = stop.changed() => break,
                };
                let Some(Ok(fetched)) = next else { break };
                let now_us = clock.now_us();
                let position = positions.entry(fetched.partition).or_default();
                let read = &mut reads[fetched.partition as usize];
                take(&fetched, position, |seen| read.seen.push((now_us, seen)));
            }
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            _ = stop.changed() => {}
        }
    }
    reads
}

fn config() -> ConsumerConfig {
    ConsumerConfig {
        wait: Duration::from_millis(100),
        committed_only: true,
        ..ConsumerConfig::default()
    }
}

/// Takes what was fetched from `position` on, and moves it behind.
fn take(fetched: &Fetched, position: &mut i64, mut see: impl FnMut(Seen)) {
    for batch in &fetched.batches {
        let next = batch.last_offset + 1;
        if batch.is_control() {
            *position = next.max(*position);
            continue;
        }
        match records(batch) {
            Ok(records) => {
                for record in records {
                    if record.offset >= *position {
                        let value = record.value.as_deref().unwrap_or_default();
                        see(Seen {
                            offset: record.offset,
                            record: record::decode(value),
                        });
                    }
                }
            }
            Err(error) => see(Seen {
                offset: batch.base_offset,
                record: Err(format!("{error:#}")),
            }),
        }
        *position = next.max(*position);
    }
    *position = fetched.next_offset.max(*position);
}

/// Reads every partition from its start to its end. `expected` are the offsets
/// after the last record that was acknowledged: the end may come late. With
/// `only_from` this broker serves it all, otherwise each partition's leader.
pub(super) async fn read_back(
    cluster: &Cluster,
    topic: &str,
    from: &str,
    only_from: Option<u32>,
    expected: &[i64],
) -> Vec<FinalRead> {
    let ends = ends(cluster, topic, expected).await;
    let ends = &ends;
    let reads = (0..expected.len()).map(async |partition| {
        let seen = match ends {
            Ok(ends) => {
                let End { end, stable } = ends[partition];
                match stable >= end {
                    true => {
                        read_partition(cluster, topic, partition as i32, end, only_from).await
                    }
                    false => Err(format!(
                        "a transaction that does not end holds readers up at offset {stable} of {end}"
                    )),
                }
            }
            Err(error) => Err(error.clone()),
        };
        FinalRead {
            from: from.to_owned(),
            partition: partition as u32,
            seen,
        }
    });
    // Side by side: a partition that can't be read holds up no other.
    join_all(reads).await
}

/// Where each partition ends, when no transaction is open any more.
async fn ends(cluster: &Cluster, topic: &str, expected: &[i64]) -> Result<Vec<End>, String> {
    let deadline = Instant::now() + END_WITHIN;
    loop {
        let found = ends_now(cluster, topic, expected.len()).await;
        let complete = found.as_ref().is_ok_and(|ends| {
            let mut ends = ends.iter().zip(expected);
            ends.all(|(found, expected)| found.end >= *expected && found.stable >= found.end)
        });
        if complete || Instant::now() > deadline {
            return found.map_err(|error| error.to_string());
        }
        sleep(PAUSE).await;
    }
}

async fn ends_now(
    cluster: &Cluster,
    topic: &str,
    partitions: usize,
) -> Result<Vec<End>, ClientError> {
    let ends = list_offsets(cluster, topic, LATEST).await?;
    // Asked later: nothing that was added in between is missing from it.
    let stable = stable_offsets(cluster, topic).await?;
    let of = |offsets: &BTreeMap<i32, i64>, partition| offsets.get(&partition).copied();
    let ends = (0..partitions as i32).map(|partition| End {
        end: of(&ends, partition).unwrap_or(0),
        stable: of(&stable, partition).unwrap_or(0),
    });
    Ok(ends.collect())
}

async fn read_partition(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    end: i64,
    only_from: Option<u32>,
) -> Result<Vec<Seen>, String> {
    let config = ConsumerConfig {
        only_from: only_from.map(|broker| broker as i32),
        ..config()
    };
    let mut all = Vec::new();
    let mut position = 0;
    let deadline = Instant::now() + READ_WITHIN;
    let mut last_error: Option<ClientError> = None;
    while position < end && Instant::now() < deadline {
        let from = BTreeMap::from([(partition, position)]);
        match Consumer::start(cluster.clone(), topic, &from, config.clone()).await {
            Ok(mut consumer) => {
                while position < end {
                    let left = deadline.saturating_duration_since(Instant::now());
                    match timeout(left, consumer.next()).await {
                        Ok(Some(Ok(fetched))) => {
                            take(&fetched, &mut position, |seen| all.push(seen));
                        }
                        Ok(Some(Err(error))) => {
                            last_error = Some(error);
                            break;
                        }
                        Ok(None) | Err(_) => break,
                    }
                }
            }
            Err(error) => last_error = Some(error),
        }
        if position < end {
            sleep(PAUSE).await;
        }
    }
    if position < end {
        let why = last_error.map_or_else(
            || format!("nothing came in {} s", READ_WITHIN.as_secs()),
            |error| error.to_string(),
        );
        return Err(format!("read up to offset {position} of {end}: {why}"));
    }
    Ok(all)
}
