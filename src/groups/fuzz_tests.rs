//! Whatever bytes a coordinator's checkpoint or log holds, its machine comes to a verdict.

use bytes::Bytes;
use drave_raft::{Applied, Command, StateMachine};
use proptest::prelude::*;
use uuid::Uuid;

use super::command::{
    CommitOffsets, GroupCommand, GroupRecord, MemberRecord, PartitionCommit, StoreGroup,
    TopicCommit,
};
use super::machine::{CoordinatorMachine, Outcome};
use crate::corpus::{config, edited, edits, known, noise};

fn apply(machine: &mut CoordinatorMachine, command: &Command) -> Outcome {
    let reply = machine.apply(Applied {
        index: 1,
        term: 1,
        command: Some(command),
    });
    *reply.downcast::<Outcome>().expect("an outcome")
}

fn commands() -> Vec<Command> {
    let commit = GroupCommand::CommitOffsets(CommitOffsets {
        group: "readers".into(),
        generation: 3,
        topics: vec![TopicCommit {
            id: Uuid::from_u128(9),
            name: "orders".into(),
            metadata_index: 300,
            partitions: vec![PartitionCommit {
                partition: 1,
                offset: 42,
                leader_epoch: -1,
                metadata: "mine".into(),
            }],
        }],
    });
    let store = GroupCommand::StoreGroup(StoreGroup {
        group: "readers".into(),
        record: GroupRecord {
            revision: 1,
            generation: 2,
            protocol_type: "consumer".into(),
            protocol: Some("range".into()),
            leader: Some("a".into()),
            members: vec![MemberRecord {
                id: "a".into(),
                protocols: vec![("range".into(), Bytes::from_static(b"p"))],
                assignment: Bytes::from_static(b"x"),
                ..MemberRecord::default()
            }],
        },
    });
    vec![store.encode(5), commit.encode(6)]
}

fn checkpoint() -> Vec<u8> {
    let (mut machine, _) = CoordinatorMachine::new();
    for command in commands() {
        assert_eq!(apply(&mut machine, &command), Outcome::Done);
    }
    machine.checkpoint().to_vec()
}

/// What is restored can be written again.
fn judge(bytes: &[u8]) -> bool {
    let (mut machine, _) = CoordinatorMachine::new();
    let restored = machine.restore(9, 1, bytes).is_ok();
    if restored {
        let again = machine.checkpoint();
        machine.restore(9, 1, &again).expect("its own checkpoint");
    }
    restored
}

fn judge_command(tag: u8, payload: &[u8]) -> Outcome {
    let command = Command {
        tag,
        stamp: 7,
        payload: Bytes::copy_from_slice(payload),
    };
    apply(&mut CoordinatorMachine::new().0, &command)
}

#[test]
fn what_did_harm_once_does_none() {
    for (name, bytes) in known("group_command") {
        println!("{name}");
        let outcome = judge_command(bytes[0], &bytes[1..]);
        assert_eq!(outcome, Outcome::Malformed, "{name}");
    }
    for (name, bytes) in known("group_checkpoint") {
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
    fn noise_is_judged_without_panic(bytes in noise(200), tag in 16u8..23) {
        judge(&bytes);
        judge(&[&[1], &bytes[..]].concat());
        judge_command(tag, &bytes);
        judge_command(tag, &[&[1], &bytes[..]].concat());
    }

    #[test]
    fn edited_checkpoints_and_commands_are_judged_without_panic(edits in edits()) {
        judge(&edited(&checkpoint(), &edits));
        for command in commands() {
            judge_command(command.tag, &edited(&command.payload, &edits));
        }
    }
}
