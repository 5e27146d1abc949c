//! A small Kafka client: what the command line and the benchmarks talk with.
//!
//! It speaks to any broker of Kafka's protocol, drave or Kafka, and picks
//! versions by ApiVersions. [`Connection`] pipelines requests over one socket,
//! [`Cluster`] knows the brokers and who leads what, [`Producer`] batches
//! records, [`Consumer`] follows partitions, [`Transactional`] ends transactions. Nothing here knows the broker's
//! own code, so that a fault of one is not hidden by the other.

mod aborted;
mod batch;
mod cluster;
mod connection;
mod consumer;
mod error;
mod offsets;
mod producer;
mod socket;
mod transactions;

pub use batch::{Batch, BatchBuilder, Compression, Record, batches, records};
pub use cluster::{Cluster, text, topic_name};
pub use connection::{Connection, PendingReply};
pub use consumer::{Consumer, ConsumerConfig, Fetched};
pub use error::{ClientError, check};
pub use offsets::{
    EARLIEST, LATEST, commit_offsets, committed_offsets, list_offsets, stable_offsets,
};
pub use producer::{Acknowledged, Producer, ProducerConfig};
pub use transactions::{Identity, Transactional};
