//! The metadata group: topics, placement, brokers and their liveness, configs,
//! producer-id blocks. What ZooKeeper or KRaft is to Kafka.
//!
//! Every broker holds a replica of the group (a voter or a learner) and serves
//! reads from its own [`Image`]. [`Metadata`] is the handle to all of it: the
//! image, and changes, which go to the group's leader, the controller.
//!
//! The tasks that [`Metadata::start`] runs: [`bootstrap`] opens the group and
//! forms a new cluster, [`registration`] makes this broker known, and, while
//! this broker leads the group, [`controller`] and [`membership`]. [`reconcile`]
//! makes the groups that this broker leads follow their placement.

pub mod bootstrap;
mod checkpoint;
pub mod command;
pub mod configs;
pub mod controller;
#[cfg(test)]
mod fuzz_tests;
pub mod image;
pub mod machine;
pub mod membership;
pub mod names;
pub mod placement;
pub mod planning;
mod producer_ids;
pub mod progress;
mod reconcile;
pub mod registration;
pub mod remote;
mod replacement;
mod spread;
pub mod view;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drave_raft::{Group, RaftNode};
use drave_storage::SharedStore;
use kafka_protocol::ResponseError;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use command::{Command, Refusal, Reply};
use image::{Image, METADATA_GROUP};
use planning::{NewPartitions, NewTopic};
use remote::Request;

/// How long a change is tried unless the caller says otherwise.
pub const SUBMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// What this broker says of itself, and what its configuration says of the cluster.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host and port that clients are told.
    pub advertised: (String, u16),
    /// Address of this broker's peer listener, as other brokers reach it.
    pub peer_address: SocketAddr,
    /// This broker's rack.
    pub rack: Option<String>,
    /// Brokers of the static configuration, this one too.
    pub peers: Vec<(u32, SocketAddr)>,
    /// Coordinator groups that a new cluster gets.
    pub coordinator_groups: usize,
}

/// Called once, off the async threads, when this broker learns its cluster's
/// id: persists it.
pub type ClusterFormed = Box<dyn FnOnce(Uuid) -> anyhow::Result<()> + Send>;

/// Why it is not known that a change was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Nothing was changed.
    #[error("the metadata group has no reachable leader")]
    NoController,
    /// It may have been, or may still be.
    #[error("the change was not confirmed in time, its outcome is unknown")]
    Unknown,
}

impl SubmitError {
    /// What clients are told.
    pub fn refusal(&self) -> Refusal {
        let error = match self {
            SubmitError::NoController => ResponseError::NotController,
            SubmitError::Unknown => ResponseError::RequestTimedOut,
        };
        Refusal::new(error, self.to_string())
    }
}

/// The handle to the cluster's metadata.
pub struct Metadata {
    raft: Arc<RaftNode>,
    image: watch::Receiver<Arc<Image>>,
    settings: Settings,
    /// Held by the controller while it places replicas and until its image
    /// shows them, so that the next placement counts them.
    placing: tokio::sync::Mutex<()>,
    producer_ids: producer_ids::Block,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Metadata {
    /// Opens the metadata group, forms the cluster if it is new, registers this
    /// broker, and goes on with all of it in the background.
    pub async fn start(
        settings: Settings,
        raft: Arc<RaftNode>,
        store: SharedStore,
        formed: ClusterFormed,
    ) -> anyhow::Result<Arc<Metadata>> {
        let (published, image) = watch::channel(Arc::default());
        let metadata = Arc::new(Metadata {
            raft,
            image,
            settings,
            placing: tokio::sync::Mutex::new(()),
            producer_ids: producer_ids::Block::default(),
            tasks: Mutex::default(),
        });
        remote::serve(&metadata);
        spread::serve(&metadata);
        let opening = bootstrap::open(&metadata, store, published).await?;
        let tasks = vec![
            tokio::spawn(opening),
            tokio::spawn(bootstrap::announce_cluster(metadata.clone(), formed)),
            tokio::spawn(registration::run(metadata.clone())),
            tokio::spawn(controller::run(metadata.clone())),
            tokio::spawn(membership::run(metadata.clone())),
            tokio::spawn(reconcile::run(metadata.clone())),
        ];
        *metadata
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = tasks;
        Ok(metadata)
    }

    /// Ends the background tasks. The group itself is closed by its [`RaftNode`].
    pub fn stop(&self) {
        for task in self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
    }

    /// The metadata as this broker knows it now.
    pub fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    /// Follows the image.
    pub fn watch(&self) -> watch::Receiver<Arc<Image>> {
        self.image.clone()
    }

    /// The broker that leads the metadata group, as far as is known here.
    pub fn controller(&self) -> Option<u32> {
        self.raft
            .leadership(METADATA_GROUP)
            .map(|leadership| leadership.leader.broker)
    }

    /// Makes a change, wherever the controller is, and waits until it shows in
    /// this broker's image.
    pub async fn submit(&self, command: Command) -> Result<Reply, SubmitError> {
        remote::ask(self, Request::Submit(command), SUBMIT_TIMEOUT).await
    }

    /// Creates topics; the controller places them. One outcome for each, in order.
    pub async fn create_topics(
        &self,
        topics: Vec<NewTopic>,
        validate_only: bool,
        timeout: Duration,
    ) -> Result<Reply, SubmitError> {
        remote::ask(
            self,
            Request::CreateTopics {
                topics,
                validate_only,
            },
            timeout,
        )
        .await
    }

    /// Adds partitions to a topic; the controller places them.
    pub async fn create_partitions(
        &self,
        partitions: NewPartitions,
        validate_only: bool,
        timeout: Duration,
    ) -> Result<Reply, SubmitError> {
        remote::ask(
            self,
            Request::CreatePartitions {
                partitions,
                validate_only,
            },
            timeout,
        )
        .await
    }

    /// Waits until this broker's image shows everything that was committed
    /// before the call, wherever the controller is.
    pub async fn catch_up(&self, timeout: Duration) -> Result<(), SubmitError> {
        remote::ask(self, Request::CatchUp, timeout).await.map(drop)
    }

    /// Waits until this broker's image contains the entry at `index`.
    pub async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        let mut image = self.watch();
        let seen = image.wait_for(|image| image.applied_index >= index);
        matches!(timeout_at(deadline, seen).await, Ok(Ok(_)))
    }

    /// The metadata group's replica here, once it is open.
    fn group(&self) -> Option<Group> {
        self.raft.group(METADATA_GROUP)
    }

    /// The metadata group's replica here, while it leads and has caught up.
    fn leading(&self) -> Option<Group> {
        self.group().filter(|group| group.ready_term().is_some())
    }
}

#[cfg(test)]
mod cluster_tests;
