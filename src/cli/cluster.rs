//! `drave cluster`: the brokers, whether they are alive, and what they hold.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use clap::Subcommand;
use kafka_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, DescribeLogDirsRequest,
    MetadataRequest, MetadataResponse,
};
use serde::Serialize;

use super::Connect;
use super::output::{Output, OutputArgs, print_json, print_line, table};
use crate::client::{Cluster, Connection, check};
use crate::protocol::replica_progress::{self, ReplicaProgress};

/// How long each broker may take to say how it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// The first version of DescribeCluster that also tells of brokers that are down.
const DESCRIBES_DEAD_BROKERS: i16 = 2;

/// Commands about the cluster.
#[derive(Subcommand)]
pub(super) enum ClusterCommand {
    /// Show brokers, liveness, leaders and replicas that are behind
    Status {
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// A cluster at a glance.
#[derive(Serialize)]
pub(super) struct Overview {
    /// Its id.
    pub(super) cluster_id: String,
    /// The broker that leads the metadata group.
    pub(super) controller_id: Option<i32>,
    /// Its topics.
    pub(super) topics: usize,
    /// Their partitions.
    pub(super) partitions: usize,
    /// Partitions without a leader.
    pub(super) without_leader: usize,
    /// Partitions with a replica that is behind or down.
    pub(super) under_replicated: usize,
    /// Its brokers.
    pub(super) brokers: Vec<BrokerLine>,
}

/// A broker at a glance.
#[derive(Default, Serialize)]
pub(super) struct BrokerLine {
    /// Its id.
    pub(super) id: i32,
    /// Where clients connect to; empty when nobody knows.
    pub(super) address: String,
    /// Its rack.
    pub(super) rack: Option<String>,
    /// Whether it is alive.
    pub(super) alive: bool,
    /// Partitions that it leads.
    pub(super) leads: usize,
    /// Partitions that it has a replica of.
    pub(super) replicas: usize,
    /// Replicas of it that are behind.
    pub(super) behind: usize,
    /// Raft groups that it has a replica of: partitions and internal ones.
    pub(super) groups: Option<u32>,
    /// Those of them in which its replica is still being rebuilt or knows of no
    /// leader; unknown while the broker is down or has just started.
    pub(super) catching_up: Option<u32>,
    /// Room on its disk; nothing when it does not say.
    pub(super) disk_free_bytes: Option<u64>,
}

impl BrokerLine {
    /// Names of the columns.
    pub(super) const HEADER: &[&str] = &[
        "BROKER",
        "ADDRESS",
        "RACK",
        "STATE",
        "LEADS",
        "REPLICAS",
        "BEHIND",
        "CATCHING UP",
    ];

    /// Its columns.
    pub(super) fn row(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            if self.address.is_empty() {
                "-".to_owned()
            } else {
                self.address.clone()
            },
            self.rack.clone().unwrap_or_else(|| "-".to_owned()),
            if self.alive { "up" } else { "DOWN" }.to_owned(),
            self.leads.to_string(),
            self.replicas.to_string(),
            self.behind.to_string(),
            match (self.catching_up, self.groups) {
                (Some(0), _) => "0".to_owned(),
                (Some(behind), Some(groups)) => format!("{behind} of {groups}"),
                _ => "?".to_owned(),
            },
        ]
    }
}

impl Overview {
    /// Its topics and partitions in a sentence.
    pub(super) fn sentence(&self) -> String {
        let mut sentence = format!("{} topics, {} partitions", self.topics, self.partitions);
        if self.under_replicated > 0 {
            sentence += &format!(", {} under-replicated", self.under_replicated);
        }
        let catching_up: u32 = (self.brokers.iter())
            .filter_map(|broker| broker.catching_up)
            .sum();
        if catching_up > 0 {
            sentence += &format!(", {catching_up} replicas catching up");
        }
        if self.without_leader > 0 {
            sentence += &format!(", {} WITHOUT LEADER", self.without_leader);
        }
        sentence + "."
    }
}

/// Asks for the brokers, dead ones too, and for every topic.
pub(super) async fn overview(cluster: &Cluster) -> anyhow::Result<Overview> {
    let metadata = cluster.metadata(None, false).await?;
    let mut brokers: BTreeMap<i32, BrokerLine> = BTreeMap::new();
    let mut add = |id: i32, host: &str, port: i32, rack: Option<&str>, alive: bool| {
        let address = format!("{host}:{port}");
        let rack = rack.map(str::to_owned);
        brokers.insert(
            id,
            BrokerLine {
                id,
                address,
                rack,
                alive,
                ..BrokerLine::default()
            },
        );
    };
    let connection = cluster.any().await?;
    let mut controller = *metadata.controller_id;
    if let Some(answer) = describe(&connection).await {
        check(answer.error_code, || "cluster".to_owned(), None)?;
        controller = *answer.controller_id;
        for broker in &answer.brokers {
            let rack = broker.rack.as_ref().map(|rack| rack.as_str());
            add(
                *broker.broker_id,
                &broker.host,
                broker.port,
                rack,
                !broker.is_fenced,
            );
        }
    }
    for broker in &metadata.brokers {
        let rack = broker.rack.as_ref().map(|rack| rack.as_str());
        add(*broker.node_id, &broker.host, broker.port, rack, true);
    }
    let mut in_sync = InSync::new();
    for id in metadata.brokers.iter().map(|broker| *broker.node_id) {
        let Ok(connection) = cluster.broker(id).await else {
            continue;
        };
        if let Some(progress) = describe(&connection).await.as_ref().and_then(progress)
            && let Some(line) = brokers.get_mut(&id)
        {
            line.groups = Some(progress.placed);
            line.catching_up = Some(progress.catching_up);
        }
        let request = MetadataRequest::default()
            .with_topics(None)
            .with_allow_auto_topic_creation(false);
        if let Ok(answer) = connection.call(&request, ASK_TIMEOUT).await {
            learn_in_sync(&mut in_sync, id, answer);
        }
    }
    let (mut partitions, mut without_leader, mut under_replicated) = (0, 0, 0);
    let every = (metadata.topics.iter()).flat_map(|topic| {
        topic
            .partitions
            .iter()
            .map(move |partition| (topic, partition))
    });
    for (topic, partition) in every {
        let name = topic.name.as_ref().map_or("", |name| name.as_str());
        let known = in_sync.get(&(name.to_owned(), partition.partition_index));
        let isr_nodes = known.unwrap_or(&partition.isr_nodes);
        partitions += 1;
        if *partition.leader_id < 0 {
            without_leader += 1;
        }
        if isr_nodes.len() < partition.replica_nodes.len() {
            under_replicated += 1;
        }
        for replica in &partition.replica_nodes {
            let id = **replica;
            let broker = brokers.entry(id).or_insert_with(|| BrokerLine {
                id,
                ..BrokerLine::default()
            });
            broker.replicas += 1;
            broker.leads += usize::from(partition.leader_id == *replica);
            broker.behind += usize::from(!isr_nodes.contains(replica));
        }
    }
    Ok(Overview {
        cluster_id: metadata
            .cluster_id
            .as_ref()
            .map_or_else(String::new, |id| id.to_string()),
        controller_id: Some(controller).filter(|id| *id >= 0),
        topics: metadata.topics.len(),
        partitions,
        without_leader,
        under_replicated,
        brokers: brokers.into_values().collect(),
    })
}

/// The brokers in sync, by topic and partition, as its leader says: only the
/// leader knows how far its followers are.
type InSync = HashMap<(String, i32), Vec<BrokerId>>;

fn learn_in_sync(in_sync: &mut InSync, leader: i32, answer: MetadataResponse) {
    for topic in answer.topics {
        let name = topic.name.map_or_else(String::new, |name| name.to_string());
        let partitions = topic.partitions.into_iter();
        for partition in partitions.filter(|partition| *partition.leader_id == leader) {
            let place = (name.clone(), partition.partition_index);
            in_sync.insert(place, partition.isr_nodes);
        }
    }
}

/// What a broker says of the cluster, dead brokers included, and of itself.
async fn describe(connection: &Connection) -> Option<DescribeClusterResponse> {
    let version = connection.version::<DescribeClusterRequest>();
    if version.is_ok_and(|version| version >= DESCRIBES_DEAD_BROKERS) {
        let request = DescribeClusterRequest::default()
            .with_endpoint_type(1)
            .with_include_fenced_brokers(true);
        return connection.call(&request, ASK_TIMEOUT).await.ok();
    }
    None
}

fn progress(answer: &DescribeClusterResponse) -> Option<ReplicaProgress> {
    let field = answer.unknown_tagged_fields.get(&replica_progress::TAG)?;
    ReplicaProgress::decode(field)
}

/// Asks every live broker for the room on its disk; one that does not answer is left out.
async fn ask_disks(cluster: &Cluster, brokers: &mut [BrokerLine]) {
    let request = DescribeLogDirsRequest::default().with_topics(Some(Vec::new()));
    for broker in brokers.iter_mut().filter(|broker| broker.alive) {
        let Ok(connection) = cluster.broker(broker.id).await else {
            continue;
        };
        if let Ok(answer) = connection.call(&request, ASK_TIMEOUT).await {
            let free = answer
                .results
                .iter()
                .map(|directory| directory.usable_bytes);
            broker.disk_free_bytes = free.min().and_then(|bytes| u64::try_from(bytes).ok());
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

pub(super) async fn run(command: ClusterCommand) -> anyhow::Result<()> {
    let ClusterCommand::Status { connect, output } = command;
    let cluster = connect.cluster();
    let mut overview = overview(&cluster).await?;
    ask_disks(&cluster, &mut overview.brokers).await;
    if output.output == Output::Json {
        return print_json(&overview);
    }
    let controller = overview
        .controller_id
        .map_or("none".to_owned(), |id| id.to_string());
    print_line(&format!(
        "cluster {}, controller {controller}",
        overview.cluster_id
    ))?;
    print_line(&overview.sentence())?;
    let header = [BrokerLine::HEADER, &["DISK FREE"]].concat();
    let rows = overview.brokers.iter().map(|broker| {
        let mut row = broker.row();
        row.push(broker.disk_free_bytes.map_or("-".to_owned(), gib));
        row
    });
    print_line(&format!("\n{}", table(&header, rows).trim_fmt()))
}
