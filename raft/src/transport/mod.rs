//! Connections to peers: one per pair and direction, carrying all groups.
//!
//! The transport knows frames, not what is in them: a kind, a group, a small
//! header and payload bytes that are never copied. Requests to one peer arrive
//! in the order in which they were sent.

use bytes::Bytes;

/// One request or reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it is; the meaning belongs to `crate::net`.
    pub kind: u8,
    /// The group it is for, 0 for the node.
    pub group: u64,
    /// Encoded head.
    pub header: Bytes,
    /// Bytes that follow the header, sent as they are; received as one slice.
    pub payload: Vec<Bytes>,
}
