//! `drave group`: consumer groups and how far they have read.

use anyhow::Context;
use clap::Subcommand;
use kafka_protocol::messages::{
    DescribeGroupsRequest, GroupId, ListGroupsRequest, OffsetFetchRequest,
};
use serde::Serialize;

use super::Connect;
use super::output::{Output, OutputArgs, print_json, print_line, print_list, table};
use crate::client::{Cluster, LATEST, check, list_offsets, text};

/// Commands about consumer groups.
#[derive(Subcommand)]
pub(super) enum GroupCommand {
    /// List consumer groups
    List {
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a group's state, committed offsets and lag
    Describe {
        /// The group
        name: String,
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Serialize)]
struct GroupLine {
    group: String,
    state: String,
    coordinator: i32,
}

#[derive(Serialize)]
struct OffsetLine {
    topic: String,
    partition: i32,
    committed: i64,
    end: Option<i64>,
    lag: Option<i64>,
}

pub(super) async fn run(command: GroupCommand) -> anyhow::Result<()> {
    match command {
        GroupCommand::List { connect, output } => list(&connect.cluster(), output).await,
        GroupCommand::Describe {
            name,
            connect,
            output,
        } => describe(&connect.cluster(), &name, output).await,
    }
}

/// Every broker knows the groups that it coordinates.
async fn list(cluster: &Cluster, output: OutputArgs) -> anyhow::Result<()> {
    let metadata = cluster.metadata(Some(&[]), false).await?;
    let mut lines = Vec::new();
    for broker in &metadata.brokers {
        let connection = cluster.broker(*broker.node_id).await?;
        let timeout = std::time::Duration::from_secs(30);
        let answer = connection
            .call(&ListGroupsRequest::default(), timeout)
            .await?;
        check(
            answer.error_code,
            || format!("groups of broker {}", *broker.node_id),
            None,
        )?;
        lines.extend(answer.groups.iter().map(|group| GroupLine {
            group: group.group_id.to_string(),
            state: group.group_state.to_string(),
            coordinator: *broker.node_id,
        }));
    }
    lines.sort_by(|a, b| a.group.cmp(&b.group));
    print_list(output, &lines, &["GROUP", "STATE", "COORDINATOR"], |line| {
        vec![
            line.group.clone(),
            line.state.clone(),
            line.coordinator.to_string(),
        ]
    })
}

async fn describe(cluster: &Cluster, name: &str, output: OutputArgs) -> anyhow::Result<()> {
    let coordinator = cluster.coordinator(name).await?;
    let timeout = std::time::Duration::from_secs(30);
    let request = DescribeGroupsRequest::default().with_groups(vec![GroupId(text(name))]);
    let answer = coordinator.call(&request, timeout).await?;
    let group = answer
        .groups
        .first()
        .context("the broker answered about no group")?;
    let message = group.error_message.as_ref().map(|message| message.as_str());
    check(group.error_code, || format!("group {name}"), message)?;
    let request = OffsetFetchRequest::default()
        .with_group_id(GroupId(text(name)))
        .with_topics(None);
    let offsets = coordinator.call(&request, timeout).await?;
    check(
        offsets.error_code,
        || format!("offsets of group {name}"),
        None,
    )?;
    let mut lines = Vec::new();
    for topic in &offsets.topics {
        // The topic may be deleted; its committed offsets are shown all the same.
        let ends = list_offsets(cluster, &topic.name, LATEST)
            .await
            .unwrap_or_default();
        lines.extend(topic.partitions.iter().map(|partition| {
            let end = ends.get(&partition.partition_index).copied();
            OffsetLine {
                topic: topic.name.to_string(),
                partition: partition.partition_index,
                committed: partition.committed_offset,
                end,
                lag: end.map(|end| (end - partition.committed_offset).max(0)),
            }
        }));
    }
    lines.sort_by(|a, b| (&a.topic, a.partition).cmp(&(&b.topic, b.partition)));
    if output.output == Output::Json {
        return print_json(&serde_json::json!({
            "group": name,
            "state": group.group_state.to_string(),
            "members": group.members.len(),
            "offsets": lines,
        }));
    }
    print_line(&format!(
        "group {name}: {}, {} members",
        group.group_state.as_str(),
        group.members.len()
    ))?;
    let number = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    let rows = lines.iter().map(|line| {
        vec![
            line.topic.clone(),
            line.partition.to_string(),
            line.committed.to_string(),
            number(line.end),
            number(line.lag),
        ]
    });
    print_line(&table(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG"], rows).trim_fmt())
}
