//! What groups say to each other: headers in bincode, payloads as they are.
//!
//! The layouts here are part of the peer protocol, whose version the transport's
//! handshake compares. Field and variant order is part of the format.

use bytes::{Bytes, BytesMut};
use drave_storage::Entry;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::Types;
use crate::entry::{EntryId, LogEntry, TAG_MEMBERSHIP, decode_membership, entry_id};
use crate::transport::Message;
use crate::types::ReplicaId;

/// Kinds of messages. Below 16: small, overtake bulk data in the transport.
pub(crate) mod kind {
    /// Would you vote for me?
    pub(crate) const PRE_VOTE: u8 = 1;
    /// Vote for me.
    pub(crate) const VOTE: u8 = 2;
    /// The leader hands over.
    pub(crate) const TRANSFER: u8 = 3;
    /// What the sender leads.
    pub(crate) const LEADS: u8 = 4;
    /// A call to a service of the node.
    pub(crate) const CALL: u8 = 5;
    /// Entries of a log, or none: confirms leadership or the commit.
    pub(crate) const APPEND: u8 = 16;
    /// A checkpoint that replaces a log's beginning.
    pub(crate) const SNAPSHOT: u8 = 17;
    /// Entries that are damaged where they are asked for.
    pub(crate) const ENTRIES: u8 = 18;
}

/// Headers above this size are refused.
const HEADER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Encodes a header or a small record.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let config = bincode::config::standard();
    bincode::serde::encode_to_vec(value, config)
        .expect("encoding plain structs into memory can't fail")
        .into()
}

/// Decodes what [`encode`] made.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let config = bincode::config::standard().with_limit::<HEADER_BYTES_MAX>();
    match bincode::serde::decode_from_slice(bytes, config) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(format!("{} bytes too many", bytes.len() - used)),
        Err(error) => Err(error.to_string()),
    }
}

/// The highest term and the highest index that are taken from a peer or from
/// the disk: of every one that is counted on, the next one exists.
const NUMBER_MAX: u64 = u64::MAX / 2;

/// A term or an index.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        number @ 0..=NUMBER_MAX => Ok(number),
        number => Err(D::Error::custom(format_args!(
            "{number} is neither a term nor an index"
        ))),
    }
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRecord {
    #[serde(deserialize_with = "number")]
    pub(crate) term: u64,
    pub(crate) replica: ReplicaId,
    pub(crate) committed: bool,
}

/// openraft's vote.
pub(crate) type RaftVote = openraft::type_config::alias::VoteOf<Types>;

impl From<&RaftVote> for VoteRecord {
    fn from(vote: &RaftVote) -> Self {
        VoteRecord {
            term: vote.leader_id.term,
            replica: vote.leader_id.voted_for,
            committed: vote.committed,
        }
    }
}

impl From<VoteRecord> for RaftVote {
    fn from(record: VoteRecord) -> Self {
        if record.committed {
            RaftVote::new_committed(record.term, record.replica)
        } else {
            RaftVote::new(record.term, record.replica)
        }
    }
}

/// The persisted form of a vote: a version, then the record.
pub(crate) fn encode_vote(vote: &RaftVote) -> Bytes {
    encode(&(VOTE_VERSION, VoteRecord::from(vote)))
}

/// Reads what [`encode_vote`] wrote.
pub(crate) fn decode_vote(bytes: &[u8]) -> Result<RaftVote, String> {
    let (version, record): (u8, VoteRecord) = decode(bytes)?;
    if version != VOTE_VERSION {
        return Err(format!("vote record version {version} is unknown"));
    }
    Ok(record.into())
}

const VOTE_VERSION: u8 = 1;

/// Term and index of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdRecord {
    #[serde(deserialize_with = "number")]
    term: u64,
    #[serde(deserialize_with = "number")]
    index: u64,
}

/// From openraft's form.
pub(crate) fn id_record(id: &EntryId) -> IdRecord {
    IdRecord {
        term: id.committed_leader_id().term,
        index: id.index(),
    }
}

/// To openraft's form.
pub(crate) fn id_from(record: IdRecord) -> EntryId {
    entry_id(record.term, record.index)
}

#[derive(Debug, Serialize, Deserialize)]
struct EntryHead {
    #[serde(deserialize_with = "number")]
    index: u64,
    #[serde(deserialize_with = "number")]
    term: u64,
    tag: u8,
    stamp: i64,
    checksum: u32,
    payload_bytes: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct AppendHeader {
    /// Directory id of the replica this is for: a wiped one is another replica.
    to: u128,
    vote: VoteRecord,
    previous: Option<IdRecord>,
    commit: Option<IdRecord>,
    entries: Vec<EntryHead>,
}

/// The heads of entries, and their payloads, which are not copied.
fn parted<'a>(entries: impl ExactSizeIterator<Item = &'a Entry>) -> (Vec<EntryHead>, Vec<Bytes>) {
    let mut heads = Vec::with_capacity(entries.len());
    let mut payload = Vec::with_capacity(entries.len());
    for entry in entries {
        heads.push(EntryHead {
            index: entry.index,
            term: entry.term,
            tag: entry.tag,
            stamp: entry.stamp,
            checksum: entry.checksum,
            payload_bytes: entry.payload.len() as u32,
        });
        if !entry.payload.is_empty() {
            payload.push(entry.payload.clone());
        }
    }
    (heads, payload)
}

