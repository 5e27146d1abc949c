//! The metadata machine's checkpoint: what it holds and its bytes.
//!
//! Persisted format: one byte [`FORMAT`], then bincode (standard, variable
//! integers) of the fields in their order. Older formats are still read; each
//! has its own types here, which never change.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use drave_raft::{MachineError, ReplicaId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::image::{
    BrokerRegistration, COORDINATOR_GROUP_MIN, GroupNumber, Image, PARTITION_GROUP_MIN, Placement,
    Topic,
};
use crate::bounded;

/// Version of the format that is written.
const FORMAT: u8 = 2;

/// What a checkpoint holds. Persisted: fields are only ever added with a new format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) image: Arc<Image>,
    /// Group id of the next partition. Only grows: ids are never reused.
    pub(super) next_group: u64,
    /// First producer id that was never handed out.
    pub(super) next_producer_id: i64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            image: Arc::default(),
            next_group: PARTITION_GROUP_MIN,
            next_producer_id: 0,
        }
    }
}

pub(super) fn encode(state: &State) -> Bytes {
    let mut bytes = vec![FORMAT];
    let config = bincode::config::standard();
    bincode::serde::encode_into_std_write(state, &mut bytes, config)
        .expect("metadata types always encode");
    bytes.into()
}

pub(super) fn decode(bytes: &[u8]) -> Result<State, MachineError> {
    let refused = |reason: String| MachineError(format!("metadata checkpoint {reason}"));
    match bytes.split_first() {
        Some((&FORMAT, body)) => whole(body).map_err(refused),
        Some((&format1::FORMAT, body)) => {
            let state: format1::State = whole(body).map_err(refused)?;
            Ok(state.into())
        }
        Some((format, _)) => Err(refused(format!("of unknown format {format}"))),
        None => Err(refused("without bytes".into())),
    }
}

fn whole<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let (value, read) = bounded::decode(body).map_err(|error| error.to_string())?;
    match body.len() - read {
        0 => Ok(value),
        trailing => Err(format!("with {trailing} trailing bytes")),
    }
}

/// The first format: placements never changed, so that they name their founders.
mod format1 {
    use super::*;

