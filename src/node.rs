//! A broker: the only place that wires the parts, and the order of start and stop.
//!
//! Start: listeners (a port in use is found before anything is touched), data
//! directory, store, Raft node, metadata, coordinators, partitions, client
//! server. Stop: leadership is handed over while clients are still answered,
//! then everything in reverse.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use drave_raft::{NodeConfig, RaftNode, ReplicaId};
use drave_storage::{DataDirectory, Engine, EngineOptions, SharedStore};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::info;

use crate::config::Config;
use crate::disk::Disk;
use crate::groups::{Groups, GroupsConfig};
use crate::handlers::dispatch::Handlers;
use crate::http::{self, Health};
use crate::metadata::{self, Metadata};
use crate::metrics::{Requests, Snapshot};
use crate::partition::Partitions;
use crate::server::{self, listener::Server};

/// What handlers need of a running broker.
pub struct Broker {
    /// Its settings.
    pub config: Arc<Config>,
    /// Its Raft groups and peers.
    pub raft: Arc<RaftNode>,
    /// Its disk.
    pub store: SharedStore,
    /// The cluster's metadata.
    pub metadata: Arc<Metadata>,
    /// The partitions whose replicas are here.
    pub partitions: Arc<Partitions>,
    /// The consumer groups, wherever they are coordinated.
    pub groups: Arc<Groups>,
    /// What clients have asked for since it started.
    pub requests: Requests,
}

/// A broker and the tasks that serve it.
struct Running {
    broker: Arc<Broker>,
    clients: Server,
    http: JoinHandle<std::io::Result<()>>,
    following: Vec<JoinHandle<()>>,
    /// Locks the data directory for as long as the broker runs.
    _directory: Arc<DataDirectory>,
}

/// Runs a broker until `shutdown` resolves, then stops it cleanly.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let data = config.data.display().to_string();
    let running = start(Arc::new(config)).await?;
    let strangers = tokio::select! {
        () = shutdown => None,
        strangers = running.broker.raft.refused_by_cluster() => Some(strangers),
    };
    info!("stopping");
    running.stop().await;
    info!("stopped");
    if let Some(strangers) = strangers {
        bail!(
            "data directory {data} belongs to another cluster than brokers {strangers:?}: \
             start it with its own peers, or with an empty directory"
        );
    }
    Ok(())
}

async fn bind(what: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("can't listen for {what} on {address}"))
}

async fn start(config: Arc<Config>) -> anyhow::Result<Running> {
    let clients = bind("clients", config.listen).await?;
    let peers = bind("peers", config.peer_listen).await?;
    let http = bind("http", config.http_listen).await?;
    let advertised = config.advertised(clients.local_addr()?);

    let (directory, store) = open_store(config.clone()).await?;
    let disk = Disk::new(directory.path(), config.node_id, config.disk_reserve_bytes)
        .with_context(|| {
            format!(
                "can't tell how full the disk of {} is",
                config.data.display()
            )
        })?;
    let raft = RaftNode::start(
        NodeConfig {
            replica: ReplicaId {
                broker: config.node_id,
                directory: directory.directory_id(),
            },
            cluster_id: directory.cluster_id(),
            peers: config.brokers(),
            listener: peers,
            peer_dead_after: Duration::from_millis(config.peer_dead_after_ms),
        },
        store.clone(),
    )
    .await?;
    let metadata = start_metadata(&config, &raft, &store, &directory, advertised).await?;
    let (groups, following_groups) = Groups::start(
        raft.clone(),
        metadata.watch(),
        GroupsConfig {
            initial_rebalance_delay_ms: config.group_initial_rebalance_delay_ms,
            offsets_retention: Duration::from_secs(config.offsets_retention_minutes * 60),
            ..GroupsConfig::default()
        },
    );
    let partitions = Partitions::start(
        config.clone(),
        raft.clone(),
        store.clone(),
        metadata.clone(),
        disk.clone(),
    );
    let broker = Arc::new(Broker {
        config,
        raft,
        store,
        metadata,
        partitions,
        groups,
        requests: Requests::default(),
    });
    let handlers = Arc::new(Handlers(broker.clone()));
    let clients = Server::start(clients, handlers, server::Options::of(&broker.config))?;
    let (of, scraped, budget) = (broker.clone(), broker.clone(), clients.budget());
    let http = tokio::spawn(http::serve(
        http,
        Arc::new(move || health(&of)),
        Arc::new(move || Snapshot::of(&scraped, &budget).into_text()),
    ));
    let following = vec![
        following_groups,
        tokio::spawn(follow_addresses(broker.clone())),
        disk.watch(broker.raft.clone(), broker.store.clone()),
    ];
    Ok(Running {
        broker,
        clients,
        http,
        following,
        _directory: directory,
    })
}

