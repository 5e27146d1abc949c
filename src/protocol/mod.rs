//! Bytes to types and back: Kafka's wire protocol.
//!
//! Control-plane messages are those of the crate `kafka-protocol`, decoded
//! behind [`guard`]; Produce, Fetch and the record batch header have a codec of
//! their own here, because they carry the records and must not copy them.

pub mod api_versions;
pub mod fetch;
pub mod guard;
pub mod header;
pub mod produce;
pub mod record_batch;
pub mod replica_progress;
pub mod wire;

#[cfg(test)]
pub(crate) mod codec_tests;
#[cfg(test)]
mod fuzz_tests;
