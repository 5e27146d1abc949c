//! Every file of a store, cut or with a flipped bit, one at a time: the store is whole, or can be mended, or says
//! that it is damaged. It never says anything else than what was written.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::*;
use drave_storage::{
    Checkpoint, Engine, Entry, GroupId, GroupState, LogStore, StorageError, Write,
};

const GROUPS: u64 = 3;
/// Places at which each file is cut, and others at which a bit is flipped.
const PLACES: u64 = 6;
/// Places at which each of several write-ahead logs is cut.
const HOLES: u64 = 24;

/// All that a group holds.
#[derive(Debug, PartialEq)]
struct Held {
    state: GroupState,
    entries: Vec<Entry>,
    checkpoints: Vec<Checkpoint>,
    keys: Vec<(Bytes, Bytes)>,
}

fn held(
    store: &dyn LogStore,
    group: GroupId,
    whole: Option<&[Entry]>,
) -> Result<Held, StorageError> {
    let state = store.open_group(group)?;
    let (mut entries, mut next) = (Vec::new(), state.first_index());
    while next < state.next_index() {
        match (store.read(group, next, state.next_index(), ALL), whole) {
            (Ok(read), _) => {
                next = read.last().expect("an entry of the log").index + 1;
                entries.extend(read);
            }
            (Err(StorageError::Corrupt { index, .. }), Some(whole)) => {
                let (done, receiver) = done();
                let missing = whole.iter().filter(|entry| entry.index >= index);
                store.submit(group, Write::Repair(missing.cloned().collect()), done);
                receiver.recv().unwrap().unwrap();
                store.read(group, index, index + 1, ALL)?;
            }
            (Err(error), _) => return Err(error),
        }
    }
    let checkpoints = (state.checkpoints.iter())
        .map(|index| {
            Ok(store
                .checkpoint(group, *index)?
                .expect("a checkpoint of the group"))
        })
        .collect::<Result<_, StorageError>>()?;
    let keys = store.scan(group, b"", b"~", usize::MAX)?;
    Ok(Held {
        state,
        entries,
        checkpoints,
        keys,
    })
}

fn write(store: &dyn LogStore, from: u64, to: u64, term: u64) {
    for group in (1..=GROUPS).map(GroupId) {
        for index in from..to {
            // Some in blob files, some in tables.
            let bytes = if index % 3 == 0 { 200 } else { 2_000 };
            append(store, group, &[entry(index, term, bytes)]);
        }
        let vote = Bytes::from(format!("vote of {group} in {term}"));
        store.submit(group, Write::Vote(vote), None);
        store.submit(
            group,
            Write::Purge {
                index: from + 2,
                term,
            },
            None,
        );
        let write = Write::Checkpoint {
            checkpoint: checkpoint(to - 2, term),
            keep: vec![],
        };
        store.submit(group, write, None);
        let pair = |index: u64| {
            (
                Bytes::from(format!("key {index}")),
                Some(Bytes::from(vec![7; 90])),
            )
        };
        store.submit(group, Write::Keys((from..to).map(pair).collect()), None);
    }
}

/// A closed store with tables, blob files and a write-ahead log that holds more.
fn make(path: &Path) -> Vec<Held> {
    let engine = open(path);
    write(&*engine, 0, 30, 1);
    drop(engine);
    let engine = open(path);
    write(&*engine, 30, 50, 2);
    let held = (1..=GROUPS).map(|group| held(&*engine, GroupId(group), None).unwrap());
    held.collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// Opens a damaged store and compares all of it; how it came out.
fn verdict(path: &Path, whole: &[Held], what: &str) -> &'static str {
    let judge = || -> Result<(), StorageError> {
        let engine = Engine::open(path, small())?;
        for (group, whole) in (1..).map(GroupId).zip(whole) {
            let found = held(&*engine, group, Some(&whole.entries))?;
            assert!(found == *whole, "{what}: {group} holds {:?}", found.state);
        }
        Ok(())
    };
    match judge() {
        Ok(()) => "whole",
        Err(error @ (StorageError::Damaged { .. } | StorageError::Directory { .. })) => {
            let text = error.to_string();
            assert!(
                text.contains("remove the data directory") && !text.contains('\n'),
                "{what}: {text}"
            );
            "refused"
        }
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Damages a file of a copy at one place; how the copy came out, in a line.
fn damage(original: &Path, name: &Path, at: u64, cuts: bool, whole: &[Held]) -> String {
    let copied = tempfile::tempdir().unwrap();
    copy(original, copied.path());
    let damaged = fs::File::options()
        .read(true)
        .write(true)
        .open(copied.path().join(name))
        .unwrap();
    let bytes = damaged.metadata().unwrap().len();
    if cuts {
        damaged.set_len(at).unwrap();
    } else {
        let mut byte = [0];
        damaged.read_exact_at(&mut byte, at).unwrap();
        damaged
            .write_all_at(&[byte[0] ^ (1 << (at % 8))], at)
            .unwrap();
    }
    let what = format!(
        "{} {} at {at} of {bytes}",
        name.display(),
        if cuts { "cut" } else { "flipped" }
    );
    let verdict = verdict(copied.path(), whole, &what);
    format!("{what}: {verdict}\n")
}

#[test]
fn a_store_with_any_one_file_damaged_is_whole_or_refused() {
    let original = tempfile::tempdir().unwrap();
    let whole = make(original.path());
    let mut report = String::new();
    let mut refused = 0;
    for (number, file) in (0_u64..).zip(files(original.path())) {
        let name = file.strip_prefix(original.path()).unwrap();
        let bytes = fs::metadata(&file).unwrap().len();
        if bytes == 0 {
            continue;
        }
        for place in 0..PLACES {
            // The ends, and places that the number of the file picks.
            let at = match place {
                0 => 0,
                1 => bytes - 1,
                _ => {
                    (number * 7_919 + place * 104_729 + 13).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        % bytes
                }
            };
            for cuts in [true, false] {
                let line = damage(original.path(), name, at, cuts, &whole);
                refused += usize::from(line.ends_with("refused\n"));
                report += &line;
            }
        }
    }
    println!("{report}");
    assert!(refused > 0, "the damage went nowhere:\n{report}");
    let tables = report
        .lines()
        .filter(|line| line.contains(".blob ") && line.ends_with("whole"));
    assert!(
        tables.count() as u64 >= 2 * PLACES,
        "damaged payloads were not mended:\n{report}"
    );
}

#[test]
fn a_hole_between_two_write_ahead_logs_is_seen() {
    let original = tempfile::tempdir().unwrap();
    let engine = open(original.path());
    // The small state keeps old logs alive while entries begin new ones.
    write(&*engine, 0, 120, 1);
    write(&*engine, 120, 180, 2);
    let whole: Vec<Held> = (1..=GROUPS)
        .map(|group| held(&*engine, GroupId(group), None).unwrap())
        .collect();
    drop(engine);
    let all = files(original.path());
    let logs = all
        .iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "log"));
    let logs: Vec<_> = logs
        .map(|file| (file, fs::metadata(file).unwrap().len()))
        .filter(|(_, bytes)| *bytes > 0)
        .collect();
    assert!(logs.len() > 1, "{logs:?}");
    let mut report = String::new();
    for (file, bytes) in logs {
        let name = file.strip_prefix(original.path()).unwrap();
        for place in 0..HOLES {
            report += &damage(original.path(), name, bytes * place / HOLES, true, &whole);
        }
    }
    println!("{report}");
}
