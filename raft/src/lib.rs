//! Many Raft groups on one node, behind the [`StateMachine`] trait.
//!
//! This crate is the only user of openraft. It knows groups, commands and
//! nodes, and nothing of Kafka. Start reading at [`runtime::RaftNode`], which
//! owns everything that runs, then [`group::Group`], one replica of one log.

pub mod group;
pub mod machine;
pub mod runtime;
pub mod transport;
pub mod types;

pub use drave_storage::GroupId;
pub use group::{Group, GroupStatus, PendingProposal, ProposeError, Proposed};
pub use machine::{Applied, MachineError, Reply, StateMachine};
pub use runtime::{CallError, GroupSpec, NodeConfig, PeerStatus, RaftNode, Service};
pub use types::{Command, Leadership, ReplicaId};
