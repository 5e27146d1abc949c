//! `drave topic`: create, list, describe, change, delete.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    IncrementalAlterConfigsRequest,
};
use serde::Serialize;
use serde_json::json;

use super::Connect;
use super::output::{
    Output, OutputArgs, commas, print_done, print_json, print_line, print_list, table,
};
use crate::client::{Cluster, EARLIEST, LATEST, check, list_offsets, text, topic_name};

const TIMEOUT_MS: i32 = 30_000;
const TOPIC_RESOURCE: i8 = 2;
/// `config_source` of a value that was set on the topic itself.
const SET_ON_TOPIC: i8 = 1;

/// Commands about topics.
#[derive(Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic
    Create(CreateArgs),
    /// List topics
    List {
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a topic's partitions, leaders, replicas, offsets and configs
    Describe {
        /// The topic
        name: String,
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change a topic's configs or add partitions
    Alter(AlterArgs),
    /// Delete a topic and its records
    Delete {
        /// The topic
        name: String,
        #[command(flatten)]
        connect: Connect,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Arguments of `drave topic create`.
#[derive(Args)]
pub(super) struct CreateArgs {
    /// The topic
    name: String,
    /// Partitions [default: the brokers' num.partitions]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    partitions: Option<i32>,
    /// Replicas of each partition [default: the brokers' default.replication.factor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i16).range(1..))]
    replication_factor: Option<i16>,
    /// A config of the topic; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `drave topic alter`.
#[derive(Args)]
pub(super) struct AlterArgs {
    /// The topic
    name: String,
    /// Set a config; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    config: Vec<(String, String)>,
    /// Give a config its default again; may be repeated
    #[arg(long, value_name = "KEY")]
    delete_config: Vec<String>,
    /// New number of partitions, larger than before
    #[arg(long, value_name = "N")]
    partitions: Option<i32>,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: OutputArgs,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected".to_owned()),
    }
}

pub(super) async fn run(command: TopicCommand) -> anyhow::Result<()> {
    match command {
        TopicCommand::Create(args) => create(args).await,
        TopicCommand::List { connect, output } => list(&connect.cluster(), output).await,
        TopicCommand::Describe {
            name,
            connect,
            output,
        } => describe(&connect.cluster(), &name, output).await,
        TopicCommand::Alter(args) => alter(args).await,
        TopicCommand::Delete {
            name,
            connect,
            output,
        } => delete(&connect.cluster(), &name, output).await,
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let cluster = args.connect.cluster();
    let configs = args.config.iter().map(|(key, value)| {
        CreatableTopicConfig::default()
            .with_name(text(key))
            .with_value(Some(text(value)))
    });
    let topic = CreatableTopic::default()
        .with_name(topic_name(&args.name))
        .with_num_partitions(args.partitions.unwrap_or(-1))
        .with_replication_factor(args.replication_factor.unwrap_or(-1))
        .with_configs(configs.collect());
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(TIMEOUT_MS);
    let answer = cluster.call(&request).await?;
    let made = answer
        .topics
        .first()
        .context("the broker answered about no topic")?;
    let message = made.error_message.as_ref().map(|message| message.as_str());
    check(made.error_code, || format!("topic {}", args.name), message)?;
    let partitions = wait_for_leaders(&cluster, &args.name).await?;
    print_done(
        args.output,
        &format!("created topic {} with {partitions} partitions", args.name),
        json!({ "topic": args.name, "partitions": partitions }),
    )
}

/// A topic that was just made is usable when each partition has a leader.
async fn wait_for_leaders(cluster: &Cluster, topic: &str) -> anyhow::Result<usize> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match cluster.leaders(topic, false).await {
            Ok(leaders) if !leaders.is_empty() && leaders.iter().all(|leader| *leader >= 0) => {
                return Ok(leaders.len());
            }
            Ok(_) => {}
            Err(error) if error.is_retriable() => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            bail!("topic {topic} is created, but after 30 s a partition has no leader yet");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[derive(Serialize)]
struct TopicLine {
    name: String,
    partitions: usize,
    replication_factor: usize,
    without_leader: usize,
    under_replicated: usize,
    internal: bool,
}

impl TopicLine {
    fn new(topic: &MetadataResponseTopic) -> TopicLine {
        let behind = |partition: &&kafka_protocol::messages::metadata_response::MetadataResponsePartition| {
            partition.isr_nodes.len() < partition.replica_nodes.len()
        };
        let partitions = &topic.partitions;
        TopicLine {
            name: topic
                .name
                .as_ref()
                .map_or_else(String::new, |name| name.to_string()),
            partitions: partitions.len(),
            replication_factor: partitions
                .first()
                .map_or(0, |first| first.replica_nodes.len()),
            without_leader: partitions
                .iter()
                .filter(|partition| *partition.leader_id < 0)
                .count(),
            under_replicated: partitions.iter().filter(behind).count(),
            internal: topic.is_internal,
        }
    }
}

async fn list(cluster: &Cluster, output: OutputArgs) -> anyhow::Result<()> {
    let metadata = cluster.metadata(None, false).await?;
    let mut lines: Vec<TopicLine> = metadata.topics.iter().map(TopicLine::new).collect();
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    let header = [
        "TOPIC",
        "PARTITIONS",
        "REPLICAS",
        "WITHOUT LEADER",
        "UNDER-REPLICATED",
    ];
    print_list(output, &lines, &header, |line| {
        vec![
            line.name.clone(),
            line.partitions.to_string(),
            line.replication_factor.to_string(),
            line.without_leader.to_string(),
            line.under_replicated.to_string(),
        ]
    })
}

#[derive(Serialize)]
struct PartitionLine {
    partition: i32,
    leader: Option<i32>,
    leader_epoch: i32,
    replicas: Vec<i32>,
    in_sync: Vec<i32>,
    first_offset: Option<i64>,
    next_offset: Option<i64>,
}

async fn describe(cluster: &Cluster, name: &str, output: OutputArgs) -> anyhow::Result<()> {
    let metadata = cluster.metadata(Some(&[name]), false).await?;
    let topic = metadata
        .topics
        .first()
        .context("the broker answered about no topic")?;
    check(topic.error_code, || format!("topic {name}"), None)?;
    let without_leader = topic
        .partitions
        .iter()
        .any(|partition| *partition.leader_id < 0);
    let (first, next) = match without_leader {
        true => (BTreeMap::new(), BTreeMap::new()),
        false => (
            list_offsets(cluster, name, EARLIEST).await?,
            list_offsets(cluster, name, LATEST).await?,
        ),
    };
    let ids = |ids: &[kafka_protocol::messages::BrokerId]| ids.iter().map(|id| **id).collect();
    let lines = topic.partitions.iter().map(|partition| PartitionLine {
        partition: partition.partition_index,
        leader: Some(*partition.leader_id).filter(|leader| *leader >= 0),
        leader_epoch: partition.leader_epoch,
        replicas: ids(&partition.replica_nodes),
        in_sync: ids(&partition.isr_nodes),
        first_offset: first.get(&partition.partition_index).copied(),
        next_offset: next.get(&partition.partition_index).copied(),
    });
    let mut lines: Vec<PartitionLine> = lines.collect();
    lines.sort_by_key(|line| line.partition);
    let configs = set_configs(cluster, name).await?;
    if output.output == Output::Json {
        return print_json(&json!({
            "topic": name,
            "id": topic.topic_id.to_string(),
            "configs": configs,
            "partitions": lines,
        }));
    }
    print_line(&format!("topic {name}, id {}", topic.topic_id))?;
    for (key, value) in &configs {
        print_line(&format!("  {key}={value}"))?;
    }
    let header = [
        "PARTITION",
        "LEADER",
        "EPOCH",
        "REPLICAS",
        "IN SYNC",
        "FIRST",
        "NEXT",
    ];
    let number = |number: Option<i64>| number.map_or("-".to_owned(), |number| number.to_string());
    let rows = lines.iter().map(|line| {
        vec![
            line.partition.to_string(),
            number(line.leader.map(i64::from)),
            line.leader_epoch.to_string(),
            commas(&line.replicas),
            commas(&line.in_sync),
            number(line.first_offset),
            number(line.next_offset),
        ]
    });
    print_line(&table(&header, rows).trim_fmt())
}

/// Configs that were set on the topic.
async fn set_configs(cluster: &Cluster, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(text(name))
        .with_configuration_keys(None);
    let request = DescribeConfigsRequest::default().with_resources(vec![resource]);
    let answer = cluster.call(&request).await?;
    let mut configs = BTreeMap::new();
    for result in &answer.results {
        let message = result
            .error_message
            .as_ref()
            .map(|message| message.as_str());
        check(result.error_code, || format!("configs of {name}"), message)?;
        for config in result
            .configs
            .iter()
            .filter(|config| config.config_source == SET_ON_TOPIC)
        {
            let value = config
                .value
                .as_ref()
                .map_or_else(String::new, |value| value.to_string());
            configs.insert(config.name.to_string(), value);
        }
    }
    Ok(configs)
}

async fn alter(args: AlterArgs) -> anyhow::Result<()> {
    let cluster = args.connect.cluster();
    if args.config.is_empty() && args.delete_config.is_empty() && args.partitions.is_none() {
        bail!("nothing to change: give --config, --delete-config or --partitions");
    }
    let set = args.config.iter().map(|(key, value)| {
        AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(0)
            .with_value(Some(text(value)))
    });
    let delete = args.delete_config.iter().map(|key| {
        AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(1)
            .with_value(None)
    });
    let configs: Vec<AlterableConfig> = set.chain(delete).collect();
    if !configs.is_empty() {
        let resource = AlterConfigsResource::default()
            .with_resource_type(TOPIC_RESOURCE)
            .with_resource_name(text(&args.name))
            .with_configs(configs);
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        for answer in cluster.call(&request).await?.responses {
            let message = answer
                .error_message
                .as_ref()
                .map(|message| message.as_str());
            check(
                answer.error_code,
                || format!("topic {}", args.name),
                message,
            )?;
        }
    }
    if let Some(partitions) = args.partitions {
        let topic = CreatePartitionsTopic::default()
            .with_name(topic_name(&args.name))
            .with_count(partitions)
            .with_assignments(None);
        let request = CreatePartitionsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(TIMEOUT_MS);
        for answer in cluster.call(&request).await?.results {
            let message = answer
                .error_message
                .as_ref()
                .map(|message| message.as_str());
            check(
                answer.error_code,
                || format!("topic {}", args.name),
                message,
            )?;
        }
        wait_for_leaders(&cluster, &args.name).await?;
    }
    print_done(
        args.output,
        &format!("changed topic {}", args.name),
        json!({ "topic": args.name }),
    )
}

async fn delete(cluster: &Cluster, name: &str, output: OutputArgs) -> anyhow::Result<()> {
    // Versions up to 5 read the one list, later ones the other.
    let connection = cluster.any().await?;
    let request = match connection.version::<DeleteTopicsRequest>()? >= 6 {
        true => DeleteTopicsRequest::default().with_topics(vec![
            DeleteTopicState::default().with_name(Some(topic_name(name))),
        ]),
        false => DeleteTopicsRequest::default().with_topic_names(vec![topic_name(name)]),
    };
    let answer = cluster.call(&request.with_timeout_ms(TIMEOUT_MS)).await?;
    for answer in answer.responses {
        let message = answer
            .error_message
            .as_ref()
            .map(|message| message.as_str());
        check(answer.error_code, || format!("topic {name}"), message)?;
    }
    print_done(
        output,
        &format!("deleted topic {name}"),
        json!({ "topic": name }),
    )
}
