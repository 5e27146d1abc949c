//! The machine, its index and the readers together, over a log held in memory.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use drave_raft::{Applied, StateMachine};
use drave_storage::{Entry, StorageError};
use proptest::prelude::*;

use super::batches::Batches;
use super::command;
use super::index::Position;
use super::machine::{Appended, BatchOutcome, PartitionMachine};
use super::producers::{PRODUCER_IDLE_MAX_MS, Refusal};
use super::read::{LogSource, ReadError, TailRead, Wanted, read_stored, read_tail, scan_from};
use super::view::PartitionView;

/// A batch's header and a body of its own bytes.
#[derive(Clone, Copy, Debug)]
struct Spec {
    producer: i64,
    epoch: i16,
    sequence: i32,
    count: i32,
    timestamp: i64,
    body: usize,
}

const PLAIN: Spec = Spec {
    producer: -1,
    epoch: -1,
    sequence: -1,
    count: 1,
    timestamp: 5,
    body: 9,
};

fn idempotent(producer: i64, epoch: i16, sequence: i32, count: i32) -> Spec {
    Spec {
        producer,
        epoch,
        sequence,
        count,
        ..PLAIN
    }
}

fn bytes_of(spec: Spec) -> Bytes {
    let mut batch = BytesMut::new();
    batch.put_i64(0);
    batch.put_i32((49 + spec.body) as i32);
    batch.put_i32(-1);
    batch.put_u8(2);
    batch.put_u32(0);
    batch.put_i16(0);
    batch.put_i32(spec.count - 1);
    batch.put_i64(spec.timestamp);
    batch.put_i64(spec.timestamp);
    batch.put_i64(spec.producer);
    batch.put_i16(spec.epoch);
    batch.put_i32(spec.sequence);
    batch.put_i32(spec.count);
    batch.put_bytes(spec.sequence as u8, spec.body);
    batch.freeze()
}

/// A replica: a log, its keys, and the machine over them.
struct Replica {
    view: Arc<PartitionView>,
    machine: PartitionMachine,
    log: Log,
    term: u64,
    clock: i64,
}

#[derive(Clone, Default)]
struct Log {
    entries: Vec<Entry>,
    keys: BTreeMap<Bytes, Bytes>,
    /// Entries before this one are not in memory.
    tail_from: u64,
}

impl LogSource for Log {
    fn tail(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        (from >= self.tail_from).then(|| self.entries(from, to, bytes_max).expect("in memory"))
    }

    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        let mut taken = Vec::new();
        let mut weight = 0;
        for entry in &self.entries[from as usize..(to as usize).min(self.entries.len())] {
            weight += entry.weight();
            if !taken.is_empty() && weight > bytes_max {
                break;
            }
            taken.push(entry.clone());
        }
        Ok(taken)
    }

    fn key_at_or_before(
        &self,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        let key = Bytes::copy_from_slice(key);
        let found = self.keys.range(..=key).next_back();
        Ok(found
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(k, v)| (k.clone(), v.clone())))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let range = Bytes::copy_from_slice(from)..Bytes::copy_from_slice(to);
        Ok(self
            .keys
            .range(range)
            .take(count_max)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect())
    }
}

impl Replica {
    fn new() -> Replica {
        let view = Arc::new(PartitionView::default());
        let machine = PartitionMachine::new(Arc::clone(&view));
        Replica {
            view,
            machine,
            log: Log::default(),
            term: 1,
            clock: 1_000,
        }
    }

    fn apply(&mut self, index: usize) -> drave_raft::Reply {
        let entry = &self.log.entries[index];
        let command = drave_raft::Command {
            tag: entry.tag,
            stamp: entry.stamp,
            payload: entry.payload.clone(),
        };
        let reply = self.machine.apply(Applied {
            index: entry.index,
            term: entry.term,
            command: (entry.tag >= drave_raft::Command::TAG_MIN).then_some(&command),
        });
        for (key, value) in self.machine.take_keys() {
            self.log.keys.insert(key, value.expect("keys are only put"));
        }
        reply
    }

