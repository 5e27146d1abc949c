//! `drave cluster`: the brokers, whether they are alive, and what they hold.

use std::collections::BTreeMap;

use clap::Subcommand;
use kafka_protocol::messages::DescribeClusterRequest;
use serde::Serialize;

use super::Connect;
use super::output::{Output, OutputArgs, print_json, print_line, table};
use crate::client::{Cluster, check};

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
}

impl BrokerLine {
    /// Names of the columns.
    pub(super) const HEADER: &[&str] = &[
        "BROKER", "ADDRESS", "RACK", "STATE", "LEADS", "REPLICAS", "BEHIND",
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
    if connection
        .version::<DescribeClusterRequest>()
        .is_ok_and(|version| version >= 2)
    {
        let request = DescribeClusterRequest::default()
            .with_endpoint_type(1)
            .with_include_fenced_brokers(true);
        let answer = cluster.call(&request).await?;
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
    let (mut partitions, mut without_leader, mut under_replicated) = (0, 0, 0);
    for partition in metadata.topics.iter().flat_map(|topic| &topic.partitions) {
        partitions += 1;
        if *partition.leader_id < 0 {
            without_leader += 1;
        }
        if partition.isr_nodes.len() < partition.replica_nodes.len() {
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
            broker.behind += usize::from(!partition.isr_nodes.contains(replica));
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

pub(super) async fn run(command: ClusterCommand) -> anyhow::Result<()> {
    let ClusterCommand::Status { connect, output } = command;
    let overview = overview(&connect.cluster()).await?;
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
    let rows = overview.brokers.iter().map(BrokerLine::row);
    print_line(&format!("\n{}", table(BrokerLine::HEADER, rows).trim_fmt()))
}
