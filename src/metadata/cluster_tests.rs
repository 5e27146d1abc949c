//! Whole metadata groups: real nodes on loopback, over disks in memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use drave_raft::{NodeConfig, RaftNode, ReplicaId};
use drave_storage::{MemoryDisk, SharedStore};
use kafka_protocol::ResponseError;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use super::command::{Command, Reply, TopicToCreate};
use super::image::Image;
use super::planning::{NewTopic, Wanted};
use super::{Metadata, SUBMIT_TIMEOUT, Settings};

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    raft: Arc<RaftNode>,
    metadata: Arc<Metadata>,
    store: SharedStore,
}

impl Node {
    async fn start(
        id: u32,
        listener: TcpListener,
        peers: &[(u32, SocketAddr)],
        store: SharedStore,
    ) -> Node {
        let peer_address = listener.local_addr().unwrap();
        let config = NodeConfig {
            replica: ReplicaId {
                broker: id,
                directory: u128::from(id),
            },
            cluster_id: None,
            peers: peers.to_vec(),
            listener,
            peer_dead_after: Duration::from_millis(1_000),
        };
        let raft = RaftNode::start(config, store.clone()).await.unwrap();
        let settings = Settings {
            advertised: ("localhost".into(), 9_000 + id as u16),
            peer_address,
            rack: None,
            peers: peers.to_vec(),
            coordinator_groups: 4,
        };
        let formed = Box::new(|_| Ok(()));
        let metadata = Metadata::start(settings, raft.clone(), store.clone(), formed)
            .await
            .unwrap();
        Node {
            raft,
            metadata,
            store,
        }
    }

    async fn sees(&self, what: &str, seen: impl FnMut(&Arc<Image>) -> bool) -> Arc<Image> {
        let mut image = self.metadata.watch();
        let waited = timeout(PATIENCE, image.wait_for(seen)).await;
        match waited {
            Ok(Ok(image)) => image.clone(),
            _ => panic!(
                "broker {:?} never saw {what}: {:?}",
                self.raft.replica(),
                self.metadata.image()
            ),
        }
    }

    async fn stop(self) -> SharedStore {
        self.metadata.stop();
        self.raft.shutdown().await;
        self.store
    }
}

async fn listeners(count: u32) -> (Vec<TcpListener>, Vec<(u32, SocketAddr)>) {
    let mut listeners = Vec::new();
    let mut peers = Vec::new();
    for id in 1..=count {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        peers.push((id, listener.local_addr().unwrap()));
        listeners.push(listener);
    }
    (listeners, peers)
}

fn disk() -> SharedStore {
    Arc::new(MemoryDisk::new(drave_storage::memory::Sync::Always))
}

async fn cluster(count: u32) -> (Vec<Node>, Vec<(u32, SocketAddr)>) {
    let (listeners, peers) = listeners(count).await;
    let mut nodes = Vec::new();
    for (id, listener) in (1..).zip(listeners) {
        nodes.push(Node::start(id, listener, &peers, disk()).await);
    }
    (nodes, peers)
}

fn topic(name: &str, partitions: u32, replication_factor: u16) -> NewTopic {
    NewTopic {
        name: name.into(),
        id: Uuid::new_v4(),
        partitions: Wanted::Count {
            partitions,
            replication_factor,
        },
        configs: vec![],
    }
}

