//! What every [`LogStore`] does, claimed once and checked on the engine and on
//! the memory disk.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use bytes::Bytes;
use common::*;
use drave_storage::{GroupId, GroupState, LogStore, MemoryDisk, TermStart, Write, memory};

/// A store under test that can be closed and opened again.
trait Bench {
    fn store(&self) -> &dyn LogStore;
    /// Makes everything durable, then closes and opens the store.
    fn reopen(&mut self);
}

struct OnDisk {
    // Closed before its directory goes.
    engine: Option<std::sync::Arc<drave_storage::Engine>>,
    directory: tempfile::TempDir,
}

impl OnDisk {
    fn new() -> OnDisk {
        let directory = tempfile::tempdir().unwrap();
        let engine = Some(open(directory.path()));
        OnDisk { engine, directory }
    }
}

impl Bench for OnDisk {
    fn store(&self) -> &dyn LogStore {
        self.engine.as_deref().unwrap()
    }

    fn reopen(&mut self) {
        self.engine = None;
        self.engine = Some(open(self.directory.path()));
    }
}

struct InMemory(MemoryDisk);

impl Bench for InMemory {
    fn store(&self) -> &dyn LogStore {
        &self.0
    }

    fn reopen(&mut self) {
        self.0.sync();
        self.0 = self.0.power_cut(0);
    }
}

/// Defines each claim as a test of both stores.
macro_rules! claims {
    ($($name:ident: $body:expr;)*) => {
        mod engine {
            use super::*;
            $(#[test] fn $name() { let body: fn(&mut dyn Bench) = $body; body(&mut OnDisk::new()); })*
        }
        mod memory_disk {
            use super::*;
            $(#[test] fn $name() {
                let body: fn(&mut dyn Bench) = $body;
                body(&mut InMemory(MemoryDisk::new(memory::Sync::Always)));
            })*
        }
    };
}

