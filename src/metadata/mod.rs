//! The metadata group: topics, placement, brokers and their liveness, configs,
//! producer-id blocks. What ZooKeeper or KRaft is to Kafka.

pub mod command;
pub mod image;
pub mod machine;
pub mod names;
pub mod placement;