fn all_registered(count: usize) -> impl Fn(&Arc<Image>) -> bool {
    move |image| {
        let alive = image
            .brokers
            .values()
            .filter(|broker| !broker.fenced)
            .count();
        alive == count && image.coordinators.len() == 4
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broker_forms_a_cluster_alone_and_finds_it_again() {
    let (nodes, _) = cluster(1).await;
    let node = nodes.into_iter().next().unwrap();
    let image = node.sees("itself", all_registered(1)).await;
    assert_eq!(image.coordinators[0].replicas.len(), 1);
    let reply = node
        .metadata
        .create_topics(vec![topic("a", 2, 0)], false, SUBMIT_TIMEOUT)
        .await;
    let Ok(Reply::Topics(outcomes)) = reply else {
        panic!("{reply:?}")
    };
    let created = outcomes[0].clone().unwrap();
    assert_eq!((created.partitions, created.replication_factor), (2, 1));
    let before = node.metadata.image();
    let store = node.stop().await;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let peers = [(1, listener.local_addr().unwrap())];
    let node = Node::start(1, listener, &peers, store).await;
    let image = node
        .sees("its topic", |image| {
            let incarnation = |image: &Image| image.brokers.get(&1).map(|b| b.incarnation);
            image.topics.contains_key("a") && incarnation(image) != incarnation(&before)
        })
        .await;
    assert_eq!(image.topics["a"], before.topics["a"]);
    assert_eq!(image.cluster_id, before.cluster_id);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_form_one_cluster_that_outlives_its_controller() {
    let (mut nodes, peers) = cluster(3).await;
    for node in &nodes {
        node.sees("three brokers", all_registered(3)).await;
    }
    let image = nodes[0].metadata.image();
    assert!(
        image
            .coordinators
            .iter()
            .all(|placement| placement.replicas.len() == 3)
    );

    // From every broker, at the same time; placed by the one controller, evenly.
    let mut creations = JoinSet::new();
    for (at, node) in nodes.iter().enumerate() {
        for n in 0..4 {
            let topics = vec![topic(&format!("t-{at}-{n}"), 1, 3)];
            let metadata = node.metadata.clone();
            creations
                .spawn(async move { metadata.create_topics(topics, false, SUBMIT_TIMEOUT).await });
        }
    }
    while let Some(reply) = creations.join_next().await {
        let Ok(Ok(Reply::Topics(outcomes))) = reply else {
            panic!("{reply:?}")
        };
        assert!(outcomes[0].is_ok(), "{outcomes:?}");
    }
    let image = nodes[2]
        .sees("all topics", |image| image.topics.len() == 12)
        .await;
    for broker in 1..=3 {
        let leads = image
            .topics
            .values()
            .filter(|t| t.partitions[0].replicas[0].broker == broker);
        assert_eq!(leads.count(), 4);
    }
    let again = nodes[1]
        .metadata
        .create_topics(vec![topic("t-0-0", 1, 3)], false, SUBMIT_TIMEOUT);
    let Ok(Reply::Topics(outcomes)) = again.await else {
        panic!("no outcome")
    };
    let refusal = outcomes[0].clone().unwrap_err();
    assert_eq!(refusal.code, ResponseError::TopicAlreadyExists.code());

    let controller = nodes[0].metadata.controller().expect("a controller");
    let at = nodes
        .iter()
        .position(|node| node.raft.replica().broker == controller)
        .unwrap();
    let store = nodes.remove(at).stop().await;
    let deleted = image.topics["t-0-0"].id;
    let reply = nodes[0]
        .metadata
        .submit(Command::DeleteTopic { id: deleted })
        .await;
    assert_eq!(reply, Ok(Reply::Done));
    for node in &nodes {
        let image = node
            .sees("the dead broker fenced", |i| i.brokers[&controller].fenced)
            .await;
        assert_eq!(
            image
                .brokers
                .values()
                .filter(|broker| !broker.fenced)
                .count(),
            2
        );
    }

    let address = peers.iter().find(|(id, _)| *id == controller).unwrap().1;
    let listener = TcpListener::bind(address).await.unwrap();
    let back = Node::start(controller, listener, &peers, store).await;
    // At first it shows what it knew when it stopped.
    let caught_up = |image: &Arc<Image>| !image.topics.contains_key("t-0-0");
    back.sees("what it missed", caught_up).await;
    back.sees("all brokers", all_registered(3)).await;
    nodes.push(back);
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_catches_up_sees_all_that_was_committed_before_and_says_so_if_that_can_not_be() {
    let (mut nodes, _) = cluster(3).await;
    for node in &nodes {
        node.sees("all brokers", all_registered(3)).await;
    }
    for n in 0..30 {
        // Nobody waits until other brokers have heard of this one.
        let created = Command::CreateTopics(vec![TopicToCreate {
            name: format!("t-{n}"),
            id: Uuid::new_v4(),
            placements: vec![vec![nodes[0].raft.replica()]],
            configs: vec![],
        }]);
        let asked = nodes[n % 3].metadata.submit(created).await;
        assert!(matches!(asked, Ok(Reply::Topics(_))), "{asked:?}");
        let other = &nodes[(n + 1) % 3].metadata;
        assert_eq!(other.catch_up(PATIENCE).await, Ok(()));
        assert!(other.image().topics.contains_key(&format!("t-{n}")));
    }

    let last = nodes.remove(0);
    for node in nodes {
        node.stop().await;
    }
    let within = Duration::from_secs(2);
    assert!(last.metadata.catch_up(within).await.is_err());
    // It has this topic in its image, and can't know whether it is there still.
    let again = vec![topic("t-0", 1, 1)];
    let asked = last.metadata.create_topics(again, false, within).await;
    assert!(asked.is_err(), "{asked:?}");
    last.stop().await;
}
