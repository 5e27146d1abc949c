//! Bytes on disk for many replicated logs on one node.
//!
//! This crate knows groups, indexes and bytes. It knows nothing of Raft or of
//! Kafka, and it is the only user of RocksDB. Start reading at [`log::LogStore`],
//! the interface; [`engine`] is the disk, [`memory`] the disk of the simulation.

pub mod directory;
pub mod durations;
pub mod engine;
pub mod log;
pub mod memory;
pub mod planted;

mod blob_files;
mod damage;
#[cfg(test)]
mod fuzz_tests;
mod group_log;
mod head;
mod housekeeper;
mod keys;
mod manifest;
mod options;
mod reader;
mod room;
mod shared;
mod space;
mod tail_cache;
mod watermark;
mod writer;

pub use directory::DataDirectory;
pub use durations::{DurationCounts, DurationHistogram};
pub use engine::{Engine, EngineOptions};
pub use log::{
    Checkpoint, Done, Entry, GroupId, GroupState, LogStore, SharedStore, StorageError,
    StoreActivity, TermStart, Write,
};
pub use memory::MemoryDisk;
pub use room::Room;
