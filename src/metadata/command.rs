//! The commands of the metadata group, what they answer, and how both are
//! written: in the group's log, and between brokers.
//!
//! Persisted format: one byte [`FORMAT`], then bincode (standard, variable
//! integers). bincode writes an enum's variant by its position, so the order of
//! the variants below is part of the format: add at the end, never reorder and
//! never remove. The golden bytes in the tests hold this.

use bytes::Bytes;
use drave_raft::ReplicaId;
use kafka_protocol::ResponseError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::image::BrokerRegistration;

/// Version of the format; anything else is refused.
pub const FORMAT: u8 = 1;
/// Tag of the metadata group's commands in its log.
pub const COMMAND_TAG: u8 = 16;
/// An encoded command or reply is never larger, whatever its bytes claim.
pub const ENCODED_BYTES_MAX: usize = 16 << 20;
/// Partitions that one command may create.
pub const PARTITIONS_PER_COMMAND_MAX: usize = 10_000;
/// Producer ids are handed to brokers in blocks of this many.
pub const PRODUCER_ID_BLOCK: u32 = 1_000;

// A placement takes at most 32 bytes a replica and nobody has 32 replicas.
const _: () = assert!(PARTITIONS_PER_COMMAND_MAX * 32 * 32 <= ENCODED_BYTES_MAX);

/// A change to the metadata. Everything that needs a choice (ids, placement,
/// the validity of configs) was decided by the proposer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Gives the cluster its id, once.
    FormCluster {
        /// The id.
        cluster_id: Uuid,
    },
    /// A broker is there, with these addresses. It starts unfenced.
    RegisterBroker(BrokerRegistration),
    /// A broker is dead.
    FenceBroker {
        /// Its id.
        broker: u32,
        /// The process that is dead; another one is not fenced by this.
        incarnation: u64,
    },
    /// A broker is back.
    UnfenceBroker {
        /// Its id.
        broker: u32,
        /// The process that is back.
        incarnation: u64,
    },
    /// New topics; each is accepted or refused on its own.
    CreateTopics(Vec<TopicToCreate>),
    /// A topic goes, with its groups.
    DeleteTopic {
        /// Its id.
        id: Uuid,
    },
    /// Adds partitions at the end of a topic.
    CreatePartitions {
        /// Its id.
        topic: Uuid,
        /// Index of the first new partition: how many the proposer saw.
        first: u32,
        /// Replicas of each new partition, the preferred leader first.
        placements: Vec<Vec<ReplicaId>>,
    },
    /// Sets and removes configs.
    AlterConfigs {
        /// Whose.
        resource: ConfigResource,
        /// The new value of each key, `None` to go back to the default.
        changes: Vec<(String, Option<String>)>,
        /// Keys that are not in `changes` go back to their default too.
        replace_all: bool,
    },
    /// A block of producer ids that nobody else gets.
    AllocateProducerIds {
        /// How many.
        count: u32,
    },
    /// Places the coordinator groups, once.
    CreateCoordinators {
        /// Replicas of each group, the preferred leader first.
        replicas: Vec<Vec<ReplicaId>>,
    },
}

/// A topic with everything decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopicToCreate {
    /// Its name.
    pub name: String,
    /// Its id, made by the proposer. The same id again is the same request, repeated.
    pub id: Uuid,
    /// Replicas of each partition, the preferred leader first.
    pub placements: Vec<Vec<ReplicaId>>,
    /// Config overrides, checked.
    pub configs: Vec<(String, String)>,
}

/// What has configs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigResource {
    /// A topic by its id.
    Topic(Uuid),
    /// A broker by its id as text; empty: every broker.
    Broker(String),
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// It has taken effect, or had already.
    Done,
    /// It has not; nothing changed.
    Refused(Refusal),
    /// One outcome for each topic of `CreateTopics`.
    Topics(Vec<Result<TopicCreated, Refusal>>),
    /// A block of producer ids.
    ProducerIds {
        /// The first one.
        first: i64,
        /// How many.
        count: u32,
    },
}

/// A topic that now exists, or would if it was not only validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCreated {
    /// Its id.
    pub id: Uuid,
    /// How many partitions it has.
    pub partitions: u32,
    /// Replicas of its first partition.
    pub replication_factor: u16,
}

/// Why a command changed nothing, as clients are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Kafka's error code.
    pub code: i16,
    /// One sentence.
    pub message: String,
}

impl Refusal {
    /// A refusal with a code and one sentence.
    pub fn new(error: ResponseError, message: impl Into<String>) -> Self {
        Self {
            code: error.code(),
            message: message.into(),
        }
    }

    /// The controller's answer does not fit the question: it is of another version.
    pub fn unexpected(reply: &Reply) -> Self {
        Self::new(
            ResponseError::UnknownServerError,
            format!("unexpected answer {reply:?}"),
        )
    }
}

/// Bytes that are not a command, a request or a reply of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Written by another version.
    #[error("metadata format {0} is unknown to this version, which knows {FORMAT}")]
    Version(u8),
    /// Not decodable.
    #[error("metadata record can't be decoded: {0}")]
    Malformed(String),
}

