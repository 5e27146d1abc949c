//! drave: a replicated log service that speaks Kafka's protocol.
//!
//! Start reading at [`node`], which wires everything. A produce request goes
//! `server::connection` → `protocol` → `handlers::produce` → `partition` →
//! `drave_raft::Group` → `drave_storage`; docs/ARCHITECTURE.md has the map.

mod bounded;
pub mod cli;
pub mod client;
pub mod config;
#[cfg(test)]
#[path = "../tests/corpus/mod.rs"]
mod corpus;
pub mod disk;
pub mod durability;
pub mod groups;
pub mod handlers;
pub mod http;
pub mod limits;
pub mod metadata;
pub mod metrics;
pub mod node;
pub mod partition;
mod planted;
pub mod protocol;
pub mod server;