    fn push(&mut self, tag: u8, payload: Bytes) -> drave_raft::Reply {
        let index = self.log.entries.len();
        self.log.entries.push(Entry {
            index: index as u64,
            term: self.term,
            tag,
            stamp: self.clock,
            checksum: 0,
            payload,
        });
        let reply = self.apply(index);
        self.machine.applied_batch();
        reply
    }

    fn raft_entry(&mut self) {
        self.push(0, Bytes::new());
    }

    fn append(&mut self, specs: &[Spec]) -> Vec<BatchOutcome> {
        let mut payload = BytesMut::new();
        for spec in specs {
            payload.put_slice(&bytes_of(*spec));
        }
        let reply = self.push(command::CommandTag::Append as u8, payload.freeze());
        reply
            .downcast::<Appended>()
            .expect("an append is answered")
            .outcomes
    }

    fn append_one(&mut self, spec: Spec) -> BatchOutcome {
        let outcomes = self.append(&[spec]);
        assert_eq!(outcomes.len(), 1);
        outcomes[0]
    }

    /// A replica that starts from a checkpoint taken at `at` and replays the rest.
    fn restarted(&self, at: usize) -> Replica {
        let mut before = Replica::new();
        before.log.entries = self.log.entries.clone();
        for index in 0..at {
            before.apply(index);
        }
        let checkpoint = before.machine.checkpoint();
        let mut after = Replica::new();
        (after.term, after.clock) = (self.term, self.clock);
        after.log = before.log;
        if at > 0 {
            after
                .machine
                .restore(at as u64 - 1, 1, &checkpoint)
                .expect("own checkpoint");
        }
        for index in at..self.log.entries.len() {
            after.apply(index);
        }
        after
    }

    fn wanted(offset: i64, bytes_max: usize) -> Wanted {
        Wanted {
            offset,
            bytes_max,
            at_least_one: true,
        }
    }

    fn read(&self, offset: i64, bytes_max: usize) -> Vec<u8> {
        let wanted = Replica::wanted(offset, bytes_max);
        let stored = read_stored(&self.view, &self.log, wanted).expect("readable");
        if let TailRead::Records(records) =
            read_tail(&self.view, &self.log, wanted).expect("readable")
        {
            assert_eq!(
                records.chunks.concat(),
                stored.chunks.concat(),
                "tail and store differ"
            );
        }
        let bytes = stored.chunks.concat();
        assert_eq!(stored.bytes, bytes.len());
        bytes
    }

    /// (base offset, leader epoch, first sequence) of every batch from `offset` on.
    fn batches(&self, offset: i64, bytes_max: usize) -> Vec<(i64, i32, i32)> {
        let bytes = self.read(offset, bytes_max);
        let batches = Batches::of(&bytes).map(|batch| {
            let base = i64::from_be_bytes(batch.bytes[..8].try_into().expect("8 bytes"));
            let epoch = i32::from_be_bytes(batch.bytes[12..16].try_into().expect("4 bytes"));
            (base, epoch, batch.sequence_first())
        });
        batches.collect()
    }
}

fn appended(base_offset: i64) -> BatchOutcome {
    BatchOutcome::Appended { base_offset }
}

fn duplicate(base_offset: i64) -> BatchOutcome {
    BatchOutcome::Duplicate {
        base_offset,
        timestamp: 5,
    }
}

const OUT_OF_ORDER: BatchOutcome = BatchOutcome::Refused(Refusal::OutOfOrderSequence);
const FENCED: BatchOutcome = BatchOutcome::Refused(Refusal::InvalidProducerEpoch);

#[test]
fn entries_of_raft_take_no_offset() {
    let mut replica = Replica::new();
    replica.raft_entry();
    assert_eq!(replica.append_one(Spec { count: 3, ..PLAIN }), appended(0));
    replica.raft_entry();
    replica.raft_entry();
    assert_eq!(replica.append_one(PLAIN), appended(3));
    assert_eq!(replica.view.high_watermark(), 4);
    assert_eq!(replica.batches(0, 1 << 20), [(0, 1, -1), (3, 1, -1)]);
}

