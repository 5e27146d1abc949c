//! Produce, Fetch and offsets on one whole broker over a disk in memory, as a
//! client's requests find them.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::{MemoryDisk, SharedStore};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::{OffsetForLeaderEpochRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::Compression;
use tokio::time::{Instant, sleep, timeout};

use super::offsets;
use crate::partition::append::now_ms;
use crate::protocol::produce::ProducePartitionResponse;
use crate::protocol::record_batch::BatchHeader;

use cluster::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_produced_is_read_back_byte_for_byte_but_offset_and_epoch() {
    let cluster = Cluster::start().await;
    cluster.create("orders", 1, &[]).await;
    let now = now_ms();
    let sent = [
        batch(plain(now, 3)),
        batch(plain(now, 200)),
        batch(plain(now, 1)),
    ];
    for (records, expected) in sent.iter().zip([0, 3, 203]) {
        let appended = cluster.produce("orders", records.clone()).await;
        assert_eq!((appended.error_code, appended.base_offset), (0, expected));
        assert_eq!(
            (appended.log_append_time_ms, appended.log_start_offset),
            (-1, 0)
        );
        assert_eq!(
            cluster.offset("orders", 10, -1).await,
            (0, expected + records_of(records), -1)
        );
    }
    let read = cluster.fetch_one("orders", 0).await;
    assert_eq!(
        (
            read.error_code,
            read.high_watermark,
            read.last_stable_offset
        ),
        (0, 204, 204)
    );
    assert_eq!(base_offsets(&read), [0, 3, 203]);
    let bytes = read.records.concat();
    let mut at = 0;
    for records in &sent {
        assert_eq!(bytes[at + 16..at + records.len()], records[16..]);
        at += records.len();
    }
    assert_eq!(
        base_offsets(&cluster.fetch_one("orders", 150).await),
        [3, 203]
    );
    assert!(cluster.fetch_one("orders", 204).await.records.is_empty());
    let beyond = cluster.fetch_one("orders", 205).await;
    assert_eq!(beyond.error_code, ResponseError::OffsetOutOfRange.code());
    cluster.raft.shutdown().await;
}

