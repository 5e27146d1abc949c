//! The metadata group: topics, placement, brokers and their liveness, configs,
//! producer-id blocks. What ZooKeeper or KRaft is to Kafka.

pub mod image;
