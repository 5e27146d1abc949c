//! What only a disk can do: come back after an unclean end, notice loss, give
//! space back, take many writers.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use common::*;
use drave_storage::{Engine, EngineOptions, GroupId, LogStore, StorageError, Write};

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_directory(&file.path(), &target);
        } else {
            std::fs::copy(file.path(), target).unwrap();
        }
    }
}

fn bytes_below(path: &Path) -> u64 {
    let files = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let sizes = files.map(|file| match file.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&file.path()),
        Ok(found) => found.len(),
        Err(_) => 0, // Removed meanwhile.
    });
    sizes.sum()
}

#[test]
fn a_copy_taken_while_running_holds_everything_completed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    append(&*engine, G, &entries(0..500, 1, 700));
    engine.flush().unwrap();
    // As a crash leaves it: nothing closed, nothing said goodbye.
    let crashed = tempfile::tempdir().unwrap();
    copy_directory(directory.path(), crashed.path());
    let found = open(crashed.path());
    assert_eq!(
        found.read(G, 0, 1_000, ALL).unwrap(),
        entries(0..500, 1, 700)
    );
    assert_eq!(found.open_group(G).unwrap(), engine.open_group(G).unwrap());
}

#[test]
fn a_recovery_that_lost_synced_data_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let old = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    append(&*engine, G, &entries(0..10, 1, 100));
    drop(engine);
    copy_directory(directory.path(), old.path());
    let engine = open(directory.path());
    append(&*engine, G, &entries(10..20, 1, 100));
    drop(engine);
    let refusal = |path: &Path| {
        let error = Engine::open(path, small()).map(|_| ()).unwrap_err();
        error.to_string()
    };
    // The database is back at an older state, the watermark is not.
    std::fs::copy(directory.path().join("synced"), old.path().join("synced")).unwrap();
    let text = refusal(old.path());
    assert!(text.contains("CURRENT names manifest"), "{text}");
    // The database is the same, the end of its log is not.
    let cut = tempfile::tempdir().unwrap();
    copy_directory(directory.path(), cut.path());
    for file in std::fs::read_dir(cut.path().join("rocksdb")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "log") {
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
    }
    let text = refusal(cut.path());
    assert!(text.contains("synced data was lost"), "{text}");
    // And nothing is lost where both are current.
    let engine = open(directory.path());
    assert_eq!(engine.open_group(G).unwrap().last, Some((19, 1)));
}

#[test]
fn a_running_engine_writes_its_watermark_within_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    append(&*engine, G, &entries(0..10, 1, 100));
    engine.flush().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while !directory.path().join("synced").exists() {
        assert!(Instant::now() < until, "no watermark");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn one_directory_is_open_only_once() {
    let directory = tempfile::tempdir().unwrap();
    let _held = open(directory.path());
    let error = Engine::open(directory.path(), small())
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, StorageError::Io { .. }), "{error}");
}

#[test]
fn the_space_of_a_dropped_group_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let options = EngineOptions {
        write_buffer_bytes: 4 << 20,
        ..small()
    };
    let engine = Engine::open(directory.path(), options).unwrap();
    let other = GroupId(G.0 + 1);
    for first in (0..48_u64).step_by(4) {
        append(&*engine, G, &entries(first..first + 4, 1, 1 << 20));
        append(&*engine, other, &entries(first..first + 4, 1, 1 << 10));
    }
    engine.flush().unwrap();
    let before = bytes_below(directory.path());
    assert!(before > 40 << 20, "{before} bytes");
    engine.submit(G, Write::Drop, None);
    engine.flush().unwrap();
    // What stays: recycled WAL files, and the blob files that the other group has a part in.
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let blobs: u64 = std::fs::read_dir(directory.path().join("rocksdb"))
            .unwrap()
            .map(|file| file.unwrap())
            .filter(|file| file.path().extension().is_some_and(|kind| kind == "blob"))
            .map(|file| file.metadata().map_or(0, |found| found.len()))
            .sum();
        if blobs < 4 << 20 {
            break;
        }
        assert!(
            Instant::now() < until,
            "{blobs} bytes of blobs are still there"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        engine.read(other, 0, 100, ALL).unwrap(),
        entries(0..48, 1, 1 << 10)
    );
}

#[test]
fn many_groups_and_writers_keep_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    let start = Arc::new(Barrier::new(4));
    let completed = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4_u64)
        .map(|thread| {
            let (engine, start, completed) = (engine.clone(), start.clone(), completed.clone());
            std::thread::spawn(move || {
                start.wait();
                for round in 0..200 {
                    for group in 0..5 {
                        let group = GroupId(100 + thread * 5 + group);
                        let completed = completed.clone();
                        let done = Box::new(move |result: std::io::Result<()>| {
                            result.unwrap();
                            completed.fetch_add(1, Ordering::Relaxed);
                        });
                        engine.submit(group, Write::Append(vec![entry(round, 1, 500)]), Some(done));
                        // Reads race with eviction and never see a hole.
                        let read = engine.read(group, 0, 1_000, ALL).unwrap();
                        assert_eq!(read.len() as u64, round + 1);
                    }
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    engine.flush().unwrap();
    assert_eq!(completed.load(Ordering::Relaxed), 4 * 5 * 200);
    assert!(engine.last_sync_age_ms() < 60_000);
    drop(engine);
    let engine = open(directory.path());
    let groups: BTreeMap<_, _> = engine
        .groups()
        .unwrap()
        .into_iter()
        .map(|group| (group, engine.read(group, 0, 1_000, ALL).unwrap()))
        .collect();
    assert_eq!(groups.len(), 20);
    assert!(groups.values().all(|read| *read == entries(0..200, 1, 500)));
}

#[test]
fn reads_race_with_truncation_and_purge_and_stay_whole() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    append(&*engine, G, &entries(0..200, 1, 600));
    let reader = {
        let engine = engine.clone();
        std::thread::spawn(move || {
            let mut reads = 0;
            loop {
                let state = engine.open_group(G).unwrap();
                let read = engine.read(G, state.first_index(), u64::MAX, ALL).unwrap();
                for pair in read.windows(2) {
                    assert_eq!(pair[0].index + 1, pair[1].index);
                    assert!(pair[0].term <= pair[1].term);
                }
                reads += 1;
                if state.purged.is_some_and(|(index, _)| index >= 90) {
                    return reads;
                }
            }
        })
    };
    for round in 0..50_u64 {
        engine.submit(G, Write::Truncate { last: Some(150) }, None);
        append(&*engine, G, &entries(151..250, round + 2, 600));
        engine.submit(
            G,
            Write::Purge {
                index: round * 2,
                term: 1,
            },
            None,
        );
    }
    assert!(reader.join().unwrap() > 0);
}