#[test]
fn a_duplicate_batch_is_answered_with_its_first_offset() {
    let mut replica = Replica::new();
    for sequence in 0..5 {
        let spec = idempotent(7, 0, sequence * 2, 2);
        assert_eq!(replica.append_one(spec), appended(i64::from(sequence) * 2));
    }
    for sequence in 0..5 {
        let spec = idempotent(7, 0, sequence * 2, 2);
        assert_eq!(replica.append_one(spec), duplicate(i64::from(sequence) * 2));
    }
    assert_eq!(replica.view.high_watermark(), 10);
    assert_eq!(replica.batches(0, 1 << 20).len(), 5);
}

#[test]
fn only_the_last_five_batches_of_a_producer_are_remembered() {
    let mut replica = Replica::new();
    for sequence in 0..6 {
        replica.append_one(idempotent(7, 0, sequence, 1));
    }
    assert_eq!(replica.append_one(idempotent(7, 0, 0, 1)), OUT_OF_ORDER);
    assert_eq!(replica.append_one(idempotent(7, 0, 1, 1)), duplicate(1));
    assert_eq!(replica.append_one(idempotent(7, 0, 6, 1)), appended(6));
    assert_eq!(replica.append_one(idempotent(7, 0, 1, 1)), OUT_OF_ORDER);
}

#[test]
fn a_duplicate_is_known_after_a_restart_from_a_checkpoint() {
    let mut replica = Replica::new();
    for sequence in 0..4 {
        replica.append_one(idempotent(7, 3, sequence, 1));
    }
    for at in 0..=4 {
        let mut after = replica.restarted(at);
        assert_eq!(
            after.append_one(idempotent(7, 3, 2, 1)),
            duplicate(2),
            "checkpoint {at}"
        );
        assert_eq!(
            after.append_one(idempotent(7, 3, 5, 1)),
            OUT_OF_ORDER,
            "checkpoint {at}"
        );
        assert_eq!(
            after.append_one(idempotent(7, 3, 4, 1)),
            appended(4),
            "checkpoint {at}"
        );
    }
}

#[test]
fn a_gap_in_the_sequence_is_refused_and_takes_no_offset() {
    let mut replica = Replica::new();
    replica.append_one(idempotent(7, 0, 0, 3));
    assert_eq!(replica.append_one(idempotent(7, 0, 4, 1)), OUT_OF_ORDER);
    assert_eq!(replica.append_one(idempotent(7, 0, 3, 1)), appended(3));
    assert_eq!(replica.batches(0, 1 << 20), [(0, 1, 0), (3, 1, 3)]);
}

#[test]
fn a_producer_of_which_nothing_is_known_may_start_anywhere() {
    let mut replica = Replica::new();
    assert_eq!(replica.append_one(idempotent(7, 0, 41, 1)), appended(0));
    assert_eq!(replica.append_one(idempotent(7, 0, 43, 1)), OUT_OF_ORDER);
}

#[test]
fn a_newer_epoch_starts_at_zero_and_fences_the_older_one() {
    let mut replica = Replica::new();
    replica.append_one(idempotent(7, 1, 0, 1));
    assert_eq!(replica.append_one(idempotent(7, 2, 1, 1)), OUT_OF_ORDER);
    assert_eq!(replica.append_one(idempotent(7, 2, 0, 1)), appended(1));
    assert_eq!(replica.append_one(idempotent(7, 1, 1, 1)), FENCED);
    assert_eq!(replica.append_one(idempotent(7, 2, 1, 1)), appended(2));
}

