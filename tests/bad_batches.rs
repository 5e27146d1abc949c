//! Record batches that are wrong are refused whole, with the error code that Kafka gives, and nothing is appended.
//!
//! The codes were taken from Kafka 4.3 by running this very test against it (`DRAVE_TEST_BOOTSTRAP`), save where
//! [`KAFKA_DIFFERS`] says what Kafka does instead.

mod cluster;

use bytes::BufMut;
use cluster::batch::{self, Batch, seal};
use cluster::kafka::{self, code};
use kafka_protocol::messages::ProduceRequest;

/// A way to spoil a batch of three records, and the error code it gets.
type Case = (&'static str, i16, fn(Vec<u8>) -> Vec<u8>);

/// Offsets of fields in a batch.
mod at {
    pub(super) const BASE_OFFSET: usize = 0;
    pub(super) const LENGTH: usize = 8;
    pub(super) const MAGIC: usize = 16;
    pub(super) const CHECKSUM: usize = 17;
    pub(super) const ATTRIBUTES: usize = 21;
    pub(super) const LAST_OFFSET_DELTA: usize = 23;
    pub(super) const BASE_TIMESTAMP: usize = 27;
    pub(super) const PRODUCER_ID: usize = 43;
    pub(super) const COUNT: usize = 57;
    /// The first record, each of which takes 9 bytes: length, attributes, timestamp, offset, key, value, no headers.
    pub(super) const FIRST_RECORD: usize = 61;
    pub(super) const SECOND_RECORD: usize = FIRST_RECORD + 9;
    pub(super) const OFFSET_IN_RECORD: usize = 3;
}

/// Overwrites bytes and puts the right checksum back.
fn patched(mut batch: Vec<u8>, position: usize, bytes: &[u8]) -> Vec<u8> {
    batch[position..position + bytes.len()].copy_from_slice(bytes);
    seal(&mut batch);
    batch
}

const CASES: &[Case] = &[
    ("wrong checksum", code::CORRUPT_MESSAGE, |mut batch| {
        batch[at::CHECKSUM] ^= 1;
        batch
    }),
    (
        "a bit flipped in a value",
        code::CORRUPT_MESSAGE,
        |mut batch| {
            let last = batch.len() - 2;
            batch[last] ^= 0x10;
            batch
        },
    ),
    (
        "length longer than the bytes",
        code::INVALID_RECORD,
        |batch| {
            let length = batch.len() as i32;
            patched(batch, at::LENGTH, &length.to_be_bytes())
        },
    ),
    ("length of 2 GiB", code::MESSAGE_TOO_LARGE, |batch| {
        patched(batch, at::LENGTH, &i32::MAX.to_be_bytes())
    }),
    (
        "length shorter than the bytes",
        code::CORRUPT_MESSAGE,
        |batch| {
            let length = batch.len() as i32 - 13;
            patched(batch, at::LENGTH, &length.to_be_bytes())
        },
    ),
    (
        "length shorter than a header",
        code::CORRUPT_MESSAGE,
        |batch| patched(batch, at::LENGTH, &10i32.to_be_bytes()),
    ),
    ("negative length", code::CORRUPT_MESSAGE, |batch| {
        patched(batch, at::LENGTH, &(-1i32).to_be_bytes())
    }),
    (
        "a base offset other than 0",
        code::INVALID_RECORD,
        |batch| patched(batch, at::BASE_OFFSET, &777i64.to_be_bytes()),
    ),
    ("magic 0", code::INVALID_RECORD, |batch| {
        patched(batch, at::MAGIC, &[0])
    }),
    ("magic 1", code::INVALID_RECORD, |batch| {
        patched(batch, at::MAGIC, &[1])
    }),
    ("magic 3", code::CORRUPT_MESSAGE, |batch| {
        patched(batch, at::MAGIC, &[3])
    }),
    (
        "last offset delta too small",
        code::INVALID_RECORD,
        |batch| patched(batch, at::LAST_OFFSET_DELTA, &1i32.to_be_bytes()),
    ),
    (
        "last offset delta too large",
        code::INVALID_RECORD,
        |batch| patched(batch, at::LAST_OFFSET_DELTA, &1_000_000i32.to_be_bytes()),
    ),
    (
        "last offset delta negative",
        code::INVALID_RECORD,
        |batch| patched(batch, at::LAST_OFFSET_DELTA, &(-5i32).to_be_bytes()),
    ),
    (
        "a hole in the records' offset deltas",
        code::INVALID_RECORD,
        |batch| patched(batch, at::SECOND_RECORD + at::OFFSET_IN_RECORD, &[2 * 2]),
    ),
    (
        "more records announced than there are",
        code::INVALID_RECORD,
        |batch| {
            let batch = patched(batch, at::LAST_OFFSET_DELTA, &4i32.to_be_bytes());
            patched(batch, at::COUNT, &5i32.to_be_bytes())
        },
    ),
    (
        "fewer records announced than there are",
        code::INVALID_RECORD,
        |batch| {
            let batch = patched(batch, at::LAST_OFFSET_DELTA, &1i32.to_be_bytes());
            patched(batch, at::COUNT, &2i32.to_be_bytes())
        },
    ),
    ("no record", code::INVALID_RECORD, |batch| {
        patched(batch, at::COUNT, &0i32.to_be_bytes())
    }),
    (
        "a negative number of records",
        code::INVALID_RECORD,
        |batch| patched(batch, at::COUNT, &(-1i32).to_be_bytes()),
    ),
    (
        "a record longer than the batch",
        code::INVALID_RECORD,
        |batch| patched(batch, at::FIRST_RECORD, &[126]),
    ),
    (
        "a control batch from a client",
        code::INVALID_RECORD,
        |batch| patched(batch, at::ATTRIBUTES, &[0, 0x20]),
    ),
    (
        "an unknown compression kind",
        code::UNSUPPORTED_COMPRESSION_TYPE,
        |batch| patched(batch, at::ATTRIBUTES, &[0, 7]),
    ),
    (
        "a producer id without a sequence number",
        code::INVALID_RECORD,
        |batch| patched(batch, at::PRODUCER_ID, &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0]),
    ),
    (
        "a timestamp in two hours",
        code::INVALID_TIMESTAMP,
        |batch| {
            let later = batch::now_ms() + 2 * 3_600_000;
            let batch = patched(batch, at::BASE_TIMESTAMP, &later.to_be_bytes());
            patched(batch, at::BASE_TIMESTAMP + 8, &(later + 2).to_be_bytes())
        },
    ),
    ("two batches", code::INVALID_RECORD, |batch| {
        [batch.clone(), batch].concat()
    }),
    (
        "bytes after the batch",
        code::CORRUPT_MESSAGE,
        |mut batch| {
            batch.put_slice(&[0; 7]);
            batch
        },
    ),
    ("half a batch", code::INVALID_RECORD, |mut batch| {
        batch.truncate(batch.len() / 2);
        batch
    }),
    ("less than a header", code::INVALID_RECORD, |mut batch| {
        batch.truncate(20);
        batch
    }),
    ("nothing", code::INVALID_RECORD, |_| Vec::new()),
];

