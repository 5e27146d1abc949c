//! The state machine of the metadata group: commands in, [`Image`]s out.
//!
//! Pure: no clock, no random source, no I/O, and no config table either (what a
//! config may be changes between versions, so it is checked before a command is
//! proposed). Owned by the group's apply task; readers get whole images through
//! a watch channel, once per batch of applied entries.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use drave_raft::{Applied, MachineError, ReplicaId, StateMachine};
use kafka_protocol::ResponseError;
use tokio::sync::watch;
use tracing::error;
use uuid::Uuid;

use super::checkpoint::{self, State};
use super::command::{
    COMMAND_TAG, Command, ConfigResource, Refusal, Reply, TopicCreated, TopicToCreate, decode,
};
use super::image::{BrokerRegistration, COORDINATOR_GROUP_MIN, Image, Placement, Topic};
use super::names;

/// The metadata group's state machine.
pub struct MetadataMachine {
    state: State,
    /// Existing topics by [`names::collision_key`]; follows from the image.
    collisions: BTreeMap<String, String>,
    published: watch::Sender<Arc<Image>>,
}

impl MetadataMachine {
    /// An empty machine that publishes to `published`.
    pub fn new(published: watch::Sender<Arc<Image>>) -> Self {
        Self {
            state: State::default(),
            collisions: BTreeMap::new(),
            published,
        }
    }

    fn image(&mut self) -> &mut Image {
        Arc::make_mut(&mut self.state.image)
    }

    fn execute(&mut self, command: Command) -> Reply {
        let outcome = match command {
            Command::FormCluster { cluster_id } => self.form_cluster(cluster_id),
            Command::RegisterBroker(registration) => self.register(registration),
            Command::FenceBroker {
                broker,
                incarnation,
            } => self.fence(broker, incarnation, true),
            Command::UnfenceBroker {
                broker,
                incarnation,
            } => self.fence(broker, incarnation, false),
            Command::CreateTopics(topics) => {
                return Reply::Topics(topics.into_iter().map(|t| self.create_topic(t)).collect());
            }
            Command::DeleteTopic { id } => self.delete_topic(id),
            Command::CreatePartitions {
                topic,
                first,
                placements,
            } => self.create_partitions(topic, first, placements),
            Command::AlterConfigs {
                resource,
                changes,
                replace_all,
            } => self.alter_configs(resource, changes, replace_all),
            Command::AllocateProducerIds { count } => return self.allocate_producer_ids(count),
            Command::CreateCoordinators { replicas } => self.create_coordinators(replicas),
        };
        match outcome {
            Ok(()) => Reply::Done,
            Err(refusal) => Reply::Refused(refusal),
        }
    }

    fn form_cluster(&mut self, cluster_id: Uuid) -> Result<(), Refusal> {
        let image = self.image();
        if image.cluster_id == cluster_id && !cluster_id.is_nil() {
            return Ok(());
        }
        if !image.cluster_id.is_nil() || cluster_id.is_nil() {
            return refuse(
                ResponseError::InvalidRequest,
                "the cluster has its id already",
            );
        }
        image.cluster_id = cluster_id;
        Ok(())
    }

    fn register(&mut self, mut registration: BrokerRegistration) -> Result<(), Refusal> {
        let broker = registration.replica.broker;
        registration.fenced = false;
        let replica = registration.replica;
        // Incarnations have no order. A stale registration that comes late is
        // replaced again, by the process that it does not show as it is.
        let before = self.image().brokers.insert(broker, Arc::new(registration));
        if before.is_none_or(|before| before.replica != replica) {
            self.image().update_placements();
        }
        Ok(())
    }

    fn fence(&mut self, broker: u32, incarnation: u64, fenced: bool) -> Result<(), Refusal> {
        let Some(registration) = self.image().brokers.get_mut(&broker) else {
            return refuse(
                ResponseError::BrokerIdNotRegistered,
                format!("broker {broker} is not registered"),
            );
        };
        if registration.incarnation != incarnation {
            return refuse(
                ResponseError::StaleBrokerEpoch,
                format!("another process of broker {broker} has registered"),
            );
        }
        if registration.fenced != fenced {
            Arc::make_mut(registration).fenced = fenced;
        }
        Ok(())
    }