#[test]
fn sequences_wrap_to_zero_after_the_greatest() {
    let mut replica = Replica::new();
    assert_eq!(
        replica.append_one(idempotent(7, 0, i32::MAX - 1, 2)),
        appended(0)
    );
    assert_eq!(replica.append_one(idempotent(7, 0, 0, 2)), appended(2));
    let mut replica = Replica::new();
    assert_eq!(
        replica.append_one(idempotent(7, 0, i32::MAX, 3)),
        appended(0)
    );
    assert_eq!(replica.append_one(idempotent(7, 0, 1, 1)), OUT_OF_ORDER);
    assert_eq!(replica.append_one(idempotent(7, 0, 2, 1)), appended(3));
    assert_eq!(
        replica.append_one(idempotent(7, 0, i32::MAX, 3)),
        duplicate(0)
    );
}

#[test]
fn a_producer_is_forgotten_when_idle_for_a_day_by_the_entries_clock() {
    let mut replica = Replica::new();
    replica.append_one(idempotent(7, 0, 0, 1));
    replica.clock += PRODUCER_IDLE_MAX_MS - 1;
    replica.append_one(PLAIN);
    assert_eq!(replica.append_one(idempotent(7, 0, 0, 1)), duplicate(0));
    replica.clock += PRODUCER_IDLE_MAX_MS;
    replica.append_one(PLAIN);
    assert_eq!(replica.append_one(idempotent(7, 0, 9, 1)), appended(3));
}

#[test]
fn dead_batches_between_live_ones_are_never_served() {
    let mut replica = Replica::new();
    let outcomes = replica.append(&[
        idempotent(7, 0, 0, 2),
        idempotent(7, 0, 0, 2),
        idempotent(8, 0, 0, 1),
        idempotent(7, 0, 9, 1),
        idempotent(7, 0, 2, 1),
    ]);
    assert_eq!(
        outcomes,
        [
            appended(0),
            duplicate(0),
            appended(2),
            OUT_OF_ORDER,
            appended(3)
        ]
    );
    let live = [(0, 1, 0), (2, 1, 0), (3, 1, 2)];
    assert_eq!(replica.batches(0, 1 << 20), live);
    let after = replica.restarted(1);
    assert_eq!(after.batches(0, 1 << 20), live, "known only to the store");
    assert_eq!(after.batches(3, 1 << 20), live[2..]);
}

#[test]
fn a_fetch_from_the_middle_of_a_batch_returns_the_whole_batch() {
    let mut replica = Replica::new();
    replica.append_one(Spec { count: 10, ..PLAIN });
    replica.append_one(Spec { count: 10, ..PLAIN });
    assert_eq!(replica.batches(7, 1), [(0, 1, -1)]);
    assert_eq!(replica.batches(10, 1), [(10, 1, -1)]);
    assert_eq!(replica.batches(19, 1 << 20), [(10, 1, -1)]);
    assert_eq!(replica.batches(20, 1 << 20), []);
}

#[test]
fn one_batch_is_returned_even_when_larger_than_the_limit_but_only_if_asked() {
    let mut replica = Replica::new();
    replica.append_one(Spec {
        body: 5_000,
        ..PLAIN
    });
    replica.append_one(Spec {
        body: 5_000,
        ..PLAIN
    });
    assert_eq!(replica.batches(0, 100), [(0, 1, -1)]);
    let wanted = Wanted {
        offset: 0,
        bytes_max: 100,
        at_least_one: false,
    };
    let records = read_stored(&replica.view, &replica.log, wanted).expect("readable");
    assert_eq!(records.bytes, 0);
}

#[test]
fn large_batches_are_served_without_a_copy() {
    let mut replica = Replica::new();
    replica.append_one(Spec {
        body: 100_000,
        ..PLAIN
    });
    let wanted = Replica::wanted(0, 1 << 20);
    let TailRead::Records(records) =
        read_tail(&replica.view, &replica.log, wanted).expect("readable")
    else {
        panic!("the entry is in memory")
    };
    let stored = &replica.log.entries[0].payload;
    assert_eq!(records.chunks[1].as_ptr(), stored[16..].as_ptr());
    assert_eq!(records.bytes, stored.len());
}