fn records_of(batch: &Bytes) -> i64 {
    i64::from(BatchHeader::parse(batch).expect("a batch").record_count)
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_batches_keep_their_order_and_duplicates_their_offset() {
    let cluster = Cluster::start().await;
    cluster.create("orders", 1, &[]).await;
    let now = now_ms();
    let sent = |sequence| {
        batch(Sent {
            producer: 9,
            sequence,
            ..plain(now, 2)
        })
    };
    let begun: Vec<_> = (0..500)
        .map(|at| cluster.begin("orders", 0, -1, sent(at * 2)))
        .collect();
    for (at, outcome) in begun.into_iter().enumerate() {
        let outcome = outcome.await.expect("answered");
        assert_eq!(
            (outcome.error_code, outcome.base_offset),
            (0, at as i64 * 2)
        );
    }
    let again = cluster.produce("orders", sent(996)).await;
    assert_eq!((again.error_code, again.base_offset), (0, 996));
    let gap = cluster.produce("orders", sent(1004)).await;
    assert_eq!(
        gap.error_code,
        ResponseError::OutOfOrderSequenceNumber.code()
    );
    let next = cluster.produce("orders", sent(1000)).await;
    assert_eq!((next.error_code, next.base_offset), (0, 1000));
    let read = cluster.fetch_one("orders", 990).await;
    assert_eq!(base_offsets(&read), [990, 992, 994, 996, 998, 1000]);
    assert!(cluster.begin("orders", 0, 0, sent(1002)).await.is_none());
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_found_by_time_in_every_compression() {
    let cluster = Cluster::start().await;
    cluster.create("orders", 1, &[]).await;
    let base = now_ms() - 100_000;
    let kinds = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];
    for (at, compression) in kinds.into_iter().enumerate() {
        let timestamp = base + at as i64 * 1000;
        cluster
            .produce(
                "orders",
                batch(Sent {
                    compression,
                    ..plain(timestamp, 10)
                }),
            )
            .await;
    }
    for at in 0..5 {
        let (timestamp, offset) = (base + at * 1000, at * 10);
        assert_eq!(
            cluster.offset("orders", 10, timestamp).await,
            (0, offset, timestamp)
        );
        assert_eq!(
            cluster.offset("orders", 10, timestamp + 7).await,
            (0, offset + 7, timestamp + 7)
        );
        if at < 4 {
            let next = (0, offset + 10, timestamp + 1000);
            assert_eq!(cluster.offset("orders", 10, timestamp + 10).await, next);
        }
    }
    assert_eq!(cluster.offset("orders", 10, base + 4010).await, (0, -1, -1));
    assert_eq!(cluster.offset("orders", 10, -2).await, (0, 0, -1));
    assert_eq!(cluster.offset("orders", 10, -3).await, (0, 49, base + 4009));
    assert_eq!(cluster.offset("orders", 10, -4).await, (0, 0, -1));
    assert_eq!(cluster.offset("orders", 10, -5).await, (0, -1, -1));
    let unsupported = (ResponseError::UnsupportedVersion.code(), -1, -1);
    assert_eq!(cluster.offset("orders", 6, -3).await, unsupported);
    assert_eq!(cluster.offset("orders", 7, -4).await, unsupported);
    assert_eq!(cluster.offset("orders", 8, -5).await, unsupported);
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_log_append_time_records_carry_the_brokers_time() {
    let cluster = Cluster::start().await;
    cluster
        .create("orders", 1, &[("message.timestamp.type", "LogAppendTime")])
        .await;
    let before = now_ms();
    let appended = cluster.produce("orders", batch(plain(5, 3))).await;
    let time = appended.log_append_time_ms;
    assert!((before..=now_ms()).contains(&time));
    let read = cluster.fetch_one("orders", 0).await.records.concat();
    let header = BatchHeader::parse(&read).expect("a batch");
    assert!(header.is_log_append_time() && header.max_timestamp == time);
    assert_eq!(cluster.offset("orders", 10, -3).await, (0, 0, time));
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_waits_for_records_and_no_longer_than_asked() {
    let cluster = Arc::new(Cluster::start().await);
    cluster.create("orders", 2, &[]).await;
    let mut request = from("orders", 0, 0);
    request.max_wait_ms = 200;
    let started = Instant::now();
    assert_eq!(cluster.fetch(request.clone()).await.record_bytes(), 0);
    assert!(started.elapsed() >= Duration::from_millis(200));

    // Two partitions, and more bytes than one batch has: both batches are waited for.
    let records = batch(plain(now_ms(), 5));
    request.max_wait_ms = 30_000;
    request.min_bytes = records.len() as i32 + 1;
    let mut other = request.topics[0].partitions[0].clone();
    other.index = 1;
    request.topics[0].partitions.push(other);
    let waiting = {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move { cluster.fetch(request).await })
    };
    sleep(Duration::from_millis(50)).await;
    cluster.begin("orders", 0, -1, records.clone()).await;
    sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    cluster.begin("orders", 1, -1, records.clone()).await;
    let read = timeout(Duration::from_secs(10), waiting)
        .await
        .expect("woken")
        .expect("done");
    assert_eq!(read.record_bytes(), 2 * records.len());
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_fetch_says_only_what_is_new() {
    let cluster = Cluster::start().await;
    cluster.create("orders", 2, &[]).await;
    let mut request = from("orders", 0, 0);
    request.session_epoch = 0;
    let mut other = request.topics[0].partitions[0].clone();
    other.index = 1;
    request.topics[0].partitions.push(other);
    let opened = cluster.fetch(request.clone()).await;
    assert_ne!(opened.session_id, 0);
    assert_eq!(opened.topics[0].partitions.len(), 2);
    (request.session_id, request.session_epoch) = (opened.session_id, 1);
    request.topics.clear();
    assert!(cluster.fetch(request.clone()).await.topics.is_empty());
    cluster
        .begin("orders", 1, -1, batch(plain(now_ms(), 5)))
        .await;
    request.session_epoch = 2;
    let news = cluster.fetch(request.clone()).await;
    let partitions = &news.topics[0].partitions;
    assert_eq!((partitions.len(), partitions[0].index), (1, 1));
    assert_eq!(base_offsets(&partitions[0]), [0]);
    let repeated = cluster.fetch(request).await;
    assert_eq!(
        repeated.error_code,
        ResponseError::InvalidFetchSessionEpoch.code()
    );
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_gets_kafkas_error_and_appends_nothing() {
    let cluster = Cluster::start().await;
    cluster
        .create("orders", 1, &[("max.message.bytes", "1000")])
        .await;
    let good = batch(plain(now_ms(), 2));
    let code = |response: ProducePartitionResponse| response.error_code;
    let mut damaged = good.to_vec();
    damaged[70] ^= 1;
    let refused = cluster.produce("orders", damaged.into()).await;
    assert_eq!(code(refused), ResponseError::CorruptMessage.code());
    let refused = cluster.produce("orders", batch(plain(now_ms(), 100))).await;
    assert_eq!(code(refused), ResponseError::MessageTooLarge.code());
    let refused = cluster
        .produce("orders", batch(plain(now_ms() + 7_200_000, 1)))
        .await;
    assert_eq!(code(refused), ResponseError::InvalidTimestamp.code());
    let refused = cluster.produce("nowhere", good.clone()).await;
    assert_eq!(code(refused), ResponseError::UnknownTopicOrPartition.code());
    let refused = cluster
        .begin("orders", 1, -1, good.clone())
        .await
        .expect("answered");
    assert_eq!(code(refused), ResponseError::UnknownTopicOrPartition.code());
    let refused = cluster
        .begin("orders", 0, 2, good.clone())
        .await
        .expect("answered");
    assert_eq!(code(refused), ResponseError::InvalidRequiredAcks.code());
    assert_eq!(cluster.offset("orders", 10, -1).await.1, 0);

    let epoch = cluster
        .partitions
        .partition("orders", 0)
        .and_then(|p| p.serving_epoch());
    let epoch = epoch.expect("led");
    for (believed, error) in [
        (epoch - 1, ResponseError::FencedLeaderEpoch.code()),
        (epoch + 1, ResponseError::UnknownLeaderEpoch.code()),
        (epoch, 0),
    ] {
        let mut request = from("orders", 0, 0);
        request.topics[0].partitions[0].current_leader_epoch = believed;
        let answer = cluster.fetch(request).await;
        assert_eq!(
            answer.topics[0].partitions[0].error_code, error,
            "epoch {believed}"
        );
    }
    cluster.raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_producers_and_epochs_survive_a_restart() {
    let disk: SharedStore = Arc::new(MemoryDisk::new(drave_storage::memory::Sync::Always));
    let cluster = Cluster::start_on(Arc::clone(&disk)).await;
    cluster.create("orders", 1, &[]).await;
    let now = now_ms();
    let sent = |sequence| {
        batch(Sent {
            producer: 9,
            sequence,
            ..plain(now, 2)
        })
    };
    for at in 0..20 {
        assert_eq!(cluster.produce("orders", sent(at * 2)).await.error_code, 0);
    }
    let first_epoch = cluster
        .partitions
        .partition("orders", 0)
        .and_then(|p| p.serving_epoch())
        .expect("led");
    cluster.partitions.stop();
    cluster.metadata.stop();
    cluster.raft.shutdown().await;

    let cluster = Cluster::start_on(disk).await;
    cluster.create("orders", 1, &[]).await;
    let again = cluster.produce("orders", sent(36)).await;
    assert_eq!((again.error_code, again.base_offset), (0, 36));
    let next = cluster.produce("orders", sent(40)).await;
    assert_eq!((next.error_code, next.base_offset), (0, 40));
    let read = cluster.fetch_one("orders", 0).await;
    assert_eq!(
        base_offsets(&read),
        (0..21).map(|at| at * 2).collect::<Vec<i64>>()
    );

    let asked = OffsetForLeaderPartition::default()
        .with_current_leader_epoch(-1)
        .with_leader_epoch(first_epoch);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(TopicName(StrBytes::from_static_str("orders")))
        .with_partitions(vec![asked]);
    let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
    let response = offsets::offset_for_leader_epoch(&cluster.partitions, 4, request).await;
    let end = &response.topics[0].partitions[0];
    assert_eq!(
        (end.error_code, end.leader_epoch, end.end_offset),
        (0, first_epoch, 40)
    );
    cluster.raft.shutdown().await;
}
