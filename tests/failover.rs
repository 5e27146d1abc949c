//! What goes on when a broker is gone: committed offsets, and clients that ask for the coordinator again.

mod cluster;

use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::groups::{commit, committed, coordinator};
use cluster::kafka::{Kafka, code, eventually};
use cluster::wire::Wire;

const TOPIC: &str = "consumed";

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
    assert_eq!(committed(&kafka, TOPIC, &groups[0]), (-1, String::new()));
    for (offset, group) in (1..).zip(&groups) {
        commit(&kafka, TOPIC, group, offset, "as far as here");
        assert_eq!(
            committed(&kafka, TOPIC, group),
            (offset, "as far as here".to_owned())
        );
    }
    let (before, _) = coordinator(&kafka, &groups[0]).expect("a coordinator");
    cluster.node_mut(before).kill();
    let killed = Instant::now();
    for (offset, group) in (1..).zip(&groups) {
        assert_eq!(
            committed(&kafka, TOPIC, group),
            (offset, "as far as here".to_owned()),
            "{group} after the kill"
        );
        commit(&kafka, TOPIC, group, offset + 1, "");
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
            committed(&kafka, TOPIC, group),
            (offset + 1, String::new()),
            "{group} after all were killed"
        );
    }
    // Old commits are not for a topic that is made again.
    kafka.delete(TOPIC);
    kafka.create(TOPIC, 1, &[]);
    for group in &groups {
        eventually("the old commit to go", || {
            (committed(&kafka, TOPIC, group).0 == -1).then_some(())
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