#[test]
fn offsets_outside_the_log_are_out_of_range() {
    let mut replica = Replica::new();
    replica.append_one(PLAIN);
    for offset in [-1, 2] {
        let wanted = Replica::wanted(offset, 100);
        let result = read_tail(&replica.view, &replica.log, wanted);
        assert!(matches!(
            result,
            Err(ReadError::OutOfRange {
                start: 0,
                end: 1,
                ..
            })
        ));
    }
}

#[test]
fn batches_carry_the_epoch_of_the_leader_that_appended_them() {
    let mut replica = Replica::new();
    replica.raft_entry();
    replica.append_one(PLAIN);
    replica.term = 4;
    replica.raft_entry();
    replica.append_one(PLAIN);
    assert_eq!(replica.batches(0, 1 << 20), [(0, 1, -1), (1, 4, -1)]);
    let shared = replica.view.read();
    assert_eq!(shared.epochs.end_of(1, shared.next_offset), (1, 1));
    assert_eq!(shared.epochs.end_of(4, shared.next_offset), (4, 2));
}

#[test]
fn a_payload_that_cannot_be_walked_is_refused_and_served_to_nobody() {
    let mut replica = Replica::new();
    let mut payload = BytesMut::from(&bytes_of(PLAIN)[..]);
    payload.put_slice(b"rubbish");
    let reply = replica.push(command::CommandTag::Append as u8, payload.freeze());
    let outcomes = reply.downcast::<Appended>().expect("answered").outcomes;
    assert_eq!(
        outcomes,
        [appended(0), BatchOutcome::Refused(Refusal::Malformed)]
    );
    replica.append_one(PLAIN);
    assert_eq!(replica.batches(0, 1 << 20), [(0, 1, -1), (1, 1, -1)]);
}

#[test]
fn a_cold_reader_is_sent_to_the_store() {
    let mut replica = Replica::new();
    for _ in 0..200 {
        replica.append_one(Spec {
            body: 3_000,
            ..PLAIN
        });
    }
    replica.log.tail_from = 100;
    let wanted = Replica::wanted(5, 1 << 20);
    let tail = read_tail(&replica.view, &replica.log, wanted).expect("readable");
    assert!(matches!(tail, TailRead::Stored));
    assert_eq!(replica.batches(5, 1 << 20).len(), 195);
}

#[test]
fn the_checkpoint_is_written_as_it_was_first_defined() {
    let mut replica = Replica::new();
    replica.raft_entry();
    replica.append(&[idempotent(7, 2, 0, 3), idempotent(7, 2, 0, 3)]);
    let golden = concat!(
        "01",
        "00000000000003e8", // clock
        "0000000000000003", // next offset
        "0000000000000000", // log start
        "0000000000000005", // latest timestamp,
        "0000000000000000", // its batch,
        "0000000000000001", // its entry,
        "0000000000000000", // and where that starts
        "00000001",         // epochs
        "00000001",
        "0000000000000000",
        "01",               // a point was made
        "000000000000008c", // bytes since
        "00000001",         // entries since
        "0000000000000002", // after the last entry with dead batches
        "0000000000000000", // producers swept at
        "00000001",         // producers
        "0000000000000007",
        "0002",             // epoch
        "00000000000003e8", // active at
        "01",               // batches
        "00000000",
        "00000002",
        "0000000000000000",
        "0000000000000005"
    );
    let hex: String = replica
        .machine
        .checkpoint()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, golden);
}

