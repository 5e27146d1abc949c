//! Many Raft groups on one node, behind the [`StateMachine`] trait.
//!
//! This crate is the only user of openraft. It knows groups, commands and
//! nodes, and nothing of Kafka. Start reading at [`runtime::RaftNode`], which
//! owns everything that runs, then [`group::Group`], one replica of one log.

mod blocking;
mod checkpoints;
mod config;
mod elections;
mod entry;
#[cfg(test)]
mod fuzz_tests;
pub mod group;
mod hand_over;
mod inbound;
#[cfg(test)]
mod inbound_tests;
mod leaders;
mod log_store;
pub mod machine;
mod net;
mod node;
mod notices;
mod nudge;
pub mod planted;
pub mod proposal;
mod repairs;
pub mod runtime;
mod state_machine;
pub mod transport;
pub mod types;
mod wire;

pub use drave_storage::GroupId;
pub use group::{Group, GroupStatus, ProposeError};
pub use machine::{Applied, MachineError, Reply, StateMachine};
pub use proposal::{PendingProposal, Proposed};
pub use runtime::{
    COMMIT_NOTICE_WAIT, CallError, GroupSpec, NodeConfig, PeerStatus, RaftNode, Service,
};
pub use types::{Command, Leadership, ReplicaId};
