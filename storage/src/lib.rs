//! Bytes on disk for many replicated logs on one node.
//!
//! This crate knows groups, indexes and bytes. It knows nothing of Raft or of
//! Kafka, and it is the only user of RocksDB. Start reading at [`log::LogStore`],
//! the interface; [`engine`] is the disk, [`memory`] the disk of the simulation.

pub mod log;

pub use log::{
    Checkpoint, Done, Entry, GroupId, GroupState, LogStore, SharedStore, StorageError, TermStart,
    Write,
};