    pub(super) const FORMAT: u8 = 1;

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(Serialize))]
    pub(super) struct State {
        pub(super) image: ImageRecord,
        pub(super) next_group: u64,
        pub(super) next_producer_id: i64,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(Serialize))]
    pub(super) struct ImageRecord {
        pub(super) cluster_id: Uuid,
        pub(super) brokers: BTreeMap<u32, Arc<BrokerRegistration>>,
        pub(super) topics: BTreeMap<String, TopicRecord>,
        pub(super) topic_names: BTreeMap<Uuid, String>,
        pub(super) coordinators: Vec<Vec<ReplicaId>>,
        pub(super) broker_configs: BTreeMap<String, BTreeMap<String, String>>,
        pub(super) applied_index: u64,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(Serialize))]
    pub(super) struct TopicRecord {
        pub(super) id: Uuid,
        pub(super) name: String,
        pub(super) partitions: Vec<PlacementRecord>,
        pub(super) configs: BTreeMap<String, String>,
    }

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(Serialize))]
    pub(super) struct PlacementRecord {
        pub(super) group: GroupNumber,
        pub(super) replicas: Vec<ReplicaId>,
    }

    impl From<State> for super::State {
        fn from(old: State) -> Self {
            let topic = |(name, old): (String, TopicRecord)| {
                let partitions = old.partitions.into_iter();
                let topic = Topic {
                    id: old.id,
                    name: old.name,
                    partitions: partitions
                        .map(|old| Placement::new(old.group, old.replicas))
                        .collect(),
                    configs: old.configs,
                };
                (name, Arc::new(topic))
            };
            let coordinators = (COORDINATOR_GROUP_MIN..).zip(old.image.coordinators);
            let mut image = Image {
                cluster_id: old.image.cluster_id,
                brokers: old.image.brokers,
                topics: old.image.topics.into_iter().map(topic).collect(),
                topic_names: old.image.topic_names,
                coordinators: coordinators
                    .map(|(group, replicas)| Placement::new(group, replicas))
                    .collect(),
                broker_configs: old.image.broker_configs,
                applied_index: old.image.applied_index,
            };
            // The version that wrote it left placements alone when a broker came
            // back on another directory; one that applied the same entries did not.
            image.update_placements();
            Self {
                image: Arc::new(image),
                next_group: old.next_group,
                next_producer_id: old.next_producer_id,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(broker: u32, directory: u128) -> ReplicaId {
        ReplicaId { broker, directory }
    }

    fn broker(id: u32, directory: u128) -> (u32, Arc<BrokerRegistration>) {
        let registration = BrokerRegistration {
            replica: replica(id, directory),
            incarnation: 2,
            host: "h".into(),
            port: 9092,
            peer_address: ([127, 0, 0, 1], 9093).into(),
            rack: None,
            fenced: false,
        };
        (id, Arc::new(registration))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Broker 1 is on directory 9 by now, and was on 7 when all was placed.
    fn state() -> State {
        let founders = vec![replica(1, 7), replica(2, 8)];
        let placement = |group| Placement {
            group,
            replicas: vec![replica(1, 9), replica(2, 8)],
            founders: Some(founders.clone()),
        };
        let id = Uuid::from_u128(5);
        let topic = Topic {
            id,
            name: "t".into(),
            partitions: vec![placement(1024)],
            configs: BTreeMap::from([("k".into(), "v".into())]),
        };
        let image = Image {
            cluster_id: Uuid::from_u128(3),
            brokers: BTreeMap::from([broker(1, 9), broker(2, 8)]),
            topics: BTreeMap::from([("t".into(), Arc::new(topic))]),
            topic_names: BTreeMap::from([(id, "t".into())]),
            coordinators: vec![placement(COORDINATOR_GROUP_MIN)],
            broker_configs: BTreeMap::new(),
            applied_index: 6,
        };
        State {
            image: Arc::new(image),
            next_group: 1025,
            next_producer_id: 4,
        }
    }

    /// The same, as the first format had it.
    fn old_state() -> format1::State {
        let new = state();
        let image = &new.image;
        let founders = vec![replica(1, 7), replica(2, 8)];
        let topic = |(name, topic): (&String, &Arc<Topic>)| {
            let partition = format1::PlacementRecord {
                group: 1024,
                replicas: founders.clone(),
            };
            let record = format1::TopicRecord {
                id: topic.id,
                name: name.clone(),
                partitions: vec![partition],
                configs: topic.configs.clone(),
            };
            (name.clone(), record)
        };
        format1::State {
            image: format1::ImageRecord {
                cluster_id: image.cluster_id,
                brokers: image.brokers.clone(),
                topics: image.topics.iter().map(topic).collect(),
                topic_names: image.topic_names.clone(),
                coordinators: vec![founders.clone()],
                broker_configs: image.broker_configs.clone(),
                applied_index: image.applied_index,
            },
            next_group: new.next_group,
            next_producer_id: new.next_producer_id,
        }
    }

    #[test]
    fn the_bytes_of_a_checkpoint_are_fixed() {
        assert_eq!(hex(&encode(&state())), GOLDEN);
        assert_eq!(decode(&encode(&state())).expect("our own bytes"), state());
    }

    #[test]
    fn the_first_format_is_read_and_brought_up_to_date() {
        let config = bincode::config::standard();
        let body = bincode::serde::encode_to_vec(old_state(), config).expect("encodes");
        let bytes = [&[format1::FORMAT], &body[..]].concat();
        assert_eq!(hex(&bytes), GOLDEN_1);
        assert_eq!(decode(&bytes).expect("the first format"), state());
    }

    const GOLDEN: &str = "\
        02100000000000000000000000000000000302010109020168fb8423007f000001fb852300000202\
        08020168fb8423007f000001fb852300000101741000000000000000000000000000000005017401\
        fb0004020109020801020107020801016b0176011000000000000000000000000000000005017401\
        1002010902080102010702080006fb010408";
    const GOLDEN_1: &str = "\
        01100000000000000000000000000000000302010109020168fb8423007f000001fb852300000202\
        08020168fb8423007f000001fb852300000101741000000000000000000000000000000005017401\
        fb0004020107020801016b0176011000000000000000000000000000000005017401020107020800\
        06fb010408";
}
