//! Damaged payloads: found, named, never served, and mended by the same entries from elsewhere.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use drave_storage::{Entry, GroupId, LogStore, StorageError, Write};

const ENTRY_BYTES: usize = 3_000;

fn blob_files(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory.join("rocksdb")).unwrap();
    let paths = files.map(|file| file.unwrap().path());
    let mut blobs: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|kind| kind == "blob"))
        .collect();
    blobs.sort();
    blobs
}

/// A closed store with these entries, their payloads in blob files.
fn store_of(entries: &[Entry]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path());
    append(&*engine, G, entries);
    append(&*engine, GroupId(G.0 + 1), entries);
    drop(engine);
    // What the write-ahead log held goes to files when the store is opened again.
    drop(open(directory.path()));
    assert!(!blob_files(directory.path()).is_empty());
    directory
}

/// Flips a bit in the middle of an entry's payload of [`G`], whose records come
/// before those of the other group; says in which file.
fn flip(directory: &Path, entry: &Entry) -> PathBuf {
    for path in blob_files(directory) {
        let mut bytes = fs::read(&path).unwrap();
        let key = [G.0.to_be_bytes(), entry.index.to_be_bytes()].concat();
        let Some(at) = bytes.windows(16).position(|window| window == key) else {
            continue;
        };
        let payload = at + 45;
        assert_eq!(bytes[payload..payload + entry.payload.len()], entry.payload);
        bytes[payload + entry.payload.len() / 2] ^= 4;
        fs::write(&path, bytes).unwrap();
        return path;
    }
    panic!("entry {} is in no blob file", entry.index);
}

fn damaged_index(result: Result<Vec<Entry>, StorageError>) -> u64 {
    match result {
        Err(StorageError::Corrupt {
            group: G, index, ..
        }) => index,
        other => panic!("expected a damaged entry, got {other:?}"),
    }
}

fn repair(store: &dyn LogStore, entries: &[Entry]) {
    let (done, receiver) = done();
    store.submit(G, Write::Repair(entries.to_vec()), done);
    receiver.recv().unwrap().unwrap();
}

#[test]
fn a_flipped_bit_is_named_never_served_and_mended() {
    for index in [0, 17, 39] {
        let whole = entries(0..40, 3, ENTRY_BYTES);
        let directory = store_of(&whole);
        let file = flip(directory.path(), &whole[index as usize]);
        let engine = open(directory.path());
        assert_eq!(engine.open_group(G).unwrap().last, Some((39, 3)));
        let at = index as usize;
        if at > 0 {
            assert_eq!(engine.read(G, 0, 40, ALL).unwrap(), whole[..at]);
        }
        assert_eq!(damaged_index(engine.read(G, index, 40, ALL)), index);
        assert_eq!(engine.file_of(G, index), Some(file));

        let mut wrong = whole[at].clone();
        wrong.term = 2;
        repair(&*engine, &[wrong]);
        assert_eq!(damaged_index(engine.read(G, index, 40, ALL)), index);
        repair(&*engine, &whole[at..]);
        assert_eq!(engine.read(G, 0, 40, ALL).unwrap(), whole);
        drop(engine);

        for _ in 0..2 {
            let engine = open(directory.path());
            assert_eq!(engine.read(G, 0, 40, ALL).unwrap(), whole);
            assert_eq!(engine.size_on_disk(G), 40 * ENTRY_BYTES as u64);
            let other = engine.read(GroupId(G.0 + 1), 0, 40, ALL).unwrap();
            assert_eq!(other, whole);
        }
    }
}

/// Mends whatever is damaged, some entries at a time; says how often.
fn mend_all(store: &dyn LogStore, whole: &[Entry], first: u64) -> usize {
    let end = whole.len() as u64;
    let (mut next, mut repairs) = (first, 0);
    while next < end {
        match store.read(G, next, end, ALL) {
            Ok(read) => next = read.last().unwrap().index + 1,
            Err(StorageError::Corrupt { index, .. }) => {
                repair(store, &whole[index as usize..(index + 7).min(end) as usize]);
                assert_eq!(
                    store.read(G, index, index + 1, ALL).unwrap(),
                    whole[index as usize..=index as usize]
                );
                repairs += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    repairs
}

#[test]
fn cut_and_missing_blob_files_are_mended_whole() {
    let whole = entries(0..60, 1, ENTRY_BYTES);
    let cut_in_half = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    };
    let cut_to_nothing = |path: &Path| drop(fs::File::create(path).unwrap());
    let damages: [&dyn Fn(&Path); 2] = [&cut_in_half, &cut_to_nothing];
    for damage in damages {
        for purged in [None, Some(11)] {
            let directory = store_of(&whole);
            let engine = open(directory.path());
            if let Some(index) = purged {
                engine.submit(G, Write::Purge { index, term: 1 }, None);
                engine.flush().unwrap();
            }
            let size = engine.size_on_disk(G);
            drop(engine);
            blob_files(directory.path())
                .iter()
                .for_each(|path| damage(path));
            let first = purged.map_or(0, |index| index + 1);
            let engine = open(directory.path());
            assert_eq!(engine.open_group(G).unwrap().last, Some((59, 1)));
            assert!(mend_all(&*engine, &whole, first) > 0);
            drop(engine);
            let engine = open(directory.path());
            assert_eq!(
                engine.read(G, first, 60, ALL).unwrap(),
                whole[first as usize..]
            );
            assert_eq!(engine.size_on_disk(G), size);
        }
    }
}

#[test]
fn a_log_goes_on_from_a_damaged_end() {
    let whole = entries(0..30, 1, ENTRY_BYTES);
    let directory = store_of(&whole);
    for entry in &whole[25..] {
        flip(directory.path(), entry);
    }
    let engine = open(directory.path());
    // Back to between two damaged entries, and on.
    engine.submit(G, Write::Truncate { last: Some(26) }, None);
    append(&*engine, G, &entries(27..35, 2, ENTRY_BYTES));
    drop(engine);
    let mut whole = whole[..27].to_vec();
    whole.extend(entries(27..35, 2, ENTRY_BYTES));
    let engine = open(directory.path());
    assert_eq!(engine.open_group(G).unwrap().last, Some((34, 2)));
    assert_eq!(engine.read(G, 27, 40, ALL).unwrap(), whole[27..]);
    assert_eq!(damaged_index(engine.read(G, 25, 40, ALL)), 25);
    assert_eq!(mend_all(&*engine, &whole, 0), 1);
    assert_eq!(engine.read(G, 0, 40, ALL).unwrap(), whole);
}

#[test]
fn what_is_mended_outlives_the_damaged_file() {
    let whole = entries(0..200, 1, ENTRY_BYTES);
    let directory = store_of(&whole);
    flip(directory.path(), &whole[150]);
    let engine = open(directory.path());
    repair(&*engine, &whole[150..151]);
    // Moves what is live, and rewrites all keys.
    engine.submit(GroupId(G.0 + 1), Write::Drop, None);
    append(&*engine, GroupId(G.0 + 2), &entries(0..3_000, 1, 4_000));
    engine.submit(GroupId(G.0 + 2), Write::Drop, None);
    drop(engine);
    let engine = open(directory.path());
    assert_eq!(engine.read(G, 0, 200, ALL).unwrap(), whole);
}