#[test]
fn keys_are_written_as_they_were_first_defined() {
    let mut replica = Replica::new();
    replica.append(&[idempotent(7, 0, 0, 1), idempotent(7, 0, 0, 1)]);
    let hex = |bytes: &Bytes| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let keys: Vec<(String, String)> = replica
        .log
        .keys
        .iter()
        .map(|(key, value)| (hex(key), hex(value)))
        .collect();
    let golden = [
        ("640000000000000000", "0102"),
        ("6f8000000000000000", "010000000000000000ffffffffffffffff"),
        ("747fffffffffffffff8000000000000000", "010000000000000000"),
    ];
    assert_eq!(
        keys,
        golden.map(|(key, value)| (key.to_owned(), value.to_owned()))
    );
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let mut replica = Replica::new();
    replica.append_one(idempotent(7, 2, 0, 3));
    let checkpoint = replica.machine.checkpoint();
    for length in 0..checkpoint.len() {
        let mut other = Replica::new();
        assert!(other.machine.restore(0, 1, &checkpoint[..length]).is_err());
    }
    let mut newer = checkpoint.to_vec();
    newer[0] = 99;
    assert!(Replica::new().machine.restore(0, 1, &newer).is_err());
}

#[test]
fn a_scan_visits_every_live_batch_once() {
    let mut replica = Replica::new();
    for sequence in 0..300 {
        replica.append(&[idempotent(7, 0, sequence, 1), idempotent(7, 0, sequence, 1)]);
    }
    let mut offsets = Vec::new();
    let first = Position {
        index: 0,
        base_offset: 0,
    };
    scan_from(&replica.view, &replica.log, first, |live| {
        offsets.push(live.base_offset);
        ControlFlow::Continue(())
    })
    .expect("readable");
    assert_eq!(offsets, (0..300).collect::<Vec<i64>>());
}

#[derive(Clone, Debug)]
enum Step {
    /// Batches in one entry: (producer 0..3, repeat an old one, records, body).
    Append(Vec<(i64, bool, i32, usize)>),
    Raft,
    NewTerm,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let batch = (
        0..4i64,
        prop::bool::weighted(0.2),
        1..5i32,
        prop_oneof![0..50usize, 0..4000usize],
    );
    let step = prop_oneof![
        8 => prop::collection::vec(batch, 1..6).prop_map(Step::Append),
        1 => Just(Step::Raft),
        1 => Just(Step::NewTerm),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_read_is_what_a_simple_model_appended(
        steps in steps(),
        at in any::<prop::sample::Index>(),
        bytes_max in 1..20_000usize,
    ) {
        let mut replica = Replica::new();
        // The model: live batches in order, and each producer's own history.
        let mut model: Vec<(i64, i32, i32)> = Vec::new();
        let mut end = 0i64;
        let mut sent: BTreeMap<i64, Vec<(Spec, i64)>> = BTreeMap::new();
        for step in &steps {
            match step {
                Step::Raft => replica.raft_entry(),
                Step::NewTerm => {
                    replica.term += 1;
                    replica.raft_entry();
                }
                Step::Append(batches) => {
                    let mut specs = Vec::new();
                    let mut expected = Vec::new();
                    for (producer, repeat, count, body) in batches {
                        let history = sent.entry(*producer).or_default();
                        if let (true, Some((spec, offset))) = (*repeat, history.last()) {
                            specs.push(*spec);
                            expected.push(duplicate(*offset));
                            continue;
                        }
                        let sequence = history.last().map_or(0, |(s, _)| s.sequence + s.count);
                        let spec = Spec { body: *body, ..idempotent(*producer, 0, sequence, *count) };
                        history.push((spec, end));
                        model.push((end, replica.term as i32, sequence));
                        expected.push(appended(end));
                        end += i64::from(*count);
                        specs.push(spec);
                    }
                    prop_assert_eq!(replica.append(&specs), expected);
                }
            }
        }
        prop_assert_eq!(replica.view.high_watermark(), end);
        let restarted = replica.restarted(at.index(replica.log.entries.len() + 1));
        prop_assert_eq!(restarted.machine.checkpoint(), replica.machine.checkpoint());
        for replica in [&replica, &restarted] {
            for offset in 0..end {
                let first = model.partition_point(|batch| batch.0 <= offset) - 1;
                let read = replica.batches(offset, bytes_max);
                prop_assert!(!read.is_empty());
                prop_assert_eq!(&read[..], &model[first..first + read.len()]);
            }
            prop_assert_eq!(replica.batches(0, usize::MAX), model.clone());
        }
    }
}
