//! Partitions: the records of one are the log of one Raft group.

pub mod batches;
pub mod command;
pub mod encoding;
pub mod epochs;
pub mod index;
pub mod machine;
pub mod producers;
pub mod read;
pub mod view;
pub mod wait;

#[cfg(test)]
mod machine_tests;
