//! The topics as requests look them up: by name or by id, without waiting.
//!
//! Immutable once made, except that a partition's replica appears in its slot
//! when it is open. Made anew by the manager when the metadata changes; topics
//! that did not change are kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use drave_raft::{GroupId, ReplicaId};
use uuid::Uuid;

use super::Partition;
use crate::config::Config;
use crate::metadata::configs::TopicSettings;
use crate::metadata::image::{Image, Topic};

/// A topic.
pub struct TopicHandle {
    /// What it was made from.
    pub topic: Arc<Topic>,
    /// What its configs come to.
    pub settings: TopicSettings,
    /// Its partitions, by number.
    pub partitions: Vec<Arc<PartitionSlot>>,
}

impl TopicHandle {
    /// The partition with this number.
    pub fn partition(&self, index: i32) -> Option<&Arc<PartitionSlot>> {
        self.partitions.get(usize::try_from(index).ok()?)
    }
}

/// A partition, here or elsewhere.
pub struct PartitionSlot {
    /// Its Raft group.
    pub group: GroupId,
    /// Where its replicas are placed.
    pub replicas: Vec<ReplicaId>,
    pub(super) replica: ArcSwapOption<Partition>,
}

impl PartitionSlot {
    /// The replica that is open on this broker.
    pub fn replica(&self) -> Option<Arc<Partition>> {
        self.replica.load_full()
    }
}

/// All topics.
#[derive(Default)]
pub struct Registry {
    broker_configs: BTreeMap<String, BTreeMap<String, String>>,
    by_name: HashMap<String, Arc<TopicHandle>>,
    by_id: HashMap<Uuid, Arc<TopicHandle>>,
}

impl Registry {
    /// The topic of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<TopicHandle>> {
        self.by_name.get(name)
    }

    /// The topic with this id.
    pub fn by_id(&self, id: &Uuid) -> Option<&Arc<TopicHandle>> {
        self.by_id.get(id)
    }

    /// Every topic.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<TopicHandle>> {
        self.by_id.values()
    }

    /// The registry of a newer image; `open` are the replicas on this broker.
    pub(super) fn updated(
        &self,
        image: &Image,
        config: &Config,
        open: &HashMap<GroupId, Arc<Partition>>,
    ) -> Registry {
        let same_configs = self.broker_configs == image.broker_configs;
        let mut registry = Registry {
            broker_configs: image.broker_configs.clone(),
            ..Registry::default()
        };
        for (name, topic) in &image.topics {
            let known = self.by_name.get(name);
            let handle = match known.filter(|known| Arc::ptr_eq(&known.topic, topic)) {
                Some(known) if same_configs => Arc::clone(known),
                _ => Arc::new(TopicHandle {
                    topic: Arc::clone(topic),
                    settings: TopicSettings::of(topic, image, config),
                    partitions: slots(topic, open),
                }),
            };
            registry.by_id.insert(topic.id, Arc::clone(&handle));
            registry.by_name.insert(name.clone(), handle);
        }
        registry
    }
}

fn slots(topic: &Topic, open: &HashMap<GroupId, Arc<Partition>>) -> Vec<Arc<PartitionSlot>> {
    let slot = |placement: &crate::metadata::image::Placement| {
        let group = GroupId(placement.group);
        Arc::new(PartitionSlot {
            group,
            replicas: placement.replicas.clone(),
            replica: ArcSwapOption::from(open.get(&group).cloned()),
        })
    };
    topic.partitions.iter().map(slot).collect()
}
