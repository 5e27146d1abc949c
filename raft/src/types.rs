//! The words that this crate shares with its users.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The Raft identity of a node: its broker id and the id of its data directory.
///
/// The directory id is made when a data directory is formatted. A broker that
/// returns with an empty disk is therefore another replica, and can't vote as
/// its predecessor.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ReplicaId {
    /// Broker id, all that clients see.
    pub broker: u32,
    /// Id of the data directory, a random UUID.
    pub directory: u128,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:08x}", self.broker, (self.directory >> 96) as u32)
    }
}

/// What is proposed to a group: a kind, the proposer's clock, and bytes.
///
/// Time enters a state machine only by `stamp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Kind, chosen by the state machine's owner; at least [`Command::TAG_MIN`].
    pub tag: u8,
    /// The proposer's clock, milliseconds since 1970.
    pub stamp: i64,
    /// The bytes, kept and handed to `apply` as they are.
    pub payload: Bytes,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tag {} {} bytes", self.tag, self.payload.len())
    }
}

impl Command {
    /// Smaller tags belong to this crate.
    pub const TAG_MIN: u8 = 16;
}

/// Who leads a group, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// The term; Kafka's leader epoch.
    pub term: u64,
    /// The leader of that term.
    pub leader: ReplicaId,
}