    fn create_topic(&mut self, topic: TopicToCreate) -> Result<TopicCreated, Refusal> {
        let created = TopicCreated {
            id: topic.id,
            partitions: topic.placements.len() as u32,
            replication_factor: topic.placements.first().map_or(0, |r| r.len() as u16),
        };
        if let Some(existing) = self.state.image.topics.get(&topic.name) {
            if existing.id == topic.id {
                return Ok(created); // The proposer did not hear of its first success.
            }
            return refuse(
                ResponseError::TopicAlreadyExists,
                format!("Topic '{}' already exists.", topic.name),
            );
        }
        if let Some(fault) = names::topic_name_fault(&topic.name) {
            return refuse(ResponseError::InvalidTopicException, fault);
        }
        let collision_key = names::collision_key(&topic.name);
        if let Some(other) = self.collisions.get(&collision_key) {
            return refuse(
                ResponseError::InvalidTopicException,
                format!(
                    "Topic '{}' collides with existing topic '{other}'.",
                    topic.name
                ),
            );
        }
        if topic.id.is_nil() || self.state.image.topic_names.contains_key(&topic.id) {
            return refuse(ResponseError::InvalidRequest, "the topic id is taken");
        }
        check_placements(&topic.placements)?;
        if topic.placements.is_empty() {
            return refuse(
                ResponseError::InvalidPartitions,
                "a topic has at least one partition",
            );
        }
        let partitions = self.place(topic.placements);
        let image = self.image();
        image.topic_names.insert(topic.id, topic.name.clone());
        let configs = topic.configs.into_iter().collect();
        let topic = Topic {
            id: topic.id,
            name: topic.name,
            partitions,
            configs,
        };
        let name = topic.name.clone();
        image.topics.insert(name.clone(), Arc::new(topic));
        self.collisions.insert(collision_key, name);
        Ok(created)
    }

    /// Gives every new partition its group.
    fn place(&mut self, placements: Vec<Vec<ReplicaId>>) -> Vec<Placement> {
        let first = self.state.next_group;
        self.state.next_group += placements.len() as u64;
        self.placed(first, placements)
    }

    /// New groups. A broker may have got another directory since they were planned.
    fn placed(&self, first: u64, placements: Vec<Vec<ReplicaId>>) -> Vec<Placement> {
        let placed = (first..).zip(placements).map(|(group, replicas)| {
            let mut placement = Placement::new(group, replicas);
            placement.update(&self.state.image.brokers);
            placement
        });
        placed.collect()
    }

    fn delete_topic(&mut self, id: Uuid) -> Result<(), Refusal> {
        let image = self.image();
        let Some(name) = image.topic_names.remove(&id) else {
            return refuse(
                ResponseError::UnknownTopicId,
                "this topic id does not exist",
            );
        };
        image.topics.remove(&name);
        self.collisions.remove(&names::collision_key(&name));
        Ok(())
    }

    fn create_partitions(
        &mut self,
        topic: Uuid,
        first: u32,
        placements: Vec<Vec<ReplicaId>>,
    ) -> Result<(), Refusal> {
        let image = &self.state.image;
        let existing = image
            .topic_names
            .get(&topic)
            .and_then(|name| image.topics.get(name));
        let Some(existing) = existing.cloned() else {
            return refuse(
                ResponseError::UnknownTopicId,
                "this topic id does not exist",
            );
        };
        let known = existing
            .partitions
            .iter()
            .skip(first as usize)
            .map(Placement::founders);
        if !placements.is_empty()
            && existing.partitions.len() == first as usize + placements.len()
            && known.eq(placements.iter().map(Vec::as_slice))
        {
            return Ok(()); // The proposer did not hear of its first success.
        }
        if existing.partitions.len() != first as usize {
            return refuse(
                ResponseError::InvalidPartitions,
                format!("the topic now has {} partitions", existing.partitions.len()),
            );
        }
        check_placements(&placements)?;
        let new = self.place(placements);
        if let Some(topic) = self.image().topics.get_mut(&existing.name) {
            Arc::make_mut(topic).partitions.extend(new);
        }
        Ok(())
    }

