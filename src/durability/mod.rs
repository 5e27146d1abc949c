//! The durability benchmark, `drave bench durability`: a cluster is loaded
//! through Kafka's protocol, hurt, mended and read back; the crate
//! `drave-durability` judges what its clients were told and saw.
//!
//! A [`Scenario`] runs against a cluster of its own: `brokers` are real
//! processes, of drave or of Apache Kafka, in network namespaces where links
//! are hurt. [`Given`] is a cluster that runs already and that its owner hurts.
//! `producers`, `transactions` and `consumers` remember everything into a history; so do
//! `admins` and `committers`, who contend for topic names and committed offsets.

mod admins;
mod brokers;
mod caller;
mod clients;
mod clock;
mod committers;
mod consumers;
mod given;
mod kind;
mod producers;
mod progress;
mod run;
mod scenario;
mod stage;
mod transactions;
mod wall_clock;

pub use clients::Load;
pub use given::Given;
pub use kind::Kind;
pub use progress::Progress;
pub use run::{Outcome, Runner};
pub use scenario::Scenario;