/// Encodes anything of this module.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = vec![FORMAT];
    let written = bincode::serde::encode_into_std_write(
        value,
        &mut bytes,
        bincode::config::standard().with_limit::<ENCODED_BYTES_MAX>(),
    );
    // A Vec takes everything, and these types hold nothing that serde refuses.
    written.expect("metadata types always encode");
    bytes.into()
}

/// Decodes what [`encode`] wrote, and nothing more.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FormatError> {
    match bytes.split_first() {
        Some((&FORMAT, body)) => decode_body(body),
        Some((&version, _)) => Err(FormatError::Version(version)),
        None => Err(FormatError::Malformed("no bytes".into())),
    }
}

fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FormatError> {
    let config = bincode::config::standard().with_limit::<ENCODED_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(body, config)
        .map_err(|error| FormatError::Malformed(error.to_string()))?;
    if read != body.len() {
        return Err(FormatError::Malformed(format!(
            "{} bytes too many",
            body.len() - read
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(broker: u32) -> ReplicaId {
        ReplicaId {
            broker,
            directory: 7,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// One of each, with the bytes that every later version must still read.
    fn golden() -> Vec<(Command, &'static str)> {
        let id = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let uuid_hex = "100102030405060708090a0b0c0d0e0f10";
        assert_eq!(hex(&encode(&id)), format!("01{uuid_hex}"));
        vec![
            (
                Command::FormCluster { cluster_id: id },
                "0100100102030405060708090a0b0c0d0e0f10",
            ),
            (
                Command::RegisterBroker(BrokerRegistration {
                    replica: replica(1),
                    incarnation: 2,
                    host: "h".into(),
                    port: 9092,
                    peer_address: "127.0.0.1:9093".parse().unwrap(),
                    rack: Some("r".into()),
                    fenced: false,
                }),
                "01010107020168fb8423007f000001fb852301017200",
            ),
            (
                Command::FenceBroker {
                    broker: 1,
                    incarnation: 2,
                },
                "01020102",
            ),
            (
                Command::UnfenceBroker {
                    broker: 1,
                    incarnation: 2,
                },
                "01030102",
            ),
            (
                Command::CreateTopics(vec![TopicToCreate {
                    name: "t".into(),
                    id,
                    placements: vec![vec![replica(1), replica(2)]],
                    configs: vec![("k".into(), "v".into())],
                }]),
                "0104010174100102030405060708090a0b0c0d0e0f100102010702070101 6b0176",
            ),
            (
                Command::DeleteTopic { id },
                "0105100102030405060708090a0b0c0d0e0f10",
            ),
            (
                Command::CreatePartitions {
                    topic: id,
                    first: 1,
                    placements: vec![vec![replica(3)]],
                },
                "0106100102030405060708090a0b0c0d0e0f100101010307",
            ),
            (
                Command::AlterConfigs {
                    resource: ConfigResource::Broker("1".into()),
                    changes: vec![("k".into(), None)],
                    replace_all: true,
                },
                "010701013101016b0001",
            ),
            (Command::AllocateProducerIds { count: 1000 }, "0108fbe803"),
            (
                Command::CreateCoordinators {
                    replicas: vec![vec![replica(1)]],
                },
                "010901010107",
            ),
        ]
    }

    #[test]
    fn the_bytes_of_every_command_are_fixed() {
        for (command, bytes) in golden() {
            let bytes = bytes.replace(' ', "");
            assert_eq!(hex(&encode(&command)), bytes, "{command:?}");
            assert_eq!(decode::<Command>(&encode(&command)), Ok(command));
        }
    }

    #[test]
    fn hostile_bytes_are_refused_without_allocating_what_they_claim() {
        // CreateTopics with 2^63 topics, in 12 bytes.
        let bytes = [&[FORMAT, 4, 0xfd][..], &(1u64 << 63).to_le_bytes()].concat();
        assert!(matches!(
            decode::<Command>(&bytes),
            Err(FormatError::Malformed(_))
        ));
        assert_eq!(decode::<Command>(&[9, 0]), Err(FormatError::Version(9)));
        assert!(decode::<Command>(&[]).is_err());
        assert!(
            decode::<Command>(&[FORMAT, 200]).is_err(),
            "an unknown command"
        );
        let mut long = encode(&Command::AllocateProducerIds { count: 1 }).to_vec();
        long.push(0);
        assert!(decode::<Command>(&long).is_err(), "trailing bytes");
    }

    #[test]
    fn replies_round_trip() {
        for reply in [
            Reply::Done,
            Reply::Refused(Refusal::new(ResponseError::InvalidConfig, "no")),
            Reply::Topics(vec![
                Ok(TopicCreated {
                    id: Uuid::from_u128(5),
                    partitions: 3,
                    replication_factor: 2,
                }),
                Err(Refusal::new(ResponseError::TopicAlreadyExists, "there")),
            ]),
            Reply::ProducerIds {
                first: 1000,
                count: 1000,
            },
        ] {
            assert_eq!(decode::<Reply>(&encode(&reply)), Ok(reply));
        }
    }
}
