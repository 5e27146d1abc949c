//! Every persisted key and value layout of the store.
//!
//! All integers are big-endian, so that RocksDB's byte order is numeric order.
//! The head of an entry is part of its key: the value is the payload verbatim,
//! copied once into the write batch, and heads can be read without payloads.
//! The price: an index must be deleted before another term writes it.
//! Layouts are fixed by golden-bytes tests; a change needs a new [`FORMAT_VERSION`].

use crate::log::{Entry, GroupId, TermStart};

/// Version of everything in this file.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Where the version is kept, in the default column family.
pub(crate) const FORMAT_KEY: &[u8] = b"format";

/// Column family of the entries.
pub(crate) const LOG: &str = "log";
/// Column family of everything else.
pub(crate) const STATE: &str = "state";

/// The highest index there is: it has a next one, which bounds can name.
pub(crate) const INDEX_MAX: u64 = u64::MAX - 2;
/// More payload bytes than a log ever has; so many more can be added.
pub(crate) const END_MAX: u64 = u64::MAX / 2;

/// group, index, term, tag, stamp, checksum, end.
pub(crate) const ENTRY_KEY_BYTES: usize = 8 + 8 + 8 + 1 + 8 + 4 + 8;

/// Kinds of records in the state column family. Persisted: never reuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The vote record, opaque.
    Vote = 1,
    /// Index and term of the last purged entry.
    Purged = 2,
    /// By term: the index of its first entry.
    TermStart = 3,
    /// By index: term and bytes of a checkpoint.
    Checkpoint = 4,
    /// The group's own key space.
    Own = 5,
}

/// What the key of an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryKey {
    pub(crate) group: GroupId,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) tag: u8,
    pub(crate) stamp: i64,
    pub(crate) checksum: u32,
    /// Payload bytes of this log up to the end of this entry, purged ones too.
    pub(crate) end: u64,
}

impl EntryKey {
    pub(crate) fn of(group: GroupId, entry: &Entry, end: u64) -> EntryKey {
        EntryKey {
            group,
            index: entry.index,
            term: entry.term,
            tag: entry.tag,
            stamp: entry.stamp,
            checksum: entry.checksum,
            end,
        }
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY_KEY_BYTES] {
        let mut key = [0; ENTRY_KEY_BYTES];
        key[..8].copy_from_slice(&self.group.0.to_be_bytes());
        key[8..16].copy_from_slice(&self.index.to_be_bytes());
        key[16..24].copy_from_slice(&self.term.to_be_bytes());
        key[24] = self.tag;
        key[25..33].copy_from_slice(&self.stamp.to_be_bytes());
        key[33..37].copy_from_slice(&self.checksum.to_be_bytes());
        key[37..45].copy_from_slice(&self.end.to_be_bytes());
        key
    }

    pub(crate) fn decode(key: &[u8]) -> Option<EntryKey> {
        let key: &[u8; ENTRY_KEY_BYTES] = key.try_into().ok()?;
        let decoded = EntryKey {
            group: GroupId(u64_at(key, 0)?),
            index: u64_at(key, 8)?,
            term: u64_at(key, 16)?,
            tag: key[24],
            stamp: u64_at(key, 25)?.cast_signed(),
            checksum: u32::from_be_bytes(key[33..37].try_into().ok()?),
            end: u64_at(key, 37)?,
        };
        (decoded.index <= INDEX_MAX && decoded.end <= END_MAX).then_some(decoded)
    }
}

/// Before every entry of the group with at least this index, after all others.
pub(crate) fn entry_bound(group: GroupId, index: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8..].copy_from_slice(&index.to_be_bytes());
    key
}

/// After every entry of the group: the last index is never written.
pub(crate) fn entries_end(group: GroupId) -> [u8; 16] {
    entry_bound(group, u64::MAX)
}

/// Before every state record of this kind.
pub(crate) fn kind_start(group: GroupId, kind: Kind) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8] = kind as u8;
    key
}

/// After every state record of this kind.
pub(crate) fn kind_end(group: GroupId, kind: Kind) -> [u8; 9] {
    let mut key = kind_start(group, kind);
    key[8] += 1;
    key
}

/// Before every state record of the group.
pub(crate) fn state_start(group: GroupId) -> [u8; 9] {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key
}

/// After every state record of the group.
pub(crate) fn state_end(group: GroupId) -> [u8; 9] {
    let mut key = state_start(group);
    key[8] = u8::MAX;
    key
}

