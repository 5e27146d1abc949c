//! What goes on when a broker is gone: committed offsets, and clients that ask for the coordinator again.

mod cluster;

use std::io;
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::kafka::{Kafka, code, eventually, text, topic_name};
use cluster::wire::Wire;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, GroupId, OffsetCommitRequest, OffsetFetchRequest,
};

const TOPIC: &str = "consumed";

/// The broker that coordinates a group, as FindCoordinator gives it.
fn coordinator(kafka: &Kafka, group: &str) -> Option<(i32, String)> {
    let response = kafka
        .any(2, &FindCoordinatorRequest::default().with_key(text(group)))
        .ok()?;
    (response.error_code == code::NONE).then(|| {
        (
            response.node_id.0,
            format!("{}:{}", response.host, response.port),
        )
    })
}

/// Runs a call at the group's coordinator, which is asked for again until one answers.
fn at_coordinator<T>(
    kafka: &Kafka,
    group: &str,
    mut call: impl FnMut(&mut Wire) -> io::Result<(i16, T)>,
) -> T {
    eventually("the coordinator to answer", || {
        let (_, address) = coordinator(kafka, group)?;
        let (error, answer) = Wire::connect(&address)
            .and_then(|mut wire| call(&mut wire))
            .ok()?;
        let retriable = [
            code::COORDINATOR_LOAD_IN_PROGRESS,
            code::COORDINATOR_NOT_AVAILABLE,
            code::NOT_COORDINATOR,
            code::REQUEST_TIMED_OUT,
        ];
        assert!(
            error == code::NONE || retriable.contains(&error),
            "the coordinator answers with error {error}"
        );
        (error == code::NONE).then_some(answer)
    })
}

fn commit(kafka: &Kafka, group: &str, offset: i64, metadata: &str) {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(0)
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text(metadata)));
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(-1)
        .with_group_instance_id(None)
        .with_topics(vec![
            OffsetCommitRequestTopic::default()
                .with_name(topic_name(TOPIC))
                .with_partitions(vec![partition]),
        ]);
    at_coordinator(kafka, group, |wire| {
        Ok((
            wire.call(7, &request)?.topics[0].partitions[0].error_code,
            (),
        ))
    });
}

/// Committed offset and metadata; -1 where there is none.
fn committed(kafka: &Kafka, group: &str) -> (i64, String) {
    let topic = OffsetFetchRequestTopic::default()
        .with_name(topic_name(TOPIC))
        .with_partition_indexes(vec![0]);
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_topics(Some(vec![topic]));
    at_coordinator(kafka, group, |wire| {
        let response = wire.call(7, &request)?;
        // An error of the whole group comes without topics.
        let Some(found) = response.topics.first().map(|topic| &topic.partitions[0]) else {
            return Ok((response.error_code, (-1, String::new())));
        };
        let error = [response.error_code, found.error_code]
            .into_iter()
            .find(|error| *error != code::NONE);
        let metadata = found
            .metadata
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        Ok((
            error.unwrap_or(code::NONE),
            (found.committed_offset, metadata),
        ))
    })
}

#[test]
fn committed_offsets_outlive_their_coordinator() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, 1, &[]);
    for _ in 0..10 {
        assert_eq!(
            kafka
                .produce(TOPIC, 0, Batch::of(&[("k", "v")]).encode())
                .error_code,
            code::NONE
        );
    }
    let groups: Vec<_> = (0..6).map(|n| format!("group-{n}")).collect();
    assert_eq!(committed(&kafka, &groups[0]), (-1, String::new()));
    for (offset, group) in (1..).zip(&groups) {
        commit(&kafka, group, offset, "as far as here");
        assert_eq!(
            committed(&kafka, group),
            (offset, "as far as here".to_owned())
        );
    }
    let (before, _) = coordinator(&kafka, &groups[0]).expect("a coordinator");
    cluster.node_mut(before).kill();
    let killed = Instant::now();
    for (offset, group) in (1..).zip(&groups) {
        assert_eq!(
            committed(&kafka, group),
            (offset, "as far as here".to_owned()),
            "{group} after the kill"
        );
        commit(&kafka, group, offset + 1, "");
    }
    assert!(
        killed.elapsed() < Duration::from_secs(10),
        "the coordinators were back after {:?}",
        killed.elapsed()
    );
    let (after, _) = coordinator(&kafka, &groups[0]).expect("a coordinator");
    assert_ne!(after, before);

    cluster.nodes_mut().iter_mut().for_each(cluster::Node::kill);
    cluster
        .nodes_mut()
        .iter_mut()
        .for_each(cluster::Node::start);
    cluster.wait_ready();
    for (offset, group) in (1..).zip(&groups) {
        assert_eq!(
            committed(&kafka, group),
            (offset + 1, String::new()),
            "{group} after all were killed"
        );
    }
    // Old commits are not for a topic that is made again.
    kafka.delete(TOPIC);
    kafka.create(TOPIC, 1, &[]);
    for group in &groups {
        eventually("the old commit to go", || {
            (committed(&kafka, group).0 == -1).then_some(())
        });
    }
}

#[test]
fn two_of_three_brokers_take_writes_and_one_alone_takes_none() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create(TOPIC, 3, &[]);
    let batch = || Batch::of(&[("k", "v")]).encode();
    cluster.node_mut(2).kill();
    for partition in 0..3 {
        eventually("two brokers to take a write", || {
            let mut wire = kafka.leader(TOPIC, partition).ok()?;
            let answer = cluster::kafka::produce(&mut wire, TOPIC, partition, batch()).ok()?;
            (answer.error_code == code::NONE).then_some(())
        });
    }
    let ends: Vec<_> = (0..3)
        .map(|partition| kafka.end(TOPIC, partition))
        .collect();
    cluster.node_mut(3).kill();
    let lone = Kafka::new(&cluster.address(1));
    for partition in 0..3 {
        let Ok(mut wire) = Wire::connect(&cluster.address(1)) else {
            panic!("broker 1 is gone too")
        };
        wire.set_patience(Duration::from_secs(3))
            .expect("a time-out");
        // Whether it is refused or nobody answers: it must not be acknowledged.
        if let Ok(answer) = cluster::kafka::produce(&mut wire, TOPIC, partition, batch()) {
            assert_ne!(
                answer.error_code,
                code::NONE,
                "partition {partition}: one broker of three acknowledged a write"
            );
        }
    }
    assert!(
        lone.metadata(&[TOPIC]).is_ok(),
        "it still tells what it knows"
    );
    cluster.node_mut(2).start();
    cluster.node_mut(3).start();
    cluster.wait_ready();
    kafka.wait_leaders(TOPIC, 3);
    for (partition, end) in (0..).zip(ends) {
        let count = kafka.read_all(TOPIC, partition).len() as i64;
        // The write that nobody acknowledged may have come through in the end, once.
        assert!(
            (end..=end + 1).contains(&count),
            "partition {partition}: {count} records where {end} were acknowledged"
        );
    }
}