/// Puts entries together again. They follow `before` and each other, their
/// payloads have the checksums that the heads say, and those that change the
/// membership can be read.
fn joined_entries(
    heads: Vec<EntryHead>,
    payload: &[Bytes],
    mut before: Option<IdRecord>,
) -> Result<Vec<Entry>, String> {
    let mut rest = joined(payload);
    let mut entries = Vec::with_capacity(heads.len().min(4_096));
    for head in heads {
        let (index_next, term_min) = before.map_or((0, 0), |id| (id.index + 1, id.term));
        if head.index != index_next || head.term < term_min {
            return Err(format!(
                "entry {} of term {} does not follow the one before",
                head.index, head.term
            ));
        }
        before = Some(IdRecord {
            term: head.term,
            index: head.index,
        });
        let length = head.payload_bytes as usize;
        if length > rest.len() {
            return Err(format!("entry {} is cut short", head.index));
        }
        let payload = rest.split_to(length);
        if crc32c::crc32c(&payload) != head.checksum {
            return Err(format!(
                "entry {} arrived with a wrong checksum",
                head.index
            ));
        }
        if head.tag == TAG_MEMBERSHIP {
            decode_membership(&payload)?;
        }
        entries.push(Entry {
            index: head.index,
            term: head.term,
            tag: head.tag,
            stamp: head.stamp,
            checksum: head.checksum,
            payload,
        });
    }
    Ok(entries)
}

/// openraft's append.
pub(crate) type Append = openraft::raft::AppendEntriesRequest<Types>;

/// Encodes an append; payloads are handed over, not copied.
pub(crate) fn encode_append(group: u64, to: ReplicaId, append: Append) -> Message {
    let (entries, payload) = parted(append.entries.iter().map(LogEntry::stored));
    let header = AppendHeader {
        to: to.directory,
        vote: VoteRecord::from(&append.vote),
        previous: append.prev_log_id.as_ref().map(id_record),
        commit: append.leader_commit.as_ref().map(id_record),
        entries,
    };
    Message {
        kind: kind::APPEND,
        group,
        header: encode(&header),
        payload,
    }
}

/// Decodes an append; every payload is a slice of the message, or a copy of its
/// own where it is small and would pin a big message in memory. The entries of
/// what is returned can be stored: they follow the previous one and each other,
/// and those that change the membership can be read.
pub(crate) fn decode_append(message: &Message) -> Result<(u128, Append), String> {
    let header: AppendHeader = decode(&message.header)?;
    let entries = joined_entries(header.entries, &message.payload, header.previous)?;
    let append = Append {
        vote: header.vote.into(),
        prev_log_id: header.previous.map(id_from),
        entries: entries.into_iter().map(LogEntry::from).collect(),
        leader_commit: header.commit.map(id_from),
    };
    Ok((header.to, append))
}

const ENTRIES_VERSION: u8 = 1;

/// Asks for entries of `from..to`; fewer may come.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EntriesHeader {
    version: u8,
    #[serde(deserialize_with = "number")]
    pub(crate) from: u64,
    #[serde(deserialize_with = "number")]
    pub(crate) to: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct EntriesReply {
    version: u8,
    entries: Vec<EntryHead>,
}

/// Encodes the question for entries.
pub(crate) fn encode_entries_wanted(group: u64, from: u64, to: u64) -> Message {
    let header = EntriesHeader {
        version: ENTRIES_VERSION,
        from,
        to,
    };
    Message {
        kind: kind::ENTRIES,
        group,
        header: encode(&header),
        payload: Vec::new(),
    }
}

/// Decodes the question for entries.
pub(crate) fn decode_entries_wanted(message: &Message) -> Result<EntriesHeader, String> {
    let header: EntriesHeader = decode(&message.header)?;
    match header.version {
        ENTRIES_VERSION => Ok(header),
        version => Err(format!("question for entries in version {version}")),
    }
}

/// Encodes the answer; payloads are handed over, not copied.
pub(crate) fn encode_entries(group: u64, entries: &[Entry]) -> Message {
    let (entries, payload) = parted(entries.iter());
    let header = EntriesReply {
        version: ENTRIES_VERSION,
        entries,
    };
    Message {
        kind: kind::ENTRIES,
        group,
        header: encode(&header),
        payload,
    }
}

/// Decodes the answer: sound entries without a hole, the first one at `from`.
pub(crate) fn decode_entries(message: &Message, from: u64) -> Result<Vec<Entry>, String> {
    let reply: EntriesReply = decode(&message.header)?;
    if reply.version != ENTRIES_VERSION {
        return Err(format!("entries in version {}", reply.version));
    }
    let before = from.checked_sub(1).map(|index| IdRecord { term: 0, index });
    joined_entries(reply.entries, &message.payload, before)
}

