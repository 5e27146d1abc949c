//! What `/metrics` says, in OpenMetrics' text format.
//!
//! Requests are counted as they complete, by [`requests`], without a lock.
//! Everything else is read off the live broker at each scrape, by [`snapshot`];
//! nothing else is kept up for it. [`series`] is the one table of what there
//! is. Series are bounded by the served APIs, the partitions with a replica
//! here and the brokers of the cluster.

pub mod requests;
pub mod series;
pub mod snapshot;
mod text;

pub use requests::Requests;
pub use series::SERIES;
pub use snapshot::Snapshot;
