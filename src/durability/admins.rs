//! Clients that create and delete the same few topics, and ask brokers whether they are there.

use std::time::Duration;

use drave_durability::operation::{Answer, Asked, Object, Operation};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{CreateTopicsRequest, DeleteTopicsRequest, MetadataRequest};
use rand::RngExt;

use super::caller::{Caller, empty};
use crate::client::{ClientError, Cluster, Connection, check, topic_name};

/// Names that clients contend for.
const NAMES: usize = 3;
/// How long a broker may look for the controller before it answers that it can't.
const TIMEOUT_MS: i32 = 2_000;
/// How long the topics may take to go in the end.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// The topics, named after the one that records are written to.
fn names(topic: &str) -> Vec<String> {
    (1..=NAMES).map(|n| format!("{topic}-made-{n}")).collect()
}

/// Creates, deletes and looks until told to stop.
pub(super) async fn administer(mut caller: Caller, topic: String, replicas: i16) -> Vec<Operation> {
    let names = names(&topic);
    while caller.turn().await {
        let name = &names[caller.rng.random_range(0..names.len())];
        let what = caller.rng.random_range(0..3);
        // Whoever can't be reached was asked nothing.
        let Some((broker, connection)) = caller.any().await else {
            continue;
        };
        match what {
            0 => create(&mut caller, &connection, name, replicas).await,
            1 => delete(&mut caller, &connection, name).await,
            _ => look(&mut caller, &connection, name, broker).await,
        };
    }
    caller.operations()
}

async fn create(caller: &mut Caller, connection: &Connection, name: &str, replicas: i16) -> Answer {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(1)
        .with_replication_factor(replicas);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(TIMEOUT_MS);
    let object = Object::Topic(name.to_owned());
    let exists = ResponseError::TopicAlreadyExists.code();
    let told = |answer: kafka_protocol::messages::CreateTopicsResponse| {
        let made = answer.topics.first().ok_or_else(|| empty(connection))?;
        match made.error_code {
            code if code == exists => Ok(Answer::AlreadyExists),
            code => check(code, || name.to_owned(), None).map(|()| Answer::Done),
        }
    };
    caller
        .ask(connection, &request, &object, Asked::CreateTopic, told)
        .await
}

async fn delete(caller: &mut Caller, connection: &Connection, name: &str) -> Answer {
    let request = deletion(&[name.to_owned()]);
    let object = Object::Topic(name.to_owned());
    let told = |answer: kafka_protocol::messages::DeleteTopicsResponse| {
        let gone = answer.responses.first().ok_or_else(|| empty(connection))?;
        match gone.error_code {
            code if is_unknown(code) => Ok(Answer::UnknownTopic),
            code => check(code, || name.to_owned(), None).map(|()| Answer::Done),
        }
    };
    caller
        .ask(connection, &request, &object, Asked::DeleteTopic, told)
        .await
}

async fn look(caller: &mut Caller, connection: &Connection, name: &str, broker: i32) -> Answer {
    let topic = MetadataRequestTopic::default().with_name(Some(topic_name(name)));
    let request = MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(false);
    let object = Object::Topic(name.to_owned());
    let told = |answer: kafka_protocol::messages::MetadataResponse| {
        let found = answer.topics.first().ok_or_else(|| empty(connection))?;
        match found.error_code {
            code if is_unknown(code) => Ok(Answer::Exists(false)),
            // Without a leader it is there all the same.
            code if code == ResponseError::LeaderNotAvailable.code() => Ok(Answer::Exists(true)),
            code => check(code, || name.to_owned(), None).map(|()| Answer::Exists(true)),
        }
    };
    let asked = Asked::TopicExists { broker };
    caller.ask(connection, &request, &object, asked, told).await
}

fn deletion(names: &[String]) -> DeleteTopicsRequest {
    let named = |name: &String| DeleteTopicState::default().with_name(Some(topic_name(name)));
    DeleteTopicsRequest::default()
        .with_topics(names.iter().map(named).collect())
        .with_topic_names(names.iter().map(|name| topic_name(name)).collect())
        .with_timeout_ms(TIMEOUT_MS)
}

fn is_unknown(code: i16) -> bool {
    code == ResponseError::UnknownTopicOrPartition.code()
        || code == ResponseError::UnknownTopicId.code()
}

/// Deletes what is left of the topics.
pub(super) async fn remove(cluster: &Cluster, topic: &str) -> Result<(), ClientError> {
    let request = deletion(&names(topic));
    let attempt = || async {
        let answer = cluster.call(&request).await?;
        for gone in answer.responses {
            if !is_unknown(gone.error_code) {
                check(gone.error_code, || "a topic's deletion".to_owned(), None)?;
            }
        }
        Ok(())
    };
    cluster.retry(REMOVED_WITHIN, attempt).await
}
