//! Whatever bytes the disk holds, the decoders of this crate come to a verdict.

#[path = "../../tests/corpus/mod.rs"]
mod corpus;

use std::fs;
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;

use crate::keys::{self, EntryKey};
use crate::log::{Entry, GroupId, GroupState};
use crate::watermark::Watermark;
use crate::{DataDirectory, watermark};

/// What is let pass is reckoned with, as the loading of a group does.
fn judge_keys(bytes: &[u8]) {
    if let Some(key) = EntryKey::decode(bytes) {
        let state = GroupState {
            last: Some((key.index, key.term)),
            ..GroupState::default()
        };
        keys::entry_bound(key.group, state.next_index() + 1);
        assert!(key.end.checked_add(u64::from(u32::MAX)).is_some());
    }
    if let Some(purged) = keys::decode_purged(bytes) {
        let state = GroupState {
            purged: Some(purged),
            ..GroupState::default()
        };
        keys::entry_bound(GroupId(1), state.first_index() + 1);
    }
    keys::number_of(bytes);
    keys::group_of(bytes);
    keys::decode_checkpoint(bytes);
    keys::decode_term_start(bytes, bytes);
}

fn entry_key() -> [u8; keys::ENTRY_KEY_BYTES] {
    let entry = Entry {
        index: 5,
        term: 3,
        tag: 16,
        stamp: 9,
        checksum: 1,
        payload: Bytes::from_static(b"records"),
    };
    EntryKey::of(GroupId(1024), &entry, 700).encode()
}

/// Writes the file into an empty data directory and opens that.
fn open_with(identity: &[u8]) -> Result<u32, String> {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("identity.json"), identity).expect("written");
    DataDirectory::open_or_format(directory.path(), 1)
        .map(|directory| directory.broker_id())
        .map_err(|error| error.to_string())
}

static IDENTITY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    drop(DataDirectory::open_or_format(directory.path(), 1).expect("formatted"));
    fs::read(directory.path().join("identity.json")).expect("an identity")
});

fn mark(sequence: u64) -> Watermark {
    Watermark {
        sequence,
        ..Watermark::default()
    }
}

/// A watermark that was written twice.
static WATERMARK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("synced");
    for sequence in [7, 9] {
        watermark::write(&path, mark(sequence)).expect("written");
    }
    fs::read(&path).expect("a watermark")
});

#[test]
fn what_did_harm_once_does_none() {
    for (name, bytes) in corpus::known("entry_key") {
        println!("{name}");
        judge_keys(&bytes);
        assert_eq!(EntryKey::decode(&bytes), None, "{name}");
    }
    for (name, bytes) in corpus::known("purge") {
        println!("{name}");
        judge_keys(&bytes);
        assert_eq!(keys::decode_purged(&bytes), None, "{name}");
    }
}

proptest! {
    #![proptest_config(corpus::config(5_000))]

    #[test]
    fn keys_and_values_of_noise_are_judged_without_panic(bytes in corpus::noise(64)) {
        judge_keys(&bytes);
    }

    #[test]
    fn edited_keys_and_values_are_judged_without_panic(edits in corpus::edits()) {
        for good in [
            &entry_key()[..],
            &keys::purged_value(5, 3),
            &keys::checkpoint_value(3, b"state"),
            &keys::numbered(GroupId(1024), keys::Kind::TermStart, 3),
        ] {
            judge_keys(&corpus::edited(good, &edits));
        }
    }
}

proptest! {
    #![proptest_config(corpus::config(60))]

    #[test]
    fn an_edited_identity_opens_as_this_broker_or_is_refused(edits in corpus::edits()) {
        if let Ok(broker) = open_with(&corpus::edited(&IDENTITY, &edits)) {
            prop_assert_eq!(broker, 1);
        }
    }

    #[test]
    fn an_identity_of_noise_is_refused(bytes in corpus::noise(100)) {
        prop_assert!(open_with(&bytes).is_err());
    }

    #[test]
    fn an_edited_watermark_is_one_that_was_written_or_none(edits in corpus::edits()) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("synced");
        fs::write(&path, corpus::edited(&WATERMARK, &edits)).expect("written");
        // A file that is cut is an error; one that is read gives what its checksum vouches for.
        if let Ok(Some(found)) = watermark::read(&path) {
            prop_assert!([mark(7), mark(9)].contains(&found));
        }
    }
}