    fn alter_configs(
        &mut self,
        resource: ConfigResource,
        changes: Vec<(String, Option<String>)>,
        replace_all: bool,
    ) -> Result<(), Refusal> {
        let image = self.image();
        let configs = match resource {
            ConfigResource::Topic(id) => {
                let name = image.topic_names.get(&id);
                match name.and_then(|name| image.topics.get_mut(name)) {
                    Some(topic) => &mut Arc::make_mut(topic).configs,
                    None => {
                        return refuse(ResponseError::UnknownTopicId, "the topic does not exist");
                    }
                }
            }
            ConfigResource::Broker(name) => image.broker_configs.entry(name).or_default(),
        };
        if replace_all {
            configs.clear();
        }
        for (key, value) in changes {
            match value {
                Some(value) => configs.insert(key, value),
                None => configs.remove(&key),
            };
        }
        image
            .broker_configs
            .retain(|_, configs| !configs.is_empty());
        Ok(())
    }

    fn allocate_producer_ids(&mut self, count: u32) -> Reply {
        let first = self.state.next_producer_id;
        match first.checked_add(i64::from(count)) {
            Some(next) if count > 0 => {
                self.state.next_producer_id = next;
                Reply::ProducerIds { first, count }
            }
            _ => Reply::Refused(Refusal::new(
                ResponseError::InvalidRequest,
                format!("no block of {count} producer ids can be given"),
            )),
        }
    }

    fn create_coordinators(&mut self, replicas: Vec<Vec<ReplicaId>>) -> Result<(), Refusal> {
        check_placements(&replicas)?;
        if !self.state.image.coordinators.is_empty() || replicas.is_empty() {
            return refuse(
                ResponseError::InvalidRequest,
                "coordinators are placed once",
            );
        }
        self.image().coordinators = self.placed(COORDINATOR_GROUP_MIN, replicas);
        Ok(())
    }

    fn publish(&self) {
        self.published.send_replace(self.state.image.clone());
    }
}

fn refuse<T>(error: ResponseError, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(error, message))
}

/// Every partition needs replicas, and a broker can hold only one of them.
fn check_placements(placements: &[Vec<ReplicaId>]) -> Result<(), Refusal> {
    for replicas in placements {
        let brokers: BTreeSet<u32> = replicas.iter().map(|replica| replica.broker).collect();
        if replicas.is_empty() || brokers.len() != replicas.len() {
            return refuse(
                ResponseError::InvalidReplicaAssignment,
                "a partition needs replicas on different brokers",
            );
        }
    }
    Ok(())
}

impl StateMachine for MetadataMachine {
    fn apply(&mut self, entry: Applied<'_>) -> Box<dyn Any + Send + Sync> {
        let reply = match entry.command {
            None => Reply::Done,
            Some(command) if command.tag == COMMAND_TAG => match decode(&command.payload) {
                Ok(command) => self.execute(command),
                Err(error) => cannot_follow(entry.index, &error.to_string()),
            },
            Some(command) => cannot_follow(entry.index, &format!("unknown tag {}", command.tag)),
        };
        self.image().applied_index = entry.index;
        Box::new(reply)
    }

    fn applied_batch(&mut self) {
        self.publish();
    }

    fn checkpoint(&self) -> Bytes {
        checkpoint::encode(&self.state)
    }

    fn restore(&mut self, index: u64, _term: u64, bytes: &[u8]) -> Result<(), MachineError> {
        let mut state = checkpoint::decode(bytes)?;
        Arc::make_mut(&mut state.image).applied_index = index;
        self.collisions = (state.image.topics.keys())
            .map(|name| (names::collision_key(name), name.clone()))
            .collect();
        self.state = state;
        self.publish();
        Ok(())
    }
}

/// An entry that only a newer version understands. Going on without it would
/// make this replica disagree with the others, so the process ends.
fn cannot_follow(index: u64, reason: &str) -> ! {
    error!(
        index,
        reason, "metadata entry can't be applied by this version of drave, stopping"
    );
    std::process::abort()
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
