//! What is written to a coordinator's log, and how it is encoded.
//!
//! Tags and layouts are persisted. A payload is one version byte and then the
//! record in bincode (variable-length integers, fields in order). A field is
//! never moved or reused; a changed record gets a new version byte.

use bincode::config;
use bytes::Bytes;
use drave_raft::Command;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounded;

/// Version of every payload so far.
const VERSION: u8 = 1;

/// Kinds of commands. Persisted: never reuse a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum CommandTag {
    CommitOffsets = 16,
    StoreGroup = 17,
    DeleteGroup = 18,
    DeleteOffsets = 19,
    ExpireOffsets = 20,
    DropTopics = 21,
}

/// A change to a coordinator's state.
#[derive(Clone, Debug, PartialEq)]
pub enum GroupCommand {
    /// Remembers how far a group has read.
    CommitOffsets(CommitOffsets),
    /// Remembers a group after a rebalance, or after its last member left.
    StoreGroup(StoreGroup),
    /// Forgets a group without members and everything it committed.
    DeleteGroup(DeleteGroup),
    /// Forgets what a group committed for some partitions.
    DeleteOffsets(DeleteOffsets),
    /// Forgets what groups without members committed too long ago.
    ExpireOffsets(ExpireOffsets),
    /// Forgets what any group committed for topics that no longer exist.
    DropTopics(DropTopics),
}

/// See [`GroupCommand::CommitOffsets`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommitOffsets {
    /// The group.
    pub group: String,
    /// Generation of the committing member; -1 for a consumer without membership.
    pub generation: i32,
    /// Offsets per topic.
    pub topics: Vec<TopicCommit>,
}

/// Offsets committed for one topic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopicCommit {
    /// Id of the topic: a recreated topic has another one.
    pub id: Uuid,
    /// Name of the topic.
    pub name: String,
    /// Index of the metadata in which the topic was seen; metadata older than
    /// that can't be taken as proof that the topic is gone.
    pub metadata_index: u64,
    /// Offsets per partition.
    pub partitions: Vec<PartitionCommit>,
}

/// An offset committed for one partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionCommit {
    /// The partition.
    pub partition: i32,
    /// Offset of the next record to read.
    pub offset: i64,
    /// Leader epoch of the last record read; -1 if unknown.
    pub leader_epoch: i32,
    /// Whatever the client keeps with it.
    pub metadata: String,
}

/// See [`GroupCommand::StoreGroup`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoreGroup {
    /// The group.
    pub group: String,
    /// Its state.
    pub record: GroupRecord,
}

/// What survives of a group when its coordinator fails. Joins in progress don't.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Counts the records written for this group, so that an older one never replaces a newer one.
    pub revision: u64,
    /// Generation; grows with every completed rebalance.
    pub generation: i32,
    /// Protocol type, `consumer` for consumers.
    pub protocol_type: String,
    /// The chosen protocol; none without members.
    pub protocol: Option<String>,
    /// Member id of the leader; none without members.
    pub leader: Option<String>,
    /// Members, by id.
    pub members: Vec<MemberRecord>,
}

/// A member of a group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Its id, given by the coordinator.
    pub id: String,
    /// `group.instance.id` of a static member.
    pub instance_id: Option<String>,
    /// Client id of its connection.
    pub client_id: String,
    /// Host of its connection.
    pub client_host: String,
    /// Silence after which it is removed.
    pub session_timeout_ms: i32,
    /// Time it has for joining again in a rebalance.
    pub rebalance_timeout_ms: i32,
    /// Protocols that it supports, the preferred first, with their metadata.
    pub protocols: Vec<(String, Bytes)>,
    /// What the leader assigned to it.
    pub assignment: Bytes,
}

/// See [`GroupCommand::DeleteGroup`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeleteGroup {
    /// The group.
    pub group: String,
}

/// See [`GroupCommand::DeleteOffsets`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeleteOffsets {
    /// The group.
    pub group: String,
    /// Partitions by topic id.
    pub topics: Vec<(Uuid, Vec<i32>)>,
}

/// See [`GroupCommand::ExpireOffsets`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpireOffsets {
    /// Age from which an offset goes, ms before the command's stamp.
    pub retention_ms: i64,
    /// The groups that the leader found to have such offsets.
    pub groups: Vec<String>,
}

/// See [`GroupCommand::DropTopics`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropTopics {
    /// Ids of the deleted topics.
    pub topics: Vec<Uuid>,
}

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A tag that this build does not know.
    #[error("unknown command tag {0}")]
    Tag(u8),
    /// A version that this build does not know.
    #[error("unknown format version {0:?}")]
    Version(Option<u8>),
    /// The record is damaged.
    #[error("undecodable record: {0}")]
    Record(#[from] bincode::error::DecodeError),
}

impl GroupCommand {
    /// The command as it is proposed, stamped with the proposer's clock.
    pub fn encode(&self, stamp: i64) -> Command {
        let (tag, payload) = match self {
            GroupCommand::CommitOffsets(record) => (CommandTag::CommitOffsets, encode(record)),
            GroupCommand::StoreGroup(record) => (CommandTag::StoreGroup, encode(record)),
            GroupCommand::DeleteGroup(record) => (CommandTag::DeleteGroup, encode(record)),
            GroupCommand::DeleteOffsets(record) => (CommandTag::DeleteOffsets, encode(record)),
            GroupCommand::ExpireOffsets(record) => (CommandTag::ExpireOffsets, encode(record)),
            GroupCommand::DropTopics(record) => (CommandTag::DropTopics, encode(record)),
        };
        Command {
            tag: tag as u8,
            stamp,
            payload,
        }
    }

