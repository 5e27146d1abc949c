//! Whatever bytes another broker or the disk gives the metadata group, they are
//! judged without panic.

use bytes::Bytes;
use drave_raft::{Applied, Command as Entry, ReplicaId, StateMachine};
use proptest::prelude::*;
use tokio::sync::watch;
use uuid::Uuid;

use super::command::{COMMAND_TAG, Command, Reply, TopicToCreate, decode, encode};
use super::image::BrokerRegistration;
use super::machine::MetadataMachine;
use super::remote::Request;
use crate::corpus::{config, edited, edits, known, noise};

fn machine() -> MetadataMachine {
    MetadataMachine::new(watch::channel(Default::default()).0)
}

fn apply(machine: &mut MetadataMachine, payload: Bytes) {
    let command = Entry {
        tag: COMMAND_TAG,
        stamp: 1,
        payload,
    };
    machine.apply(Applied {
        index: 1,
        term: 1,
        command: Some(&command),
    });
}

fn commands() -> Vec<Command> {
    let replica = ReplicaId {
        broker: 1,
        directory: 7,
    };
    vec![
        Command::FormCluster {
            cluster_id: Uuid::from_u128(1),
        },
        Command::RegisterBroker(BrokerRegistration {
            replica,
            incarnation: 2,
            host: "host".into(),
            port: 9092,
            peer_address: ([127, 0, 0, 1], 9093).into(),
            rack: Some("rack".into()),
            fenced: false,
        }),
        Command::CreateTopics(vec![TopicToCreate {
            name: "orders".into(),
            id: Uuid::from_u128(5),
            placements: vec![vec![replica]],
            configs: vec![("retention.ms".into(), "1".into())],
        }]),
        Command::CreatePartitions {
            topic: Uuid::from_u128(5),
            first: 1,
            placements: vec![vec![replica]],
        },
        Command::AllocateProducerIds { count: 1000 },
        Command::CreateCoordinators {
            replicas: vec![vec![replica]],
        },
        Command::DeleteTopic {
            id: Uuid::from_u128(6),
        },
    ]
}

fn checkpoint() -> Vec<u8> {
    let mut machine = machine();
    for command in commands() {
        apply(&mut machine, encode(&command));
    }
    machine.checkpoint().to_vec()
}

/// What is restored can be written again.
fn judge(bytes: &[u8]) -> bool {
    let mut machine = machine();
    let restored = machine.restore(9, 1, bytes).is_ok();
    if restored {
        let again = machine.checkpoint();
        machine.restore(9, 1, &again).expect("its own checkpoint");
    }
    restored
}

/// What decodes as a command is carried out, on an empty machine and on one with topics.
fn judge_record(bytes: &[u8], restored: &[u8]) {
    decode::<Request>(bytes).ok();
    decode::<Reply>(bytes).ok();
    if decode::<Command>(bytes).is_ok() {
        let mut other = machine();
        other.restore(9, 1, restored).expect("our own checkpoint");
        for mut machine in [machine(), other] {
            apply(&mut machine, Bytes::copy_from_slice(bytes));
            judge(&machine.checkpoint());
        }
    }
}

#[test]
fn what_did_harm_once_does_none() {
    for (name, bytes) in known("metadata_checkpoint") {
        println!("{name}");
        assert!(!judge(&bytes), "{name}");
    }
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    assert!(judge(&checkpoint()));
}

proptest! {
    #![proptest_config(config(3_000))]

    #[test]
    fn noise_is_judged_without_panic(bytes in noise(200)) {
        let good = checkpoint();
        judge(&bytes);
        judge(&[&[1], &bytes[..]].concat());
        judge(&[&[2], &bytes[..]].concat());
        judge_record(&bytes, &good);
        judge_record(&[&[1], &bytes[..]].concat(), &good);
    }

    #[test]
    fn edited_records_are_judged_without_panic(edits in edits()) {
        let good = checkpoint();
        judge(&edited(&good, &edits));
        for command in commands() {
            judge_record(&edited(&encode(&command), &edits), &good);
            let request = encode(&Request::Submit(command));
            decode::<Request>(&edited(&request, &edits)).ok();
        }
    }
}
