//! Calls about metadata and group state, each on one object that several clients contend for.

use serde::{Deserialize, Serialize};

/// One call of one client, and what it was told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Number of the client. It has one operation under way at a time.
    pub client: u32,
    /// What the call was about.
    pub object: Object,
    /// What was asked.
    pub asked: Asked,
    /// When the request was sent, in microseconds since the scenario began.
    pub called_us: u64,
    /// When the answer came, or when the client gave it up.
    pub answered_us: u64,
    /// What was answered.
    pub answer: Answer,
}

/// What has a state of its own, whatever becomes of all others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Object {
    /// Whether there is a topic of this name. In the beginning there is none.
    Topic(String),
    /// What a group has committed for a partition. In the beginning that is nothing.
    CommittedOffset {
        /// The group.
        group: String,
        /// Partition of the scenario's topic.
        partition: u32,
    },
}

/// What a client asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// CreateTopics.
    CreateTopic,
    /// DeleteTopics.
    DeleteTopic,
    /// Metadata of this broker: is there such a topic?
    TopicExists {
        /// Its id.
        broker: i32,
    },
    /// OffsetCommit of an offset that nobody else commits.
    CommitOffset(i64),
    /// OffsetFetch.
    FetchOffset,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is created, deleted, committed.
    Done,
    /// There is such a topic already.
    AlreadyExists,
    /// There is no such topic.
    UnknownTopic,
    /// Whether there is such a topic.
    Exists(bool),
    /// The committed offset, if there is one.
    Offset(Option<i64>),
    /// No: nothing was done, and nothing will be.
    Refused(String),
    /// No answer, or one that leaves it open: it may be done at any time from
    /// the call on, or never.
    Unknown(String),
}
