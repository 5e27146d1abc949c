//! What many partitions cost: to be made, to be there, to lose a broker, and to be there again after a restart.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::Cluster;
use cluster::batch::Batch;
use cluster::kafka::{Kafka, code, topic_name};
use cluster::wire::Wire;
use kafka_protocol::messages::ProduceRequest;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};

const TOPIC: &str = "many";
/// Partitions that one request writes to.
const PARTITIONS_PER_REQUEST: usize = 50;
/// Patience with one that never takes a write.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Each test has the machine for itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A thousand partitions of three replicas: from CreateTopics until all took a write.
const USABLE_MAX: Duration = Duration::from_secs(10);
/// At rest, all three brokers together, in cores.
const REST_CORES_MAX: f64 = 0.05;
/// After a kill, until all partitions that the broker led took a write.
const FAILOVER_MAX: Duration = Duration::from_secs(3);
/// From the start of the process until all partitions took a write.
const READY_MAX: Duration = Duration::from_secs(2);

#[test]
fn a_thousand_partitions_are_soon_there_cost_nothing_at_rest_and_outlive_a_broker() {
    let _machine = ONE_AT_A_TIME.lock();
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    let all: BTreeSet<i32> = (0..1_000).collect();

    let asked = Instant::now();
    let (error, message) = kafka.try_create(TOPIC, 1_000, 3, &[]);
    assert_eq!(error, code::NONE, "{message}");
    let answered = asked.elapsed();
    let usable = latest(&write_each(&kafka, &all), asked);
    say(&format!(
        "1,000 partitions of 3 replicas: CreateTopics answered after {answered:.2?}, all took a write after {usable:.2?}"
    ));

    // Leadership goes to the preferred replicas, and what was noted is noted.
    std::thread::sleep(Duration::from_secs(15));
    let before = cpu_seconds(&cluster);
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(20));
    let cores = (cpu_seconds(&cluster) - before) / began.elapsed().as_secs_f64();
    say(&format!("at rest: {cores:.3} cores, all three brokers"));

    let leaders = kafka.leaders(TOPIC).expect("metadata");
    let led: BTreeSet<i32> = all
        .iter()
        .filter(|partition| leaders[partition] == 1)
        .copied()
        .collect();
    assert!(led.len() > 200, "broker 1 leads {} partitions", led.len());
    let killed = Instant::now();
    cluster.node_mut(1).kill();
    let failed_over = latest(
        &write_each(&Kafka::new(&cluster.bootstrap_without(1)), &led),
        killed,
    );
    say(&format!(
        "after a kill: all {} partitions of the broker took a write after {failed_over:.2?}",
        led.len()
    ));

    assert!(usable <= USABLE_MAX, "usable after {usable:?}");
    assert!(cores <= REST_CORES_MAX, "{cores:.3} cores at rest");
    assert!(
        failed_over <= FAILOVER_MAX,
        "failed over after {failed_over:?}"
    );
}

#[test]
fn a_broker_with_a_gibibyte_in_five_hundred_partitions_is_ready_soon_after_its_start() {
    let _machine = ONE_AT_A_TIME.lock();
    let mut cluster = Cluster::start_with(1, &[]);
    let kafka = cluster.kafka();
    let all: BTreeSet<i32> = (0..500).collect();
    kafka.create(TOPIC, 500, &[]);
    // Two MiB and a bit for each.
    let value = "v".repeat(700_000);
    let batch = Batch::of(&[("k", &value)]).encode();
    let mut wire = Wire::connect(&cluster.address(1)).expect("the broker");
    for partition in &all {
        for _ in 0..3 {
            let answer = cluster::kafka::produce(&mut wire, TOPIC, *partition, batch.clone());
            assert_eq!(answer.expect("Produce").error_code, code::NONE);
        }
    }
    drop(wire);

    let mut readies = Vec::new();
    for how in ["SIGTERM", "kill -9"] {
        match how {
            "SIGTERM" => assert!(cluster.node_mut(1).terminate().success()),
            _ => cluster.node_mut(1).kill(),
        }
        let started = Instant::now();
        cluster.node_mut(1).start();
        let ready = latest(&write_each(&kafka, &all), started);
        say(&format!(
            "restart after {how}: all 500 partitions with 1 GiB took a write {ready:.2?} after the process started"
        ));
        for partition in [0, 250, 499] {
            let record = &kafka.fetch(TOPIC, partition, 2);
            assert_eq!(record.error_code, code::NONE);
        }
        readies.push(ready);
    }
    let slowest = readies.into_iter().max().expect("two restarts");
    assert!(slowest <= READY_MAX, "ready after {slowest:?}");
}