/// The key of a record that there is many of, by term or by index.
pub(crate) fn numbered(group: GroupId, kind: Kind, number: u64) -> [u8; 17] {
    let mut key = [0; 17];
    key[..9].copy_from_slice(&kind_start(group, kind));
    key[9..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The number in such a key.
pub(crate) fn number_of(key: &[u8]) -> Option<u64> {
    let number = (key.len() == 17).then(|| u64_at(key, 9)).flatten();
    number.filter(|number| *number <= INDEX_MAX)
}

/// The group of any state key.
pub(crate) fn group_of(key: &[u8]) -> Option<GroupId> {
    u64_at(key, 0).map(GroupId)
}

/// A key of the group's own key space.
pub(crate) fn own(group: GroupId, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + key.len());
    bytes.extend_from_slice(&kind_start(group, Kind::Own));
    bytes.extend_from_slice(key);
    bytes
}

pub(crate) fn purged_value(index: u64, term: u64) -> [u8; 16] {
    let mut value = [0; 16];
    value[..8].copy_from_slice(&index.to_be_bytes());
    value[8..].copy_from_slice(&term.to_be_bytes());
    value
}

pub(crate) fn decode_purged(value: &[u8]) -> Option<(u64, u64)> {
    (value.len() == 16).then_some(())?;
    let index = u64_at(value, 0).filter(|index| *index <= INDEX_MAX)?;
    Some((index, u64_at(value, 8)?))
}

pub(crate) fn decode_term_start(key: &[u8], value: &[u8]) -> Option<TermStart> {
    (value.len() == 8).then_some(())?;
    Some(TermStart {
        term: number_of(key)?,
        index: u64_at(value, 0)?,
    })
}

pub(crate) fn checkpoint_value(term: u64, bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(8 + bytes.len());
    value.extend_from_slice(&term.to_be_bytes());
    value.extend_from_slice(bytes);
    value
}

pub(crate) fn decode_checkpoint(value: &[u8]) -> Option<(u64, &[u8])> {
    Some((u64_at(value, 0)?, &value[8..]))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const G: GroupId = GroupId(0x0102_0304_0506_0708);

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn key_and_value_layouts_are_golden() {
        let entry = Entry {
            index: 0x11,
            term: 0x22,
            tag: 0x33,
            stamp: -2,
            checksum: 0xdead_beef,
            payload: Bytes::from_static(b"x"),
        };
        assert_eq!(
            hex(&EntryKey::of(G, &entry, 0x44).encode()),
            "0102030405060708\
             0000000000000011\
             0000000000000022\
             33\
             fffffffffffffffe\
             deadbeef\
             0000000000000044"
        );
        assert_eq!(hex(&entry_bound(G, 5)), "01020304050607080000000000000005");
        assert_eq!(hex(&entries_end(G)), "0102030405060708ffffffffffffffff");
        assert_eq!(hex(&kind_start(G, Kind::Vote)), "010203040506070801");
        assert_eq!(hex(&kind_start(G, Kind::Purged)), "010203040506070802");
        assert_eq!(
            hex(&numbered(G, Kind::TermStart, 7)),
            "0102030405060708030000000000000007"
        );
        assert_eq!(
            hex(&numbered(G, Kind::Checkpoint, 7)),
            "0102030405060708040000000000000007"
        );
        assert_eq!(hex(&own(G, b"ab")), "0102030405060708056162");
        assert_eq!(hex(&purged_value(1, 2)), "00000000000000010000000000000002");
        assert_eq!(hex(&checkpoint_value(3, b"s")), "000000000000000373");
        assert_eq!(FORMAT_VERSION, 1, "a new layout needs new golden bytes");
    }

    #[test]
    fn bounds_enclose_a_group_and_nothing_of_its_neighbours() {
        for kind in [
            Kind::Vote,
            Kind::Purged,
            Kind::TermStart,
            Kind::Checkpoint,
            Kind::Own,
        ] {
            let key = numbered(G, kind, u64::MAX);
            assert!(key[..] >= state_start(G)[..] && key[..] < state_end(G)[..]);
            assert!(key[..] >= kind_start(G, kind)[..] && key[..] < kind_end(G, kind)[..]);
        }
        assert!(state_end(G)[..] < state_start(GroupId(G.0 + 1))[..]);
        assert!(entries_end(G)[..] < entry_bound(GroupId(G.0 + 1), 0)[..]);
    }

    proptest! {
        #[test]
        fn entry_keys_decode_to_what_was_encoded(
            group: u64, index in 0..=INDEX_MAX, term: u64, tag: u8, stamp: i64, checksum: u32,
            end in 0..=END_MAX,
        ) {
            let key = EntryKey { group: GroupId(group), index, term, tag, stamp, checksum, end };
            prop_assert_eq!(EntryKey::decode(&key.encode()), Some(key));
        }

        #[test]
        fn entries_sort_by_index(a: u64, b: u64, term_a: u64, term_b: u64) {
            prop_assume!(a != b);
            let key = |index, term| EntryKey {
                group: G, index, term, tag: 0, stamp: 0, checksum: 0, end: 0,
            }.encode();
            prop_assert_eq!(a < b, key(a, term_a) < key(b, term_b));
        }
    }
}
