//! Random writes against the engine and the memory disk: they agree at every
//! step, also after the engine is opened again and after a power cut.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use bytes::Bytes;
use common::*;
use drave_storage::{Checkpoint, EngineOptions, GroupId, LogStore, MemoryDisk, Write, memory};
use proptest::prelude::*;

const GROUPS: u64 = 3;

/// A step whose numbers are fitted to the state it meets.
#[derive(Clone, Debug)]
enum Step {
    Append {
        count: u64,
        new_term: bool,
        len: usize,
    },
    Truncate {
        keep: u64,
    },
    TruncateAll,
    Vote(u8),
    Purge {
        part: u64,
    },
    Jump {
        ahead: u64,
    },
    Checkpoint {
        part: u64,
        keep: bool,
    },
    Put(u8, u8),
    Delete(u8),
    Drop,
    Read {
        from: u64,
        count: u64,
        bytes_max: usize,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1..20_u64, prop::bool::weighted(0.1), 0..1_500_usize)
            .prop_map(|(count, new_term, len)| Step::Append { count, new_term, len }),
        3 => (0..40_u64).prop_map(|keep| Step::Truncate { keep }),
        1 => Just(Step::TruncateAll),
        2 => any::<u8>().prop_map(Step::Vote),
        3 => (0..100_u64).prop_map(|part| Step::Purge { part }),
        1 => (0..50_u64).prop_map(|ahead| Step::Jump { ahead }),
        3 => (0..100_u64, any::<bool>()).prop_map(|(part, keep)| Step::Checkpoint { part, keep }),
        3 => (0..8_u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        1 => (0..8_u8).prop_map(Step::Delete),
        1 => Just(Step::Drop),
        6 => (0..200_u64, 0..100_u64, 0..30_000_usize)
            .prop_map(|(from, count, bytes_max)| Step::Read { from, count, bytes_max }),
        2 => Just(Step::Reopen),
    ]
}

/// Fits a step to the state of the group; `None` where it makes no sense.
fn write_of(store: &dyn LogStore, group: GroupId, step: &Step, term: &mut u64) -> Option<Write> {
    let state = store.open_group(group).unwrap();
    let (first, next) = (state.first_index(), state.next_index());
    let within = |part: u64| (next > first).then(|| first + (next - 1 - first) * part / 100);
    Some(match *step {
        Step::Append {
            count,
            new_term,
            len,
        } => {
            *term += u64::from(new_term);
            Write::Append(entries(next..next + count, *term, len))
        }
        Step::Truncate { keep } => Write::Truncate {
            last: Some((first + keep).checked_sub(1)?),
        },
        Step::TruncateAll => Write::Truncate { last: None },
        Step::Vote(vote) => Write::Vote(Bytes::from(vec![vote])),
        Step::Purge { part } => {
            let index = within(part)?;
            let term = state.term_at(index)?;
            Write::Purge { index, term }
        }
        Step::Jump { ahead } => Write::Purge {
            index: next + ahead,
            term: *term,
        },
        Step::Checkpoint { part, keep } => {
            let index = within(part)?;
            let keep = if keep {
                state.checkpoints.clone()
            } else {
                vec![]
            };
            let checkpoint = Checkpoint {
                index,
                term: state.term_at(index)?,
                bytes: Bytes::from(vec![7; usize::try_from(part).unwrap()]),
            };
            Write::Checkpoint { checkpoint, keep }
        }
        Step::Put(key, value) => Write::Keys(vec![(
            Bytes::from(vec![key]),
            Some(Bytes::from(vec![value])),
        )]),
        Step::Delete(key) => Write::Keys(vec![(Bytes::from(vec![key]), None)]),
        Step::Drop => Write::Drop,
        Step::Read { .. } | Step::Reopen => return None,
    })
}

fn assert_same(engine: &dyn LogStore, model: &dyn LogStore) {
    for group in (0..GROUPS).map(GroupId) {
        let state = model.open_group(group).unwrap();
        assert_eq!(engine.open_group(group).unwrap(), state);
        let first = state.first_index();
        assert_eq!(
            engine.read(group, first, u64::MAX, ALL).unwrap(),
            model.read(group, first, u64::MAX, ALL).unwrap()
        );
        for index in state.checkpoints {
            assert_eq!(
                engine.checkpoint(group, index).unwrap(),
                model.checkpoint(group, index).unwrap()
            );
        }
        assert_eq!(
            engine.scan(group, &[], &[255], ALL).unwrap(),
            model.scan(group, &[], &[255], ALL).unwrap()
        );
        assert_eq!(engine.size_on_disk(group), model.size_on_disk(group));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_agrees_with_the_memory_disk(
        steps in prop::collection::vec((0..GROUPS, step()), 1..120),
    ) {
        let directory = tempfile::tempdir().unwrap();
        // A tail cache of nothing sends every read to the disk.
        let options = || EngineOptions { tail_cache_bytes: steps.len() * 50, ..small() };
        let mut engine = drave_storage::Engine::open(directory.path(), options()).unwrap();
        let model = MemoryDisk::new(memory::Sync::Always);
        let mut term = 1;
        for (group, step) in &steps {
            let group = GroupId(*group);
            if let Some(write) = write_of(&model, group, step, &mut term) {
                engine.submit(group, write.clone(), None);
                model.submit(group, write, None);
            }
            match *step {
                Step::Reopen => {
                    drop(engine);
                    engine = drave_storage::Engine::open(directory.path(), options()).unwrap();
                    assert_same(&*engine, &model);
                }
                Step::Read { from, count, bytes_max } => {
                    let read = |store: &dyn LogStore| {
                        store.read(group, from, from + count, bytes_max).unwrap()
                    };
                    prop_assert_eq!(read(&*engine), read(&model));
                    let from_tail = engine.read_tail(group, from, from + count, bytes_max);
                    if let Some(found) = from_tail {
                        let known = model.read_tail(group, from, from + count, bytes_max);
                        prop_assert_eq!(found, known.unwrap_or_default());
                    }
                }
                _ => {}
            }
        }
        assert_same(&*engine, &model);
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_a_prefix_of_the_rest(
        steps in prop::collection::vec((0..GROUPS, step()), 1..60),
        synced in 0..60_usize,
        kept in 0..60_usize,
    ) {
        let disk = MemoryDisk::new(memory::Sync::Manual);
        let model = MemoryDisk::new(memory::Sync::Always);
        let mut term = 1;
        let mut completions = Vec::new();
        let mut written = 0;
        for (group, step) in &steps {
            let group = GroupId(*group);
            let Some(write) = write_of(&disk, group, step, &mut term) else { continue };
            if written < synced + kept {
                model.submit(group, write.clone(), None);
            }
            let (done, receiver) = done();
            disk.submit(group, write, done);
            completions.push(receiver);
            written += 1;
            if written == synced {
                disk.sync();
            }
        }
        let survived = if written < synced { 0 } else { synced };
        let after = disk.power_cut(if written < synced { written } else { kept });
        assert_same(&after, &model);
        for (at, receiver) in completions.iter().enumerate() {
            prop_assert_eq!(receiver.try_recv().is_ok(), at < survived, "completion {}", at);
        }
    }
}