/// Writes a small batch to each of the partitions, again and again until each has taken one; when each did.
fn write_each(kafka: &Kafka, partitions: &BTreeSet<i32>) -> BTreeMap<i32, Instant> {
    let began = Instant::now();
    let mut taken = BTreeMap::new();
    while taken.len() < partitions.len() {
        assert!(
            began.elapsed() < GIVE_UP,
            "{} of {} partitions took no write for {GIVE_UP:?}",
            partitions.len() - taken.len(),
            partitions.len()
        );
        let mut by_leader: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let Ok(leaders) = kafka.leaders(TOPIC) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        for (partition, leader) in leaders {
            if partitions.contains(&partition) && !taken.contains_key(&partition) {
                by_leader.entry(leader).or_default().push(partition);
            }
        }
        let wrote: Vec<(i32, Instant)> = std::thread::scope(|scope| {
            let writers: Vec<_> = by_leader
                .values()
                .map(|partitions| scope.spawn(|| write_at(kafka, partitions)))
                .collect();
            let wrote = writers
                .into_iter()
                .flat_map(|writer| writer.join().expect("a writer"));
            wrote.collect()
        });
        if wrote.is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        taken.extend(wrote);
    }
    taken
}

/// Writes to partitions of one leader; those that took it.
fn write_at(kafka: &Kafka, partitions: &[i32]) -> Vec<(i32, Instant)> {
    let mut taken = Vec::new();
    let Ok(mut wire) = kafka.leader(TOPIC, partitions[0]) else {
        return taken;
    };
    if wire.set_patience(Duration::from_secs(5)).is_err() {
        return taken;
    }
    for some in partitions.chunks(PARTITIONS_PER_REQUEST) {
        match write_some(&mut wire, some) {
            Ok(some) => taken.extend(
                some.into_iter()
                    .map(|partition| (partition, Instant::now())),
            ),
            Err(_) => break,
        }
    }
    taken
}

fn write_some(wire: &mut Wire, partitions: &[i32]) -> io::Result<Vec<i32>> {
    let batch = Bytes::from(Batch::of(&[("k", "v")]).encode());
    let data = partitions.iter().map(|partition| {
        PartitionProduceData::default()
            .with_index(*partition)
            .with_records(Some(batch.clone()))
    });
    let topic = TopicProduceData::default()
        .with_name(topic_name(TOPIC))
        .with_partition_data(data.collect());
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(1_000)
        .with_topic_data(vec![topic]);
    let response = wire.call(9, &request)?;
    let answers = &response.responses[0].partition_responses;
    let taken = answers
        .iter()
        .filter(|answer| answer.error_code == code::NONE);
    Ok(taken.map(|answer| answer.index).collect())
}

fn latest(taken: &BTreeMap<i32, Instant>, from: Instant) -> Duration {
    let last = taken.values().max().expect("at least one partition");
    last.saturating_duration_since(from)
}

/// Processor time that the brokers have used.
fn cpu_seconds(cluster: &Cluster) -> f64 {
    (1..=3).map(|id| cluster.node(id).cpu_seconds()).sum()
}

/// Past the test runner, which keeps the output of a test that passes to itself.
fn say(line: &str) {
    writeln!(io::stderr(), "{line}").expect("standard error");
}