/// Cases in which we don't follow Kafka: there it answers with an internal error (-1), or appends what we refuse (0).
const KAFKA_DIFFERS: &[(&str, i16)] = &[
    ("length of 2 GiB", -1),
    ("an unknown compression kind", -1),
    ("a hole in the records' offset deltas", 0),
    ("bytes after the batch", 0),
];

fn good() -> Vec<u8> {
    Batch::of(&[("a", "1"), ("b", "2"), ("c", "3")]).encode()
}

#[test]
fn wrong_batches_are_refused_whole_with_kafkas_code() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("wrong-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    assert_eq!(kafka.produce(&topic, 0, good()).base_offset, 0);
    assert_eq!(
        good().len(),
        at::FIRST_RECORD + 3 * 9,
        "the positions in `at` hold"
    );

    let mut wrong = Vec::new();
    for (what, expected, spoil) in CASES {
        if target.is_given() && KAFKA_DIFFERS.iter().any(|(case, _)| case == what) {
            continue;
        }
        let mut wire = kafka.leader(&topic, 0).expect("a leader");
        match kafka::produce(&mut wire, &topic, 0, spoil(good())) {
            Ok(answer) if answer.error_code == *expected => {
                assert_eq!(answer.base_offset, -1, "{what}")
            }
            Ok(answer) => wrong.push(format!(
                "{what}: error {} where {expected} is due",
                answer.error_code
            )),
            Err(error) => wrong.push(format!("{what}: {error}")),
        }
        let end = kafka.end(&topic, 0);
        if end != 3 {
            wrong.push(format!("{what}: the partition ends at {end}"));
            break;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_eq!(kafka.produce(&topic, 0, good()).base_offset, 3);
    assert_eq!(kafka.read_all(&topic, 0).len(), 6);
}

#[test]
fn a_batch_above_max_message_bytes_is_refused_and_one_at_the_limit_is_taken() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("large-{}", batch::now_ms());
    kafka.create(&topic, 1, &[("max.message.bytes", "2000")]);
    let sized = |bytes: usize| {
        let overhead = Batch::of(&[("k", &"x".repeat(1_800))]).encode().len() - 1_800;
        let batch = Batch::of(&[("k", &"x".repeat(bytes - overhead))]).encode();
        assert_eq!(batch.len(), bytes);
        batch
    };
    assert_eq!(
        kafka.produce(&topic, 0, sized(2_001)).error_code,
        code::MESSAGE_TOO_LARGE
    );
    assert_eq!(kafka.end(&topic, 0), 0);
    assert_eq!(
        kafka.produce(&topic, 0, sized(2_000)).error_code,
        code::NONE
    );
    assert_eq!(kafka.end(&topic, 0), 1);

    // Kafka's own limit where the topic names none.
    let topic = format!("default-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    let huge = Batch::of(&[("k", &"x".repeat(1_048_588))]).encode();
    assert_eq!(
        kafka.produce(&topic, 0, huge).error_code,
        code::MESSAGE_TOO_LARGE
    );
    let fits = Batch::of(&[("k", &"x".repeat(1_048_000))]).encode();
    assert_eq!(kafka.produce(&topic, 0, fits).error_code, code::NONE);
    assert_eq!(kafka.end(&topic, 0), 1);
}

#[test]
fn one_wrong_partition_does_not_spoil_the_others_of_a_request() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("mixed-{}", batch::now_ms());
    kafka.create(&topic, 6, &[]);
    let leaders = kafka.leaders(&topic).expect("leaders");
    leaders
        .keys()
        .for_each(|partition| assert_eq!(kafka.end(&topic, *partition), 0));
    let leader = leaders[&0];
    let led: Vec<_> = leaders
        .iter()
        .filter(|(_, broker)| **broker == leader)
        .map(|(partition, _)| *partition)
        .collect();
    assert!(
        led.len() >= 2,
        "six partitions over three brokers: {leaders:?}"
    );

    let mut request: ProduceRequest = kafka::produce_request(&topic, led[0], -1, good());
    let mut second = request.topic_data[0].partition_data[0]
        .clone()
        .with_index(led[1]);
    let mut spoiled = good();
    spoiled[at::CHECKSUM] ^= 1;
    second.records = Some(spoiled.into());
    let third = request.topic_data[0].partition_data[0]
        .clone()
        .with_index(99);
    request.topic_data[0].partition_data.extend([second, third]);
    let response = kafka
        .leader(&topic, led[0])
        .expect("a leader")
        .call(9, &request)
        .expect("Produce");
    let answers = &response.responses[0].partition_responses;
    let found: Vec<_> = answers
        .iter()
        .map(|answer| (answer.index, answer.error_code, answer.base_offset))
        .collect();
    let expected = [
        (led[0], 0, 0),
        (led[1], code::CORRUPT_MESSAGE, -1),
        (99, code::UNKNOWN_TOPIC_OR_PARTITION, -1),
    ];
    assert!(
        expected.iter().all(|answer| found.contains(answer)),
        "{found:?}, expected {expected:?}"
    );
    assert_eq!(
        (kafka.end(&topic, led[0]), kafka.end(&topic, led[1])),
        (3, 0)
    );
}

#[test]
fn a_gap_in_a_producers_sequence_is_refused_and_a_repeat_gets_its_first_offset() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("sequence-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    let (id, epoch) = kafka.producer_id().expect("a producer id");
    let batch = |epoch: i16, sequence: i32| {
        Batch::of(&[("a", "1"), ("b", "2"), ("c", "3")])
            .by(id, epoch, sequence)
            .encode()
    };
    let answer = |epoch: i16, sequence: i32| {
        let answer = kafka.produce(&topic, 0, batch(epoch, sequence));
        (answer.error_code, answer.base_offset)
    };
    assert_eq!(answer(epoch, 0), (code::NONE, 0));
    assert_eq!(answer(epoch, 3), (code::NONE, 3));
    assert_eq!(answer(epoch, 7), (code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1));
    assert_eq!(answer(epoch, 0), (code::NONE, 0), "a repeat");
    assert_eq!(answer(epoch, 3), (code::NONE, 3), "a repeat");
    assert_eq!(
        answer(epoch + 1, 0),
        (code::NONE, 6),
        "a new epoch starts at 0"
    );
    assert_eq!(
        answer(epoch + 1, 6),
        (code::OUT_OF_ORDER_SEQUENCE_NUMBER, -1)
    );
    assert_eq!(
        answer(epoch, 6),
        (code::INVALID_PRODUCER_EPOCH, -1),
        "an older epoch is fenced"
    );
    assert_eq!(kafka.end(&topic, 0), 9);
}

#[test]
fn acks_other_than_minus_one_zero_and_one_are_refused() {
    let target = cluster::shared();
    let kafka = target.kafka();
    let topic = format!("acks-{}", batch::now_ms());
    kafka.create(&topic, 1, &[]);
    let request = kafka::produce_request(&topic, 0, 5, good());
    let response = kafka
        .leader(&topic, 0)
        .expect("a leader")
        .call(9, &request)
        .expect("Produce");
    assert_eq!(
        response.responses[0].partition_responses[0].error_code,
        code::INVALID_REQUIRED_ACKS
    );
    assert_eq!(kafka.end(&topic, 0), 0);
}