    /// The inverse of [`GroupCommand::encode`].
    pub fn decode(command: &Command) -> Result<GroupCommand, FormatError> {
        let bytes = &command.payload;
        Ok(match command.tag {
            tag if tag == CommandTag::CommitOffsets as u8 => {
                GroupCommand::CommitOffsets(decode(bytes)?)
            }
            tag if tag == CommandTag::StoreGroup as u8 => GroupCommand::StoreGroup(decode(bytes)?),
            tag if tag == CommandTag::DeleteGroup as u8 => {
                GroupCommand::DeleteGroup(decode(bytes)?)
            }
            tag if tag == CommandTag::DeleteOffsets as u8 => {
                GroupCommand::DeleteOffsets(decode(bytes)?)
            }
            tag if tag == CommandTag::ExpireOffsets as u8 => {
                GroupCommand::ExpireOffsets(decode(bytes)?)
            }
            tag if tag == CommandTag::DropTopics as u8 => GroupCommand::DropTopics(decode(bytes)?),
            tag => return Err(FormatError::Tag(tag)),
        })
    }
}

/// A record behind its version byte.
pub(super) fn encode<T: Serialize>(record: &T) -> Bytes {
    let mut bytes = vec![VERSION];
    let body = bincode::serde::encode_to_vec(record, config::standard())
        .expect("plain records always encode into memory");
    bytes.extend_from_slice(&body);
    bytes.into()
}

/// The inverse of [`encode`].
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(bounded::decode(body)?.0),
        other => Err(FormatError::Version(other.map(|(version, _)| *version))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_has_these_bytes() {
        let command = GroupCommand::CommitOffsets(CommitOffsets {
            group: "g".into(),
            generation: 3,
            topics: vec![TopicCommit {
                id: Uuid::from_u128(0x0102),
                name: "t".into(),
                metadata_index: 300,
                partitions: vec![PartitionCommit {
                    partition: 1,
                    offset: 42,
                    leader_epoch: -1,
                    metadata: "m".into(),
                }],
            }],
        });
        let encoded = command.encode(7);
        assert_eq!((encoded.tag, encoded.stamp), (16, 7));
        let golden: &[u8] = &[
            1, 1, b'g', 6, 1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, b't', 251, 44,
            1, 1, 2, 84, 1, 1, b'm',
        ];
        assert_eq!(&encoded.payload[..], golden);
        assert_eq!(GroupCommand::decode(&encoded).unwrap(), command);
    }

    #[test]
    fn a_group_has_these_bytes() {
        let command = GroupCommand::StoreGroup(StoreGroup {
            group: "g".into(),
            record: GroupRecord {
                revision: 1,
                generation: 2,
                protocol_type: "consumer".into(),
                protocol: Some("range".into()),
                leader: Some("a".into()),
                members: vec![MemberRecord {
                    id: "a".into(),
                    instance_id: None,
                    client_id: "c".into(),
                    client_host: "h".into(),
                    session_timeout_ms: 10,
                    rebalance_timeout_ms: 20,
                    protocols: vec![("range".into(), Bytes::from_static(b"p"))],
                    assignment: Bytes::from_static(b"x"),
                }],
            },
        });
        let encoded = command.encode(0);
        assert_eq!(encoded.tag, 17);
        let golden: &[u8] =
            b"\x01\x01g\x01\x04\x08consumer\x01\x05range\x01\x01a\x01\x01a\x00\x01c\x01h\x14\x28\x01\x05range\x01p\x01x";
        assert_eq!(&encoded.payload[..], golden);
        assert_eq!(GroupCommand::decode(&encoded).unwrap(), command);
    }

    #[test]
    fn the_other_commands_round_trip_under_their_own_tags() {
        let commands = [
            (
                18,
                GroupCommand::DeleteGroup(DeleteGroup { group: "g".into() }),
            ),
            (
                19,
                GroupCommand::DeleteOffsets(DeleteOffsets {
                    group: "g".into(),
                    topics: vec![(Uuid::from_u128(9), vec![0, 1])],
                }),
            ),
            (
                20,
                GroupCommand::ExpireOffsets(ExpireOffsets {
                    retention_ms: 5,
                    groups: vec!["g".into()],
                }),
            ),
            (
                21,
                GroupCommand::DropTopics(DropTopics {
                    topics: vec![Uuid::from_u128(9)],
                }),
            ),
        ];
        for (tag, command) in commands {
            let encoded = command.encode(0);
            assert_eq!(encoded.tag, tag);
            assert_eq!(GroupCommand::decode(&encoded).unwrap(), command);
        }
    }

    #[test]
    fn unknown_tags_versions_and_truncated_records_are_refused() {
        let good = GroupCommand::DeleteGroup(DeleteGroup {
            group: "group".into(),
        })
        .encode(0);
        let unknown = Command {
            tag: 99,
            ..good.clone()
        };
        assert!(matches!(
            GroupCommand::decode(&unknown),
            Err(FormatError::Tag(99))
        ));
        let newer = Command {
            payload: Bytes::from_static(&[200, 0]),
            ..good.clone()
        };
        assert!(matches!(
            GroupCommand::decode(&newer),
            Err(FormatError::Version(Some(200)))
        ));
        let cut = Command {
            payload: good.payload.slice(..3),
            ..good
        };
        assert!(matches!(
            GroupCommand::decode(&cut),
            Err(FormatError::Record(_))
        ));
    }
}
