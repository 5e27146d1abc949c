//! How a change reaches the controller: the service that brokers call, and the
//! caller that follows leadership until its deadline.
//!
//! A request may arrive twice, when its first answer was lost. Every request is
//! therefore safe to repeat: ids are made by the caller, and what is repeated
//! is recognised by the machine or, for deletes, here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_raft::{CallError, Group, ProposeError, RaftNode};
use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};
use tokio::sync::MutexGuard;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::command::{
    COMMAND_TAG, Command, PARTITIONS_PER_COMMAND_MAX, Refusal, Reply, decode, encode,
};
use super::image::METADATA_GROUP;
use super::planning::{self, NewPartitions, NewTopic};
use super::spread::spread;
use super::{Metadata, SubmitError, placement};

/// Number of the service among those of [`RaftNode::serve`].
pub const METADATA_SERVICE: u8 = 1;
/// A controller that has not answered for this long is asked again, or its successor.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between attempts.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(25);

/// What a broker asks the controller. Sent between brokers: never reorder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// A change in which everything is decided.
    Submit(Command),
    /// New topics, to be placed.
    CreateTopics {
        /// The topics.
        topics: Vec<NewTopic>,
        /// Only say what would be answered.
        validate_only: bool,
    },
    /// New partitions, to be placed.
    CreatePartitions {
        /// The partitions.
        partitions: NewPartitions,
        /// Only say what would be answered.
        validate_only: bool,
    },
    /// How far the metadata is: everything that was committed before the request.
    CatchUp,
}

impl Request {
    /// Whether a client waits for it, who may ask any broker next.
    fn is_from_client(&self) -> bool {
        match self {
            Request::Submit(command) => matches!(
                command,
                Command::DeleteTopic { .. } | Command::AlterConfigs { .. }
            ),
            Request::CreateTopics { validate_only, .. }
            | Request::CreatePartitions { validate_only, .. } => !validate_only,
            Request::CatchUp => false,
        }
    }
}

/// What the controller answers. Sent between brokers: never reorder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Answer {
    /// Applied at `index`, or decided without an entry.
    Reply { index: u64, reply: Reply },
    /// Nothing was done: ask another broker.
    NotLeader,
    /// It may have been done.
    Unknown,
}

/// Answers other brokers' requests from now on.
pub fn serve(metadata: &Arc<Metadata>) {
    let weak = Arc::downgrade(metadata);
    let raft: &RaftNode = &metadata.raft;
    raft.serve(
        METADATA_SERVICE,
        Arc::new(move |from, bytes: Bytes| {
            let metadata = weak.upgrade();
            Box::pin(async move {
                let answer = match (metadata, decode::<Request>(&bytes)) {
                    (None, _) => Answer::NotLeader,
                    (Some(metadata), Ok(request)) => {
                        answer(&metadata, request, ATTEMPT_TIMEOUT).await
                    }
                    (Some(_), Err(error)) => {
                        warn!(broker = %from, %error, "metadata request refused");
                        let refusal =
                            Refusal::new(ResponseError::InvalidRequest, error.to_string());
                        Answer::Reply {
                            index: 0,
                            reply: Reply::Refused(refusal),
                        }
                    }
                };
                encode(&answer)
            })
        }),
    );
}

/// Asks the controller, and whoever succeeds it, until `timeout` has passed.
/// On success this broker's image shows what was changed, and what a client
/// changed shows on every live broker.
pub async fn ask(
    metadata: &Metadata,
    request: Request,
    timeout: Duration,
) -> Result<Reply, SubmitError> {
    let deadline = Instant::now() + timeout;
    let mut uncertain = false;
    loop {
        let attempt = ATTEMPT_TIMEOUT.min(deadline.saturating_duration_since(Instant::now()));
        match attempt_once(metadata, &request, attempt).await {
            Answer::Reply { index, reply } => {
                let shown = metadata.wait_applied(index, deadline).await;
                // A reader that lags this far is told what holds, only a little early.
                if !shown && matches!(request, Request::CatchUp) {
                    return Err(SubmitError::NoController);
                }
                if request.is_from_client() {
                    spread(metadata, index, deadline).await;
                }
                return Ok(if uncertain {
                    settle(metadata, &request, reply)
                } else {
                    reply
                });
            }
            Answer::Unknown => uncertain = true,
            Answer::NotLeader => {}
        }
        if Instant::now() + ATTEMPT_PAUSE >= deadline {
            return Err(match uncertain {
                true => SubmitError::Unknown,
                false => SubmitError::NoController,
            });
        }
        sleep(ATTEMPT_PAUSE).await;
    }
}

