//! Reading: where a fetch starts, how much it brings, how long it waits, and in what order answers come.

mod cluster;

use std::time::{Duration, Instant};

use cluster::batch::{self, Batch};
use cluster::kafka::{self, code};
use cluster::wire::Wire;

fn one(value: &str) -> Vec<u8> {
    Batch::of(&[("k", value)]).encode()
}

#[test]
fn a_fetch_brings_whole_batches_and_at_least_one() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("fetched-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    for _ in 0..10 {
        let value = "x".repeat(10_000);
        let records = [
            ("a", value.as_str()),
            ("b", value.as_str()),
            ("c", value.as_str()),
        ];
        assert_eq!(
            kafka
                .produce(&topic, 0, Batch::of(&records).encode())
                .error_code,
            code::NONE
        );
    }
    let mut wire = kafka.leader(&topic, 0).expect("a leader");
    let mut bring = |offset, max_bytes| {
        let data = kafka::fetch(&mut wire, &topic, 0, offset, max_bytes).expect("Fetch");
        assert_eq!(
            (data.error_code, data.high_watermark, data.log_start_offset),
            (code::NONE, 30, 0)
        );
        let bytes = data.records.unwrap_or_default();
        batch::batches(&bytes)
            .iter()
            .map(|(header, _)| header.base_offset)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        bring(0, 1),
        [0],
        "one batch, although it is larger than asked for"
    );
    assert_eq!(bring(4, 1), [3], "the batch that the offset is in");
    assert_eq!(bring(0, 70_000), [0, 3], "as many as fit");
    assert_eq!(bring(27, 1 << 20), [27]);
    for (offset, expected) in [
        (31, code::OFFSET_OUT_OF_RANGE),
        (-5, code::OFFSET_OUT_OF_RANGE),
        (30, code::NONE),
    ] {
        let data = kafka::fetch(&mut wire, &topic, 0, offset, 1 << 20).expect("Fetch");
        assert_eq!(data.error_code, expected, "offset {offset}");
        assert!(data.records.unwrap_or_default().is_empty());
    }
}

#[test]
fn a_fetch_at_the_end_waits_for_what_comes_and_no_longer() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("awaited-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    kafka.end(&topic, 0);
    let mut wire = kafka.leader(&topic, 0).expect("a leader");
    let started = Instant::now();
    let data = kafka::fetch(&mut wire, &topic, 0, 0, 1 << 20).expect("Fetch");
    assert!(data.records.unwrap_or_default().is_empty());
    let waited = started.elapsed();
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(3)).contains(&waited),
        "waited {waited:?} of 1 s"
    );

    let writer = std::thread::spawn({
        let (bootstrap, topic) = (target.bootstrap(), topic.clone());
        move || {
            std::thread::sleep(Duration::from_millis(300));
            kafka::Kafka::new(&bootstrap)
                .produce(&topic, 0, one("here"))
                .error_code
        }
    });
    let started = Instant::now();
    let data = kafka::fetch(&mut wire, &topic, 0, 0, 1 << 20).expect("Fetch");
    assert_eq!(
        batch::records(&data.records.unwrap_or_default())[0].value,
        b"here"
    );
    let waited = started.elapsed();
    assert!(
        (Duration::from_millis(250)..Duration::from_millis(900)).contains(&waited),
        "waited {waited:?}"
    );
    assert_eq!(writer.join().expect("the writer"), code::NONE);
}

#[test]
fn answers_come_in_the_order_of_requests_and_acks_0_gets_none() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("ordered-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    kafka.end(&topic, 0);
    let mut wire: Wire = kafka.leader(&topic, 0).expect("a leader");
    let silent = kafka::produce_request(&topic, 0, 0, one("silent"));
    let requests: Vec<_> = [1, -1, 1, -1]
        .map(|acks| kafka::produce_request(&topic, 0, acks, one("spoken")))
        .into();
    let mut sent = Vec::new();
    for request in &requests {
        wire.send(9, &silent).expect("sent");
        sent.push(wire.send(9, request).expect("sent"));
    }
    // `receive` checks the correlation id, which skips those of the silent ones.
    for (expected, correlation_id) in [1, 3, 5, 7].into_iter().zip(sent) {
        let mut response = wire
            .receive::<kafka_protocol::messages::ProduceRequest>(9, correlation_id)
            .expect("an answer");
        let answer = response.responses.remove(0).partition_responses.remove(0);
        assert_eq!(
            (answer.error_code, answer.base_offset),
            (code::NONE, expected)
        );
    }
    assert_eq!(kafka.read_all(&topic, 0).len(), 8);
}
