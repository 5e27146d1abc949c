//! The brokers of a cluster, connections to them, and who leads what.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    FindCoordinatorRequest, MetadataRequest, MetadataResponse, TopicName,
};
use kafka_protocol::protocol::{Request, StrBytes};
use parking_lot::Mutex;

use super::connection::Connection;
use super::error::{ClientError, check};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Who knows the cluster answers at once; after this time another broker is asked.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// A cluster, reached through any of its brokers. Clones share connections.
#[derive(Clone)]
pub struct Cluster(Arc<Inner>);

struct Inner {
    bootstrap: Vec<String>,
    client_id: String,
    /// Addresses of brokers as the newest metadata says.
    brokers: Mutex<BTreeMap<i32, String>>,
    connections: Mutex<HashMap<String, Connection>>,
    /// Which address [`Cluster::any`] tries first: another one after each that did not help.
    first: AtomicUsize,
}

impl Cluster {
    /// A cluster by its bootstrap addresses, `HOST:PORT` separated by commas.
    pub fn new(bootstrap: &str, client_id: &str) -> Cluster {
        let addresses = bootstrap
            .split(',')
            .map(str::trim)
            .filter(|address| !address.is_empty());
        Cluster(Arc::new(Inner {
            bootstrap: addresses.map(str::to_owned).collect(),
            client_id: client_id.to_owned(),
            brokers: Mutex::new(BTreeMap::new()),
            connections: Mutex::new(HashMap::new()),
            first: AtomicUsize::new(0),
        }))
    }

    /// A connection to a given address, opened when there is none.
    pub async fn connection(&self, address: &str) -> Result<Connection, ClientError> {
        let open = self.0.connections.lock().get(address).cloned();
        if let Some(connection) = open.filter(|connection| !connection.is_lost()) {
            return Ok(connection);
        }
        let connection = Connection::connect(address, &self.0.client_id, CONNECT_TIMEOUT).await?;
        self.0
            .connections
            .lock()
            .insert(address.to_owned(), connection.clone());
        Ok(connection)
    }

    /// A connection to a broker of the newest metadata.
    pub async fn broker(&self, id: i32) -> Result<Connection, ClientError> {
        let address = self.0.brokers.lock().get(&id).cloned();
        let address = address.ok_or_else(|| ClientError::Unreachable {
            address: format!("broker {id}"),
            reason: "it is not in the cluster's metadata".to_owned(),
        })?;
        self.connection(&address).await
    }

    /// A connection to whichever broker answers first, in order of the bootstrap
    /// addresses, connected ones first, beginning with another one after each
    /// that was of no help.
    pub async fn any(&self) -> Result<Connection, ClientError> {
        let mut addresses = self.0.bootstrap.clone();
        let known: Vec<String> = self.0.brokers.lock().values().cloned().collect();
        addresses.extend(
            known
                .into_iter()
                .filter(|it| !self.0.bootstrap.contains(it)),
        );
        let first = self.0.first.load(Ordering::Relaxed) % addresses.len().max(1);
        addresses.rotate_left(first);
        // Whoever is connected answers sooner than one that may be gone.
        addresses.sort_by_key(|address| !self.is_connected(address));
        let mut failure = None;
        for address in &addresses {
            match self.connection(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| ClientError::Unreachable {
            address: "bootstrap".to_owned(),
            reason: "no address is given".to_owned(),
        }))
    }

    fn is_connected(&self, address: &str) -> bool {
        let connections = self.0.connections.lock();
        let open = connections.get(address);
        open.is_some_and(|connection| !connection.is_lost())
    }

    /// The broker that was asked did not help: the next request to any goes to another one.
    fn ask_another(&self) {
        self.0.first.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends a request to any broker.
    pub async fn call<R: Request>(&self, request: &R) -> Result<R::Response, ClientError> {
        self.any().await?.call(request, REQUEST_TIMEOUT).await
    }

    /// Metadata of some topics, or of all; remembers the brokers' addresses.
    pub async fn metadata(
        &self,
        topics: Option<&[&str]>,
        create: bool,
    ) -> Result<MetadataResponse, ClientError> {
        let topic = |name: &&str| MetadataRequestTopic::default().with_name(Some(topic_name(name)));
        let request = MetadataRequest::default()
            .with_topics(topics.map(|topics| topics.iter().map(topic).collect()))
            .with_allow_auto_topic_creation(create);
        let asked = self.any().await?.call(&request, METADATA_TIMEOUT).await;
        let answer = asked.inspect_err(|_| self.ask_another())?;
        let brokers = answer.brokers.iter();
        *self.0.brokers.lock() = brokers
            .map(|broker| (*broker.node_id, join(&broker.host, broker.port)))
            .collect();
        Ok(answer)
    }

    /// Leaders of a topic's partitions, by index; -1 where there is none.
    pub async fn leaders(&self, topic: &str, create: bool) -> Result<Vec<i32>, ClientError> {
        let answer = self.metadata(Some(&[topic]), create).await?;
        let found = answer
            .topics
            .iter()
            .find(|found| named(found.name.as_ref()) == topic);
        let found = found.ok_or_else(|| ClientError::Refused {
            about: topic.to_owned(),
            code: 3,
            message: None,
        })?;
        check(found.error_code, || topic.to_owned(), None)?;
        let mut leaders = vec![-1; found.partitions.len()];
        for partition in &found.partitions {
            if let Some(leader) = leaders.get_mut(partition.partition_index as usize) {
                *leader = *partition.leader_id;
            }
        }
        // A broker that is cut off knows less than the others.
        if leaders.contains(&-1) {
            self.ask_another();
        }
        Ok(leaders)
    }

    /// The broker that coordinates a group.
    pub async fn coordinator(&self, group: &str) -> Result<Connection, ClientError> {
        let about = || format!("coordinator of group {group}");
        self.find_coordinator(group, 0, about).await
    }

    /// The broker that coordinates the transactions of a transactional id.
    pub async fn transaction_coordinator(&self, id: &str) -> Result<Connection, ClientError> {
        let about = || format!("coordinator of transactional id {id}");
        self.find_coordinator(id, 1, about).await
    }

    async fn find_coordinator(
        &self,
        key: &str,
        key_type: i8,
        about: impl FnOnce() -> String,
    ) -> Result<Connection, ClientError> {
        let request = FindCoordinatorRequest::default()
            .with_key(text(key))
            .with_key_type(key_type);
        let asked = self.any().await?.call(&request, METADATA_TIMEOUT).await;
        let answer = asked.inspect_err(|_| self.ask_another())?;
        let message = answer
            .error_message
            .as_ref()
            .map(|message| message.as_str());
        check(answer.error_code, about, message)?;
        self.connection(&join(&answer.host, answer.port)).await
    }

    /// Repeats what fails for a passing reason until the time is over.
    pub async fn retry<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        within: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ClientError> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            match attempt().await {
                Err(error) if error.is_retriable() => {
                    if tokio::time::Instant::now() + RETRY_PAUSE > deadline {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }
}

/// A topic's name as messages carry it.
pub fn topic_name(name: &str) -> TopicName {
    TopicName(StrBytes::from_string(name.to_owned()))
}

/// A text as messages carry it.
pub fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn named(name: Option<&TopicName>) -> &str {
    name.map_or("", |name| name.as_str())
}

fn join(host: &StrBytes, port: i32) -> String {
    match host.contains(':') {
        true => format!("[{}]:{port}", host.as_str()),
        false => format!("{}:{port}", host.as_str()),
    }
}
