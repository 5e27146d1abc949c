//! What the controller decides before it proposes: which replicas new topics
//! and partitions get. Pure functions of an image.

use drave_raft::ReplicaId;
use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::{Command, PARTITIONS_PER_COMMAND_MAX, Refusal, TopicCreated, TopicToCreate};
use super::image::Image;
use super::names;
use super::placement::{self, Candidate, REPLICATION_FACTOR_DEFAULT_MAX};

/// A topic as it is asked for. Names, counts and configs are not yet trusted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Its future id, made by whoever asks.
    pub id: Uuid,
    /// How many partitions, and where.
    pub partitions: Wanted,
    /// Config overrides, checked by whoever asks.
    pub configs: Vec<(String, String)>,
}

/// How many partitions, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Wanted {
    /// Placed by the controller.
    Count {
        /// How many.
        partitions: u32,
        /// Replicas of each; 0: three, or as many as there are brokers.
        replication_factor: u16,
    },
    /// Brokers of each partition, the preferred leader first.
    Assigned(Vec<Vec<u32>>),
}

/// Partitions to add, as they are asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewPartitions {
    /// Id of the topic.
    pub topic: Uuid,
    /// How many partitions it is to have in all.
    pub total: u32,
    /// Brokers of each new one; `None`: placed by the controller.
    pub assigned: Option<Vec<Vec<u32>>>,
}

/// Decides on new topics; `candidates` carry the load of those decided before.
pub fn plan_topic(
    image: &Image,
    candidates: &mut [Candidate],
    topic: NewTopic,
) -> Result<TopicToCreate, Refusal> {
    let NewTopic {
        name,
        id,
        partitions,
        configs,
    } = topic;
    if let Some(fault) = names::topic_name_fault(&name) {
        return Err(Refusal::new(ResponseError::InvalidTopicException, fault));
    }
    if let Some(existing) = image.topics.get(&name) {
        if existing.id != id {
            return Err(Refusal::new(
                ResponseError::TopicAlreadyExists,
                format!("Topic '{name}' already exists."),
            ));
        }
        // The same request once more: the machine answers as it did before.
        let placements = existing
            .partitions
            .iter()
            .map(|p| p.founders().to_vec())
            .collect();
        return Ok(TopicToCreate {
            name,
            id,
            placements,
            configs,
        });
    }
    let placements = match partitions {
        Wanted::Count {
            partitions,
            replication_factor,
        } => {
            check_count(partitions as usize)?;
            let factor = match usize::from(replication_factor) {
                0 => candidates.len().clamp(1, REPLICATION_FACTOR_DEFAULT_MAX),
                factor => factor,
            };
            placement::place(candidates, partitions as usize, factor)?
        }
        Wanted::Assigned(brokers) => {
            check_count(brokers.len())?;
            let placements = placement::assign(image, &brokers)?;
            count_load(candidates, &placements);
            placements
        }
    };
    Ok(TopicToCreate {
        name,
        id,
        placements,
        configs,
    })
}

/// What a topic would be answered with, for requests that only validate.
/// `planned` are the topics that the same request creates before it.
pub fn validate_topic(
    image: &Image,
    planned: &[String],
    topic: &TopicToCreate,
) -> Result<TopicCreated, Refusal> {
    let key = names::collision_key(&topic.name);
    let mut others = image.topics.keys().chain(planned);
    if let Some(other) = others.find(|other| names::collision_key(other) == key) {
        return Err(Refusal::new(
            ResponseError::InvalidTopicException,
            format!(
                "Topic '{}' collides with existing topic '{other}'.",
                topic.name
            ),
        ));
    }
    Ok(TopicCreated {
        id: topic.id,
        partitions: topic.placements.len() as u32,
        replication_factor: topic.placements.first().map_or(0, |r| r.len() as u16),
    })
}

/// Decides on partitions to add.
pub fn plan_partitions(image: &Image, new: &NewPartitions) -> Result<Command, Refusal> {
    let name = image.topic_names.get(&new.topic);
    let Some(topic) = name.and_then(|name| image.topics.get(name)) else {
        return Err(Refusal::new(
            ResponseError::UnknownTopicOrPartition,
            "This server does not host this topic.",
        ));
    };
    let existing = topic.partitions.len();
    let total = new.total as usize;
    if total <= existing {
        return Err(Refusal::new(
            ResponseError::InvalidPartitions,
            format!(
                "The topic {} currently has {existing} partition(s); {total} would not be an \
                 increase.",
                topic.name
            ),
        ));
    }
    let added = total - existing;
    check_count(added)?;
    let factor = topic.partitions.first().map_or(1, |p| p.replicas.len());
    let placements = match &new.assigned {
        None => placement::place(&mut placement::candidates(image), added, factor)?,
        Some(brokers) => {
            let refuse = |message: String| {
                Err(Refusal::new(
                    ResponseError::InvalidReplicaAssignment,
                    message,
                ))
            };
            if brokers.len() != added {
                return refuse(format!(
                    "{added} partition(s) are added, but {} are assigned to brokers",
                    brokers.len()
                ));
            }
            if brokers.iter().any(|brokers| brokers.len() != factor) {
                return refuse(format!("partitions of this topic have {factor} replicas"));
            }
            placement::assign(image, brokers)?
        }
    };
    Ok(Command::CreatePartitions {
        topic: topic.id,
        first: existing as u32,
        placements,
    })
}

fn check_count(partitions: usize) -> Result<(), Refusal> {
    if partitions == 0 {
        return Err(Refusal::new(
            ResponseError::InvalidPartitions,
            "Number of partitions must be larger than 0.",
        ));
    }
    if partitions > PARTITIONS_PER_COMMAND_MAX {
        return Err(Refusal::new(
            ResponseError::PolicyViolation,
            format!("At most {PARTITIONS_PER_COMMAND_MAX} partitions can be created at once."),
        ));
    }
    Ok(())
}

fn count_load(candidates: &mut [Candidate], placements: &[Vec<ReplicaId>]) {
    for replicas in placements {
        for (position, replica) in replicas.iter().enumerate() {
            if let Some(candidate) = candidates.iter_mut().find(|c| c.replica == *replica) {
                candidate.leaders += usize::from(position == 0);
                candidate.replicas += 1;
            }
        }
    }
}