async fn attempt_once(metadata: &Metadata, request: &Request, timeout: Duration) -> Answer {
    let Some(leadership) = metadata.raft.leadership(METADATA_GROUP) else {
        return Answer::NotLeader;
    };
    if leadership.leader == metadata.raft.replica() {
        return answer(metadata, request.clone(), timeout).await;
    }
    let broker = leadership.leader.broker;
    let called = metadata
        .raft
        .call(broker, METADATA_SERVICE, encode(request), timeout)
        .await;
    match called {
        Ok(bytes) => decode(&bytes).unwrap_or_else(|error| {
            warn!(broker, %error, "metadata answer can't be read");
            Answer::Unknown
        }),
        Err(CallError::TimedOut(_) | CallError::Lost(_)) => Answer::Unknown,
        Err(_) => Answer::NotLeader,
    }
}

/// A refusal after an earlier attempt with an unknown outcome may only mean
/// that the earlier one succeeded.
fn settle(metadata: &Metadata, request: &Request, reply: Reply) -> Reply {
    let done_before = match (request, &reply) {
        (Request::Submit(Command::DeleteTopic { .. }), Reply::Refused(refusal)) => {
            refusal.code == ResponseError::UnknownTopicId.code()
        }
        (Request::CreatePartitions { partitions, .. }, Reply::Refused(refusal)) => {
            let image = metadata.image();
            let name = image.topic_names.get(&partitions.topic);
            let topic = name.and_then(|name| image.topics.get(name));
            refusal.code == ResponseError::InvalidPartitions.code()
                && topic.is_some_and(|t| t.partitions.len() == partitions.total as usize)
        }
        _ => false,
    };
    if done_before { Reply::Done } else { reply }
}

/// What the controller does with a request.
async fn answer(metadata: &Metadata, request: Request, timeout: Duration) -> Answer {
    let Some(group) = metadata.leading() else {
        return Answer::NotLeader;
    };
    match request {
        Request::Submit(command) => propose(&group, &command, timeout).await,
        Request::CreateTopics {
            topics,
            validate_only,
        } => {
            let Ok(_placing) = placing(metadata, timeout).await else {
                return Answer::NotLeader;
            };
            if catch_up(metadata, &group, timeout).await.is_none() {
                return Answer::NotLeader;
            }
            create_topics(metadata, &group, topics, validate_only, timeout).await
        }
        Request::CreatePartitions {
            partitions,
            validate_only,
        } => {
            let Ok(_placing) = placing(metadata, timeout).await else {
                return Answer::NotLeader;
            };
            if catch_up(metadata, &group, timeout).await.is_none() {
                return Answer::NotLeader;
            }
            match planning::plan_partitions(&metadata.image(), &partitions) {
                Err(refusal) => Answer::Reply {
                    index: 0,
                    reply: Reply::Refused(refusal),
                },
                Ok(_) if validate_only => Answer::Reply {
                    index: 0,
                    reply: Reply::Done,
                },
                Ok(command) => propose_and_see(metadata, &group, &command, timeout).await,
            }
        }
        Request::CatchUp => match catch_up(metadata, &group, timeout).await {
            Some(index) => Answer::Reply {
                index,
                reply: Reply::Done,
            },
            None => Answer::NotLeader,
        },
    }
}

