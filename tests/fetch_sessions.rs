//! Fetch sessions, the one part of Fetch with a memory (KIP-227).

mod cluster;

use std::collections::BTreeSet;

use cluster::batch::{self, Batch};
use cluster::kafka::{code, topic_name};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest};

#[test]
fn a_fetch_session_tells_only_what_is_new() {
    let kafka = cluster::shared().kafka();
    let name = format!("session-{}", batch::now_ms());
    kafka.create(&name, 6, &[]);
    // All partitions that the leader of the first one leads.
    let leaders = kafka.leaders(&name).expect("leaders");
    let led: Vec<_> = leaders
        .iter()
        .filter(|(_, leader)| **leader == leaders[&0])
        .map(|(partition, _)| *partition)
        .collect();
    for partition in &led {
        assert_eq!(
            kafka
                .produce(&name, *partition, Batch::of(&[("k", "v")]).encode())
                .base_offset,
            0
        );
    }
    let mut wire = kafka.leader(&name, 0).expect("a leader");
    let mut fetch =
        |session_id: i32, session_epoch: i32, offsets: &[(i32, i64)], forgotten: &[i32]| {
            let partitions = offsets.iter().map(|(partition, offset)| {
                FetchPartition::default()
                    .with_partition(*partition)
                    .with_fetch_offset(*offset)
                    .with_current_leader_epoch(-1)
                    .with_last_fetched_epoch(-1)
                    .with_log_start_offset(-1)
                    .with_partition_max_bytes(1 << 20)
            });
            let mut request = FetchRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_max_bytes(1 << 20)
                .with_session_id(session_id)
                .with_session_epoch(session_epoch);
            if !offsets.is_empty() {
                request.topics = vec![
                    FetchTopic::default()
                        .with_topic(topic_name(&name))
                        .with_partitions(partitions.collect()),
                ];
            }
            if !forgotten.is_empty() {
                let forgotten = ForgottenTopic::default()
                    .with_topic(topic_name(&name))
                    .with_partitions(forgotten.to_vec());
                request.forgotten_topics_data = vec![forgotten];
            }
            let response = wire.call(12, &request).expect("Fetch");
            let told: BTreeSet<_> = response
                .responses
                .iter()
                .flat_map(|topic| &topic.partitions)
                .map(|data| data.partition_index)
                .collect();
            (response.error_code, response.session_id, told)
        };
    let all: BTreeSet<_> = led.iter().copied().collect();
    let wanted: Vec<_> = led.iter().map(|partition| (*partition, 1)).collect();
    let (error, session, told) = fetch(0, 0, &wanted, &[]);
    assert_eq!((error, told), (code::NONE, all));
    if session == 0 {
        return; // sessions are a broker's choice: without one it tells everything each time
    }
    assert_eq!(
        fetch(session, 1, &[], &[]),
        (code::NONE, session, BTreeSet::new()),
        "nothing is new"
    );
    assert_eq!(
        kafka
            .produce(&name, 0, Batch::of(&[("k", "w")]).encode())
            .base_offset,
        1
    );
    assert_eq!(
        fetch(session, 2, &[], &[]),
        (code::NONE, session, BTreeSet::from([0])),
        "the one that has grown"
    );
    let other = led[1];
    assert_eq!(
        kafka
            .produce(&name, other, Batch::of(&[("k", "w")]).encode())
            .base_offset,
        1
    );
    assert_eq!(
        fetch(session, 3, &[], &[other]),
        (code::NONE, session, BTreeSet::from([0])),
        "the other is forgotten"
    );
    assert_eq!(
        fetch(session, 9, &[], &[]).0,
        code::INVALID_FETCH_SESSION_EPOCH
    );
    assert_eq!(
        fetch(session ^ 0x55aa, 4, &[], &[]).0,
        code::FETCH_SESSION_ID_NOT_FOUND
    );
    assert_eq!(
        fetch(session, 4, &[], &[]).0,
        code::NONE,
        "the session has outlived them"
    );
}