claims! {
    an_unknown_group_is_empty: |bench| {
        let store = bench.store();
        assert_eq!(store.open_group(G).unwrap(), GroupState::default());
        assert_eq!(store.groups().unwrap(), vec![]);
        assert_eq!(store.read(G, 0, 10, ALL).unwrap(), vec![]);
        assert_eq!(store.checkpoint(G, 0).unwrap(), None);
        assert_eq!(store.get(G, b"k").unwrap(), None);
        assert_eq!(store.size_on_disk(G), 0);
        store.flush().unwrap();
    };

    entries_are_read_back_in_memory_on_disk_and_after_reopening: |bench| {
        let written: Vec<_> = (0..300)
            .map(|index| entry(index, 1 + index / 100, usize::try_from(index * 7 % 1500).unwrap()))
            .collect();
        for some in written.chunks(13) {
            append(bench.store(), G, some);
            let last = some.last().unwrap();
            let tail = bench.store().read_tail(G, last.index, last.index + 1, ALL).unwrap();
            assert_eq!(tail, std::slice::from_ref(last), "at once");
        }
        for _ in 0..2 {
            let store = bench.store();
            assert_eq!(store.read(G, 0, 1_000, ALL).unwrap(), written);
            assert_eq!(store.read(G, 17, 230, ALL).unwrap(), written[17..230]);
            assert_eq!(store.read(G, 300, 400, ALL).unwrap(), vec![]);
            assert_eq!(store.read(G, 5, 5, ALL).unwrap(), vec![]);
            let state = store.open_group(G).unwrap();
            assert_eq!(state.last, Some((299, 3)));
            let starts = [(1, 0), (2, 100), (3, 200)];
            assert_eq!(state.term_starts, starts.map(|(term, index)| TermStart { term, index }));
            let bytes: usize = written.iter().map(|entry| entry.payload.len()).sum();
            assert_eq!(store.size_on_disk(G), bytes as u64);
            bench.reopen();
        }
    };

    a_read_is_bounded_but_gives_at_least_one_entry: |bench| {
        append(bench.store(), G, &entries(0..100, 1, 1_000));
        for _ in 0..2 {
            let store = bench.store();
            let count = |from, bytes_max| store.read(G, from, 100, bytes_max).unwrap().len();
            assert_eq!(count(0, 0), 1);
            assert_eq!(count(0, 2 * 1_064), 2);
            assert_eq!(count(0, 3 * 1_064 - 1), 2);
            assert_eq!(count(90, 64 * 1_064), 10);
            bench.reopen();
        }
    };

    completions_of_a_group_come_in_order: |bench| {
        let (sender, receiver) = std::sync::mpsc::channel();
        for index in 0..500 {
            let sender = sender.clone();
            let done = Box::new(move |result: std::io::Result<()>| {
                result.unwrap();
                sender.send(index).unwrap();
            });
            bench.store().submit(G, Write::Append(vec![entry(index, 1, 100)]), Some(done));
        }
        bench.store().flush().unwrap();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
    };

    a_truncated_end_is_forgotten_and_can_be_written_again: |bench| {
        let store = bench.store();
        append(store, G, &entries(0..50, 1, 600));
        append(store, G, &entries(50..60, 2, 600));
        store.flush().unwrap();
        store.submit(G, Write::Truncate { last: Some(39) }, None);
        assert_eq!(store.read(G, 35, 60, ALL).unwrap(), entries(35..40, 1, 600));
        assert_eq!(store.size_on_disk(G), 40 * 600);
        append(store, G, &entries(40..45, 3, 700));
        let mut expected = entries(0..40, 1, 600);
        expected.extend(entries(40..45, 3, 700));
        for _ in 0..2 {
            let store = bench.store();
            assert_eq!(store.read(G, 0, 60, ALL).unwrap(), expected);
            assert_eq!(store.size_on_disk(G), 40 * 600 + 5 * 700);
            let state = store.open_group(G).unwrap();
            assert_eq!(state.last, Some((44, 3)));
            let starts = [TermStart { term: 1, index: 0 }, TermStart { term: 3, index: 40 }];
            assert_eq!(state.term_starts, starts);
            bench.reopen();
        }
        let store = bench.store();
        store.submit(G, Write::Truncate { last: Some(44) }, None);
        assert_eq!(store.open_group(G).unwrap().last, Some((44, 3)), "nothing to forget");
        store.submit(G, Write::Truncate { last: None }, None);
        assert_eq!(store.open_group(G).unwrap(), GroupState::default());
        append(store, G, &entries(0..2, 4, 10));
        assert_eq!(store.read(G, 0, 60, ALL).unwrap(), entries(0..2, 4, 10));
        assert_eq!(store.size_on_disk(G), 20);
    };

    a_purged_start_is_forgotten: |bench| {
        let store = bench.store();
        append(store, G, &entries(0..20, 1, 600));
        append(store, G, &entries(20..40, 2, 600));
        append(store, G, &entries(40..60, 5, 600));
        for index in [5, 25, 35] {
            store.submit(G, Write::Checkpoint { checkpoint: checkpoint(index, 1), keep: vec![5, 25] }, None);
        }
        store.submit(G, Write::Purge { index: 25, term: 2 }, None);
        for _ in 0..2 {
            let store = bench.store();
            let state = store.open_group(G).unwrap();
            assert_eq!(state.purged, Some((25, 2)));
            assert_eq!(state.last, Some((59, 5)));
            let starts = [TermStart { term: 2, index: 26 }, TermStart { term: 5, index: 40 }];
            assert_eq!(state.term_starts, starts);
            assert_eq!(state.checkpoints, [25, 35]);
            assert_eq!(store.checkpoint(G, 5).unwrap(), None);
            assert_eq!(store.checkpoint(G, 25).unwrap(), Some(checkpoint(25, 1)));
            assert_eq!(store.read(G, 25, 60, ALL).unwrap(), vec![]);
            assert_eq!(store.read_tail(G, 25, 60, ALL), None);
            assert_eq!(store.read(G, 26, 30, ALL).unwrap(), entries(26..30, 2, 600));
            assert_eq!(store.size_on_disk(G), 34 * 600);
            bench.reopen();
        }
        bench.store().submit(G, Write::Purge { index: 3, term: 1 }, None);
        assert_eq!(bench.store().open_group(G).unwrap().purged, Some((25, 2)), "never back");
        bench.store().submit(G, Write::Truncate { last: None }, None);
        assert_eq!(bench.store().open_group(G).unwrap().last, Some((25, 2)));
    };

    a_purge_beyond_the_end_moves_the_log_forward: |bench| {
        append(bench.store(), G, &entries(0..10, 1, 100));
        bench.store().submit(G, Write::Purge { index: 99, term: 4 }, None);
        for _ in 0..2 {
            let state = bench.store().open_group(G).unwrap();
            let purged = Some((99, 4));
            assert_eq!(state, GroupState { purged, last: purged, ..GroupState::default() });
            assert_eq!(bench.store().size_on_disk(G), 0);
            bench.reopen();
        }
        append(bench.store(), G, &entries(100..103, 4, 100));
        for _ in 0..2 {
            let state = bench.store().open_group(G).unwrap();
            assert_eq!(state.last, Some((102, 4)));
            assert_eq!(state.term_starts, [TermStart { term: 4, index: 100 }]);
            assert_eq!(bench.store().read(G, 100, 200, ALL).unwrap(), entries(100..103, 4, 100));
            assert_eq!(bench.store().size_on_disk(G), 300);
            bench.reopen();
        }
    };

    the_newest_vote_is_kept: |bench| {
        for vote in ["one", "two"] {
            bench.store().submit(G, Write::Vote(Bytes::from(vote)), None);
            assert_eq!(bench.store().open_group(G).unwrap().vote, Some(Bytes::from(vote)));
        }
        bench.reopen();
        assert_eq!(bench.store().open_group(G).unwrap().vote, Some(Bytes::from("two")));
        assert_eq!(bench.store().groups().unwrap(), vec![G]);
    };

    older_checkpoints_go_unless_they_are_kept: |bench| {
        let keep = |store: &dyn LogStore, index, keep: &[u64]| store.submit(
            G, Write::Checkpoint { checkpoint: checkpoint(index, 1), keep: keep.to_vec() }, None,
        );
        append(bench.store(), G, &entries(0..10, 1, 10));
        keep(bench.store(), 2, &[]);
        keep(bench.store(), 4, &[2]);
        keep(bench.store(), 6, &[2]);
        for _ in 0..2 {
            let store = bench.store();
            assert_eq!(store.open_group(G).unwrap().checkpoints, [2, 6]);
            assert_eq!(store.checkpoint(G, 4).unwrap(), None);
            assert_eq!(store.checkpoint(G, 6).unwrap(), Some(checkpoint(6, 1)));
            bench.reopen();
        }
    };

    a_groups_own_keys_are_its_own: |bench| {
        let put = |store: &dyn LogStore, group, pairs: &[(&'static str, Option<&'static str>)]| {
            let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
            let pairs = pairs.iter().map(|(key, value)| (bytes(key), value.map(bytes))).collect();
            store.submit(group, Write::Keys(pairs), None);
        };
        let (before, after) = (GroupId(G.0 - 1), GroupId(G.0 + 1));
        put(bench.store(), before, &[("z", Some("before"))]);
        put(bench.store(), after, &[("", Some("after"))]);
        put(bench.store(), G, &[("a1", Some("1")), ("a3", Some("3")), ("b", Some("4")), ("c", Some("5"))]);
        put(bench.store(), G, &[("c", None), ("b", Some("6"))]);
        for _ in 0..2 {
            let store = bench.store();
            let pair = |key: &str, value: &str| (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
            assert_eq!(store.get(G, b"b").unwrap(), Some(Bytes::from("6")));
            assert_eq!(store.get(G, b"c").unwrap(), None);
            assert_eq!(store.get(G, b"z").unwrap(), None);
            assert_eq!(store.get_at_or_before(G, b"a", b"a2").unwrap(), Some(pair("a1", "1")));
            assert_eq!(store.get_at_or_before(G, b"a", b"a3").unwrap(), Some(pair("a3", "3")));
            assert_eq!(store.get_at_or_before(G, b"a", b"a").unwrap(), None);
            assert_eq!(store.get_at_or_before(G, b"x", b"xx").unwrap(), None);
            assert_eq!(store.get_at_or_before(G, b"", b"zz").unwrap(), Some(pair("b", "6")));
            let all = store.scan(G, b"", b"zz", 10).unwrap();
            assert_eq!(all, [pair("a1", "1"), pair("a3", "3"), pair("b", "6")]);
            assert_eq!(store.scan(G, b"a2", b"b", 10).unwrap(), [pair("a3", "3")]);
            assert_eq!(store.scan(G, b"", b"zz", 1).unwrap().len(), 1);
            assert_eq!(store.scan(G, b"b", b"a", 1).unwrap(), []);
            assert_eq!(store.groups().unwrap(), [before, G, after]);
            bench.reopen();
        }
    };

    a_dropped_group_is_as_if_it_never_was: |bench| {
        let neighbours = [GroupId(G.0 - 1), GroupId(G.0 + 1)];
        for group in [neighbours[0], G, neighbours[1]] {
            append(bench.store(), group, &entries(0..20, 1, 600));
            bench.store().submit(group, Write::Vote(Bytes::from("v")), None);
            bench.store().submit(group, Write::Keys(vec![(Bytes::from("k"), Some(Bytes::from("v")))]), None);
            bench.store().submit(group, Write::Checkpoint { checkpoint: checkpoint(3, 1), keep: vec![] }, None);
        }
        let (done, receiver) = done();
        bench.store().submit(G, Write::Drop, done);
        assert_eq!(bench.store().open_group(G).unwrap(), GroupState::default());
        receiver.recv().unwrap().unwrap();
        for _ in 0..2 {
            let store = bench.store();
            assert_eq!(store.open_group(G).unwrap(), GroupState::default());
            assert_eq!(store.read(G, 0, 20, ALL).unwrap(), vec![]);
            assert_eq!(store.get(G, b"k").unwrap(), None);
            assert_eq!(store.checkpoint(G, 3).unwrap(), None);
            assert_eq!(store.groups().unwrap(), neighbours);
            for group in neighbours {
                assert_eq!(store.read(group, 0, 20, ALL).unwrap(), entries(0..20, 1, 600));
            }
            bench.reopen();
        }
    };

    a_damaged_payload_is_never_served_from_disk: |bench| {
        let mut damaged = entry(1, 1, 900);
        damaged.checksum ^= 1;
        append(bench.store(), G, &[entry(0, 1, 900), damaged]);
        bench.reopen();
        assert_eq!(bench.store().read(G, 0, 5, ALL).unwrap(), [entry(0, 1, 900)]);
        let error = bench.store().read(G, 1, 5, ALL).unwrap_err();
        assert!(matches!(error, drave_storage::StorageError::Corrupt { index: 1, .. }), "{error}");
    };

    a_repair_writes_again_only_what_is_held_in_its_term: |bench| {
        append(bench.store(), G, &entries(0..6, 1, 900));
        bench.store().submit(G, Write::Purge { index: 1, term: 1 }, None);
        bench.store().submit(G, Write::Truncate { last: Some(4) }, None);
        bench.reopen();
        let (done, receiver) = done();
        let mut offered = entries(0..8, 1, 900);
        offered[3] = entry(3, 2, 900);
        bench.store().submit(G, Write::Repair(offered), done);
        receiver.recv().unwrap().unwrap();
        for _ in 0..2 {
            assert_eq!(bench.store().read(G, 2, 20, ALL).unwrap(), entries(2..5, 1, 900));
            assert_eq!(bench.store().read(G, 0, 20, ALL).unwrap(), []);
            assert_eq!(bench.store().open_group(G).unwrap().last, Some((4, 1)));
            bench.reopen();
        }
    };
}