/// The payload of a received message, which is one slice unless made locally.
pub(crate) fn joined(payload: &[Bytes]) -> Bytes {
    match payload {
        [] => Bytes::new(),
        [one] => one.clone(),
        many => {
            let mut joined = BytesMut::with_capacity(many.iter().map(Bytes::len).sum());
            for part in many {
                joined.extend_from_slice(part);
            }
            joined.freeze()
        }
    }
}

/// How an append went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppendReply {
    /// Stored up to here.
    Stored(Option<IdRecord>),
    /// The previous entry does not match.
    Conflict(IdRecord),
    /// A newer leader or candidate is known.
    HigherVote(VoteRecord),
}

/// A vote or pre-vote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteHeader {
    pub(crate) to: u128,
    pub(crate) vote: VoteRecord,
    pub(crate) last: Option<IdRecord>,
    pub(crate) transfer: bool,
}

/// The answer to a vote or pre-vote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteReply {
    pub(crate) vote: VoteRecord,
    pub(crate) granted: bool,
    pub(crate) last: Option<IdRecord>,
}

/// A leader hands over to one of its followers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransferHeader {
    pub(crate) from: VoteRecord,
    pub(crate) to: ReplicaId,
    pub(crate) last: Option<IdRecord>,
}

/// A checkpoint on its way to a replica that lacks entries which are purged.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) to: u128,
    pub(crate) vote: VoteRecord,
    pub(crate) last: Option<IdRecord>,
    pub(crate) membership_at: Option<IdRecord>,
    pub(crate) membership: Vec<u8>,
}

/// Groups that the sender leads, with their terms.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Leads {
    pub(crate) groups: Vec<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica() -> ReplicaId {
        ReplicaId {
            broker: 2,
            directory: 7,
        }
    }

    #[test]
    fn a_vote_record_keeps_its_bytes() {
        let vote = RaftVote::new_committed(300, replica());
        let bytes = encode_vote(&vote);
        assert_eq!(bytes.as_ref(), [1, 251, 44, 1, 2, 7, 1]);
        assert_eq!(decode_vote(&bytes), Ok(vote));
    }

    #[test]
    fn an_append_survives_the_wire() {
        let payload = Bytes::from_static(b"records");
        let entry = Entry {
            index: 5,
            term: 3,
            tag: 16,
            stamp: 9,
            checksum: crc32c::crc32c(&payload),
            payload,
        };
        let append = Append {
            vote: RaftVote::new_committed(3, replica()),
            prev_log_id: Some(entry_id(2, 4)),
            entries: vec![
                LogEntry::from(entry.clone()),
                LogEntry::from(Entry { index: 6, ..entry }),
            ],
            leader_commit: None,
        };
        let message = encode_append(9, replica(), append);
        let (to, decoded) = decode_append(&message).expect("our own message");
        assert_eq!(to, 7);
        assert_eq!(decoded.prev_log_id, Some(entry_id(2, 4)));
        let stored: Vec<_> = decoded
            .entries
            .into_iter()
            .map(LogEntry::into_stored)
            .collect();
        assert_eq!(stored[1].index, 6);
        assert_eq!(stored[0].payload.as_ref(), b"records");
    }

    #[test]
    fn entries_for_a_damaged_replica_survive_the_wire() {
        let entry = |index, payload: &'static [u8]| Entry {
            index,
            term: 3,
            tag: 16,
            stamp: 9,
            checksum: crc32c::crc32c(payload),
            payload: Bytes::from_static(payload),
        };
        let wanted = encode_entries_wanted(9, 5, 300);
        assert_eq!(wanted.header.as_ref(), [1, 5, 251, 44, 1]);
        let header = decode_entries_wanted(&wanted).expect("our own question");
        assert_eq!((header.from, header.to), (5, 300));

        let entries = [entry(5, b"five"), entry(6, b""), entry(7, b"seven")];
        let mut message = encode_entries(9, &entries);
        assert_eq!(message.header[..2], [1, 3]);
        assert_eq!(decode_entries(&message, 5), Ok(entries.to_vec()));
        assert!(decode_entries(&message, 4).is_err(), "another entry");
        message.payload[0] = Bytes::from_static(b"fi7e");
        assert!(decode_entries(&message, 5).is_err(), "a flipped byte");
        assert_eq!(decode_entries(&encode_entries(9, &[]), 0), Ok(Vec::new()));
    }

    #[test]
    fn a_flipped_byte_in_a_payload_is_refused() {
        let payload = Bytes::from_static(b"records");
        let entry = Entry {
            index: 0,
            term: 1,
            tag: 16,
            stamp: 0,
            checksum: crc32c::crc32c(&payload),
            payload,
        };
        let append = Append {
            vote: RaftVote::new_committed(1, replica()),
            prev_log_id: None,
            entries: vec![LogEntry::from(entry)],
            leader_commit: None,
        };
        let mut message = encode_append(9, replica(), append);
        message.payload = vec![Bytes::from_static(b"recoRds")];
        assert!(decode_append(&message).is_err());
    }
}