async fn open_store(config: Arc<Config>) -> anyhow::Result<(Arc<DataDirectory>, SharedStore)> {
    let opened = tokio::task::spawn_blocking(move || {
        let directory = DataDirectory::open_or_format(&config.data, config.node_id)?;
        directory.check_store()?;
        let options = EngineOptions {
            tail_cache_bytes: usize::try_from(config.tail_cache_bytes)?,
            ..EngineOptions::default()
        };
        let engine: SharedStore = Engine::open(&directory.store_path(), options)?;
        anyhow::Ok((Arc::new(directory), engine))
    });
    opened.await?
}

async fn start_metadata(
    config: &Config,
    raft: &Arc<RaftNode>,
    store: &SharedStore,
    directory: &Arc<DataDirectory>,
    advertised: (String, u16),
) -> anyhow::Result<Arc<Metadata>> {
    let brokers = config.brokers();
    let here = brokers.iter().find(|(id, _)| *id == config.node_id);
    let settings = metadata::Settings {
        advertised,
        peer_address: here.map_or(config.peer_listen, |(_, address)| *address),
        rack: config.rack.clone(),
        peers: brokers.clone(),
        coordinator_groups: config.coordinator_groups as usize,
    };
    let directory = directory.clone();
    let formed = Box::new(move |cluster_id: uuid::Uuid| {
        directory.set_cluster_id(cluster_id.as_u128())?;
        Ok(())
    });
    Metadata::start(settings, raft.clone(), store.clone(), formed).await
}

/// Brokers say where their peer listeners are when they register.
async fn follow_addresses(broker: Arc<Broker>) {
    let mut image = broker.metadata.watch();
    let mut known = Vec::new();
    loop {
        let registered: Vec<(u32, SocketAddr)> = {
            let image = image.borrow_and_update();
            let brokers = image.brokers.iter();
            brokers
                .map(|(id, there)| (*id, there.peer_address))
                .collect()
        };
        if registered != known {
            broker.raft.set_peers(registered.clone());
            known = registered;
        }
        if image.changed().await.is_err() {
            return;
        }
    }
}

fn health(broker: &Broker) -> Health {
    let image = broker.metadata.image();
    let registered = image.brokers.get(&broker.config.node_id);
    let controller_id = broker.metadata.controller();
    let (alive, dead): (Vec<_>, Vec<_>) =
        broker.raft.peers().into_iter().partition(|peer| peer.alive);
    Health {
        ready: registered.is_some_and(|here| !here.fenced) && controller_id.is_some(),
        node_id: broker.config.node_id,
        cluster_id: (!image.cluster_id.is_nil()).then(|| image.cluster_id.to_string()),
        controller_id,
        brokers_alive: alive.iter().map(|peer| peer.broker).collect(),
        brokers_dead: dead.iter().map(|peer| peer.broker).collect(),
    }
}

impl Running {
    async fn stop(self) {
        self.broker.raft.hand_over().await;
        self.clients.stop().await;
        self.http.abort();
        self.broker.partitions.stop();
        self.broker.metadata.stop();
        for task in &self.following {
            task.abort();
        }
        self.broker.raft.shutdown().await;
    }
}
