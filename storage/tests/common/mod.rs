//! Words that the store's tests share.

#![allow(dead_code, reason = "each test binary uses some of these")]

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use drave_storage::{Checkpoint, Done, Engine, EngineOptions, Entry, GroupId, LogStore, Write};

pub(crate) const G: GroupId = GroupId(7);
pub(crate) const ALL: usize = usize::MAX;

/// Sizes small enough that every path is taken: evictions, flushes, full queues. The cache holds the largest of the
/// tests' appends: what was appended last is never evicted before the test looks.
pub(crate) fn small() -> EngineOptions {
    EngineOptions {
        tail_cache_bytes: 32 << 10,
        queue_bytes_max: 64 << 10,
        write_buffer_bytes: 256 << 10,
        block_cache_bytes: 1 << 20,
        on_damage: |_| {},
    }
}

pub(crate) fn open(path: &Path) -> Arc<Engine> {
    Engine::open(path, small()).unwrap()
}

pub(crate) fn entry_of(index: u64, term: u64, payload: Vec<u8>) -> Entry {
    Entry {
        index,
        term,
        tag: 3,
        stamp: 1_000 + i64::try_from(index).unwrap(),
        checksum: crc32c::crc32c(&payload),
        payload: Bytes::from(payload),
    }
}

/// An entry whose payload follows from its index and term.
pub(crate) fn entry(index: u64, term: u64, len: usize) -> Entry {
    let fill = u8::try_from((index * 31 + term) % 251).unwrap();
    entry_of(index, term, vec![fill; len])
}

pub(crate) fn entries(indexes: std::ops::Range<u64>, term: u64, len: usize) -> Vec<Entry> {
    indexes.map(|index| entry(index, term, len)).collect()
}

pub(crate) fn append(store: &dyn LogStore, group: GroupId, added: &[Entry]) {
    store.submit(group, Write::Append(added.to_vec()), None);
}

pub(crate) fn checkpoint(index: u64, term: u64) -> Checkpoint {
    Checkpoint {
        index,
        term,
        bytes: Bytes::from(format!("state at {index}")),
    }
}

/// A completion, and where it reports.
pub(crate) fn done() -> (Option<Done>, Receiver<std::io::Result<()>>) {
    let (sender, receiver) = channel();
    let done: Done = Box::new(move |result| sender.send(result).unwrap());
    (Some(done), receiver)
}
