//! Whatever bytes a partition's checkpoint or log holds, its machine comes to a verdict.

use std::sync::Arc;

use bytes::Bytes;
use drave_raft::{Applied, StateMachine};
use proptest::prelude::*;

use super::command;
use super::machine::PartitionMachine;
use super::view::PartitionView;
use crate::corpus::{config, edited, edits, noise};

fn machine() -> PartitionMachine {
    PartitionMachine::new(Arc::new(PartitionView::default()))
}

fn apply(machine: &mut PartitionMachine, index: u64, payload: Bytes) {
    let command = command::append(1_700_000_000_000, payload);
    machine.apply(Applied {
        index,
        term: 3,
        command: Some(&command),
    });
    machine.applied_batch();
    machine.take_keys();
}

/// A batch of one record by producer 7, as far as the machine looks at it.
fn batch() -> Vec<u8> {
    let mut batch = vec![0; 70];
    batch[8..12].copy_from_slice(&58i32.to_be_bytes());
    batch[16] = 2;
    batch[43..51].copy_from_slice(&7i64.to_be_bytes());
    batch[57..61].copy_from_slice(&1i32.to_be_bytes());
    batch
}

/// A checkpoint with an epoch, a producer and what belongs to them.
fn checkpoint() -> Vec<u8> {
    let mut machine = machine();
    apply(&mut machine, 0, batch().into());
    machine.checkpoint().to_vec()
}

/// What is restored can be written again.
fn judge(bytes: &[u8]) -> bool {
    let mut machine = machine();
    let restored = machine.restore(9, 3, bytes).is_ok();
    if restored {
        let again = machine.checkpoint();
        machine.restore(9, 3, &again).expect("its own checkpoint");
    }
    restored
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    assert!(judge(&checkpoint()));
}

#[test]
fn counts_that_are_only_claimed_set_no_memory_aside() {
    let good = checkpoint();
    for at in 0..good.len().saturating_sub(4) {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&[0xff; 4]);
        judge(&bytes);
    }
}

proptest! {
    #![proptest_config(config(5_000))]

    #[test]
    fn checkpoints_of_noise_are_judged_without_panic(bytes in noise(200)) {
        judge(&bytes);
        judge(&[&[1], &bytes[..]].concat());
    }

    #[test]
    fn edited_checkpoints_are_judged_without_panic(edits in edits()) {
        judge(&edited(&checkpoint(), &edits));
    }

    #[test]
    fn edited_entries_are_applied_without_panic(edits in edits(), noise in noise(200)) {
        let mut machine = machine();
        apply(&mut machine, 0, edited(&[batch(), batch()].concat(), &edits).into());
        apply(&mut machine, 1, noise.into());
        apply(&mut machine, 2, batch().into());
    }
}
