//! Log entries: the store's entries, seen with openraft's eyes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use drave_storage::Entry;
use openraft::entry::RaftEntry;
use openraft::impls::EmptyNode;
use openraft::type_config::alias::{CommittedLeaderIdOf, LogIdOf};
use openraft::{EntryPayload, Membership};
use serde::{Deserialize, Serialize};

use crate::config::Types;
use crate::types::{Command, ReplicaId};

/// The term of a committed leader, as openraft wraps it.
type CommittedLeaderId = CommittedLeaderIdOf<Types>;

/// Tag of a new leader's first entry. Persisted: never reuse.
pub(crate) const TAG_BLANK: u8 = 0;
/// Tag of a membership change. Persisted: never reuse.
pub(crate) const TAG_MEMBERSHIP: u8 = 1;

/// A log id of a group.
pub(crate) type EntryId = LogIdOf<Types>;
/// A membership of a group.
pub(crate) type GroupMembership = Membership<ReplicaId, EmptyNode>;

/// Makes a log id.
pub(crate) fn entry_id(term: u64, index: u64) -> EntryId {
    EntryId::new(CommittedLeaderId::new(term), index)
}

/// An entry as it is stored and sent, with its term in the form openraft wants to borrow.
#[derive(Clone, Debug)]
pub(crate) struct LogEntry {
    leader: CommittedLeaderId,
    stored: Entry,
}

impl LogEntry {
    /// The command, if the entry is not one of Raft itself.
    pub(crate) fn command(&self) -> Option<Command> {
        (self.stored.tag >= Command::TAG_MIN).then(|| Command {
            tag: self.stored.tag,
            stamp: self.stored.stamp,
            payload: self.stored.payload.clone(),
        })
    }

    /// Bytes that the entry is counted with.
    pub(crate) fn weight(&self) -> usize {
        self.stored.weight()
    }

    /// The entry as it is stored.
    pub(crate) fn into_stored(self) -> Entry {
        self.stored
    }

    /// The entry as it is stored.
    pub(crate) fn stored(&self) -> &Entry {
        &self.stored
    }
}

impl From<Entry> for LogEntry {
    fn from(stored: Entry) -> Self {
        LogEntry {
            leader: CommittedLeaderId::new(stored.term),
            stored,
        }
    }
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}-{} tag {} {} bytes",
            self.stored.term,
            self.stored.index,
            self.stored.tag,
            self.stored.payload.len()
        )
    }
}

impl RaftEntry for LogEntry {
    type CommittedLeaderId = CommittedLeaderId;
    type Payload = EntryPayload<Command, ReplicaId, EmptyNode>;

    fn new(id: EntryId, payload: Self::Payload) -> Self {
        let (tag, stamp, payload) = match payload {
            EntryPayload::Blank => (TAG_BLANK, 0, Bytes::new()),
            EntryPayload::Membership(membership) => {
                (TAG_MEMBERSHIP, 0, encode_membership(&membership))
            }
            EntryPayload::Normal(command) => (command.tag, command.stamp, command.payload),
        };
        LogEntry::from(Entry {
            index: id.index(),
            term: id.committed_leader_id().term,
            tag,
            stamp,
            checksum: crc32c::crc32c(&payload),
            payload,
        })
    }

    fn log_id_parts(&self) -> (&Self::CommittedLeaderId, u64) {
        (&self.leader, self.stored.index)
    }

    fn set_log_id(&mut self, id: EntryId) {
        self.leader = *id.committed_leader_id();
        self.stored.term = self.leader.term;
        self.stored.index = id.index();
    }

    fn get_membership(&self) -> Option<GroupMembership> {
        if self.stored.tag != TAG_MEMBERSHIP {
            return None;
        }
        // The entry's checksum was verified when it was read or received.
        Some(decode_membership(&self.stored.payload).expect("membership entries are ours"))
    }
}

/// A membership as it is persisted and sent.
#[derive(Serialize, Deserialize)]
struct MembershipRecord {
    version: u8,
    /// One set of voters, or two while they change.
    configs: Vec<BTreeSet<ReplicaId>>,
    /// Voters and learners.
    nodes: BTreeSet<ReplicaId>,
}

const MEMBERSHIP_VERSION: u8 = 1;

/// Encodes a membership.
pub(crate) fn encode_membership(membership: &GroupMembership) -> Bytes {
    let record = MembershipRecord {
        version: MEMBERSHIP_VERSION,
        configs: membership.get_joint_config().clone(),
        nodes: membership.nodes().map(|(id, _)| *id).collect(),
    };
    crate::wire::encode(&record)
}

/// Decodes a membership.
pub(crate) fn decode_membership(bytes: &[u8]) -> Result<GroupMembership, String> {
    let record: MembershipRecord = crate::wire::decode(bytes)?;
    if record.version != MEMBERSHIP_VERSION {
        return Err(format!("membership version {} is unknown", record.version));
    }
    let nodes: BTreeMap<ReplicaId, EmptyNode> = record
        .nodes
        .into_iter()
        .map(|id| (id, EmptyNode::new()))
        .collect();
    Membership::new(record.configs, nodes).map_err(|error| error.to_string())
}
