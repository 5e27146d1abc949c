//! What happened in one scenario, as its clients saw it.
//!
//! Times are microseconds since the scenario began.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::operation::Operation;
use crate::record::RecordId;

/// Everything that a scenario's clients asked, were told and saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Partitions of the topic, numbered from 0.
    pub partitions: u32,
    /// Who wrote.
    pub producers: Vec<ProducerKind>,
    /// Every record, in the order in which they were sent.
    pub writes: Vec<Write>,
    /// Every transaction, in the order in which they were begun.
    pub transactions: Vec<Transaction>,
    /// How many batches the producers' clients sent again by themselves, by the error that made them.
    pub repeated: BTreeMap<String, u64>,
    /// What consumers saw while the cluster was troubled, each in its order.
    pub live: Vec<LiveRead>,
    /// What could be read when all was well again.
    pub finals: Vec<FinalRead>,
    /// What clients asked of metadata and group state, and were told.
    #[serde(default)]
    pub operations: Vec<Operation>,
    /// What was done to the cluster.
    pub faults: Vec<Fault>,
    /// When the producers stopped.
    pub stopped_us: u64,
}

/// What a producer asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerKind {
    /// Its number.
    pub producer: u32,
    /// Kafka's `acks`: 1, or -1 for all.
    pub acks: i16,
    /// Whether the cluster promises that no record is there twice.
    pub idempotent: bool,
}

/// One record that a producer sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Write {
    /// Which record.
    pub id: RecordId,
    /// Where to.
    pub partition: u32,
    /// Number of the transaction that it is part of.
    pub transaction: Option<u32>,
    /// When it was handed to the client.
    pub sent_us: u64,
    /// When its outcome was known.
    pub answered_us: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What a producer was told of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is written, at this offset.
    Acknowledged {
        /// Its offset; `None`: the broker does not say, as for a duplicate of long ago.
        offset: Option<i64>,
    },
    /// The client gave it up. It may have been written, or not.
    GivenUp {
        /// Why.
        error: String,
    },
}

/// Records of one producer that readers are to be given all or none of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// Its number, which no other one has.
    pub number: u32,
    /// Whose.
    pub producer: u32,
    /// How it ended.
    pub ending: Ending,
}

/// How a transaction ended, as far as its producer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The cluster said that it is committed.
    Committed {
        /// When that was first asked for.
        asked_us: u64,
    },
    /// Nobody ever asked for its commit.
    Aborted,
    /// Its commit was asked for, and no answer said that it was done.
    Unknown {
        /// When it was first asked for.
        asked_us: u64,
    },
}

impl Ending {
    /// When its commit was first asked for.
    pub fn asked_us(self) -> Option<u64> {
        match self {
            Ending::Committed { asked_us } | Ending::Unknown { asked_us } => Some(asked_us),
            Ending::Aborted => None,
        }
    }
}

/// What a consumer was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// At which offset.
    pub offset: i64,
    /// The record, or what is wrong with the bytes that took its place.
    pub record: Result<RecordId, String>,
}

/// What one consumer of one partition was given, in its order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LiveRead {
    /// Number of the consumer.
    pub consumer: u32,
    /// What it read.
    pub partition: u32,
    /// In the order in which it came, and when.
    pub seen: Vec<(u64, Seen)>,
}

/// A whole partition, read from its start to its end when no fault was left.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinalRead {
    /// Who served it, say `broker 2`: each replica's word is a read of its own.
    pub from: String,
    /// Which partition.
    pub partition: u32,
    /// All of it, in order. Or why it could not be read.
    pub seen: Result<Vec<Seen>, String>,
}

/// Something that was done to the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// What, in words: `kill -9 of broker 2`.
    pub name: String,
    /// When it began.
    pub from_us: u64,
    /// When it was over: the process was started again, the link mended.
    pub until_us: u64,
}