/// Waits until a quorum has said that this broker still leads, and its image
/// shows everything that was committed before; up to where. What is refused from
/// an image without that may have been overtaken: by another leader that this
/// one does not know of yet.
async fn catch_up(metadata: &Metadata, group: &Group, timeout: Duration) -> Option<u64> {
    let deadline = Instant::now() + timeout;
    group.read_barrier(timeout).await.ok()?;
    let index = group.status().applied?;
    let shown = metadata.wait_applied(index, deadline).await;
    shown.then_some(index)
}

/// The turn to place replicas.
async fn placing(metadata: &Metadata, timeout: Duration) -> Result<MutexGuard<'_, ()>, Elapsed> {
    tokio::time::timeout(timeout, metadata.placing.lock()).await
}

async fn create_topics(
    metadata: &Metadata,
    group: &Group,
    topics: Vec<NewTopic>,
    validate_only: bool,
    timeout: Duration,
) -> Answer {
    let image = metadata.image();
    let mut candidates = placement::candidates(&image);
    let mut accepted = Vec::new();
    let mut names = Vec::new();
    let mut partitions = 0;
    let mut outcomes = Vec::with_capacity(topics.len());
    for topic in topics {
        let planned = planning::plan_topic(&image, &mut candidates, topic).and_then(|topic| {
            partitions += topic.placements.len();
            if partitions > PARTITIONS_PER_COMMAND_MAX {
                return Err(Refusal::new(
                    ResponseError::PolicyViolation,
                    format!(
                        "At most {PARTITIONS_PER_COMMAND_MAX} partitions can be created at once."
                    ),
                ));
            }
            Ok(topic)
        });
        outcomes.push(planned.and_then(|topic| {
            if validate_only {
                let valid = planning::validate_topic(&image, &names, &topic)?;
                names.push(topic.name);
                return Ok(Some(valid));
            }
            accepted.push(topic);
            Ok(None)
        }));
    }
    if accepted.is_empty() {
        let outcomes = outcomes.into_iter().filter_map(Result::transpose).collect();
        return Answer::Reply {
            index: 0,
            reply: Reply::Topics(outcomes),
        };
    }
    let command = Command::CreateTopics(accepted);
    match propose_and_see(metadata, group, &command, timeout).await {
        Answer::Reply {
            index,
            reply: Reply::Topics(created),
        } => {
            let mut created = created.into_iter();
            let outcomes = outcomes.into_iter().filter_map(|outcome| match outcome {
                Ok(Some(valid)) => Some(Ok(valid)),
                Ok(None) => created.next(),
                Err(refusal) => Some(Err(refusal)),
            });
            Answer::Reply {
                index,
                reply: Reply::Topics(outcomes.collect()),
            }
        }
        other => other,
    }
}

/// Proposes, and waits until the image shows it, so that the next plan counts it.
async fn propose_and_see(
    metadata: &Metadata,
    group: &Group,
    command: &Command,
    timeout: Duration,
) -> Answer {
    let deadline = Instant::now() + timeout;
    let answer = propose(group, command, timeout).await;
    if let Answer::Reply { index, .. } = &answer {
        metadata.wait_applied(*index, deadline).await;
    }
    answer
}

async fn propose(group: &Group, command: &Command, timeout: Duration) -> Answer {
    let command = drave_raft::Command {
        tag: COMMAND_TAG,
        stamp: now_ms(),
        payload: encode(command),
    };
    match group.propose(command, timeout).await {
        Ok(proposed) => match proposed.reply.downcast::<Reply>() {
            Ok(reply) => Answer::Reply {
                index: proposed.index,
                reply: *reply,
            },
            Err(_) => Answer::Unknown,
        },
        Err(ProposeError::NotLeader { .. }) => Answer::NotLeader,
        // A replica that is closed with the change under way leaves it to its successor.
        Err(ProposeError::Unknown | ProposeError::Closed) => Answer::Unknown,
    }
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
