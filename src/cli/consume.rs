//! `drave consume`: prints a topic's records.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::Connect;
use super::output::{Output, OutputArgs};
use crate::client::{
    Cluster, Consumer, ConsumerConfig, EARLIEST, Fetched, LATEST, Record, commit_offsets,
    committed_offsets, list_offsets, records,
};

const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `drave consume`.
#[derive(Args)]
pub(super) struct ConsumeArgs {
    /// The topic
    topic: String,
    /// Begin with the first record, not with what comes from now on
    #[arg(long)]
    from_beginning: bool,
    /// Go on where this group left off, and commit how far was read
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Read this partition only
    #[arg(long, value_name = "N")]
    partition: Option<i32>,
    /// End after so many records
    #[arg(long, value_name = "N")]
    max_messages: Option<u64>,
    /// End when there was no record for so long
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
    /// Print a record's key before its value, a tab between them
    #[arg(long)]
    print_key: bool,
    /// Print the partition of each record
    #[arg(long)]
    print_partition: bool,
    /// Print the offset of each record
    #[arg(long)]
    print_offset: bool,
    /// Print the time of each record, ms since 1970
    #[arg(long)]
    print_timestamp: bool,
    /// Leave out records of transactions that are open or aborted
    #[arg(long)]
    committed_only: bool,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: ConsumeArgs) -> anyhow::Result<()> {
    let cluster = args.connect.cluster();
    let mut offsets = starting_offsets(&args, &cluster).await?;
    let config = ConsumerConfig {
        committed_only: args.committed_only,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::start(cluster.clone(), &args.topic, &offsets, config).await?;
    let outcome = print_records(&args, &cluster, &mut consumer, &mut offsets).await;
    if let Some(group) = &args.group {
        commit_offsets(&cluster, group, &args.topic, &offsets).await?;
    }
    outcome
}

/// Where to begin: the group's offsets, else the beginning or the end.
async fn starting_offsets(
    args: &ConsumeArgs,
    cluster: &Cluster,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let from = if args.from_beginning {
        EARLIEST
    } else {
        LATEST
    };
    let mut offsets = list_offsets(cluster, &args.topic, from).await?;
    if let Some(group) = &args.group {
        offsets.extend(committed_offsets(cluster, group, &args.topic, offsets.len()).await?);
    }
    if let Some(partition) = args.partition {
        anyhow::ensure!(
            offsets.contains_key(&partition),
            "topic {} has partitions 0 to {}",
            args.topic,
            offsets.len() - 1
        );
        offsets.retain(|index, _| *index == partition);
    }
    Ok(offsets)
}

/// Prints until an end is reached; `offsets` says what comes next.
async fn print_records(
    args: &ConsumeArgs,
    cluster: &Cluster,
    consumer: &mut Consumer,
    offsets: &mut BTreeMap<i32, i64>,
) -> anyhow::Result<()> {
    let mut output = BufWriter::with_capacity(64 << 10, std::io::stdout());
    let mut printed = 0;
    let mut commit_at = Instant::now() + COMMIT_EVERY;
    let idle = args.timeout_ms.map(Duration::from_millis);
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut idle_since = Instant::now();
    while args.max_messages.is_none_or(|max| printed < max) {
        let fetched = tokio::select! {
            fetched = consumer.next() => fetched,
            () = async {
                match idle {
                    Some(idle) => tokio::time::sleep_until(idle_since + idle).await,
                    None => std::future::pending().await,
                }
            } => break,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
        };
        let Some(fetched) = fetched.transpose()? else {
            break;
        };
        printed += print_fetched(args, &mut output, &fetched, offsets, printed)?;
        output.flush()?;
        idle_since = Instant::now();
        if let Some(group) = &args.group
            && Instant::now() >= commit_at
        {
            commit_offsets(cluster, group, &args.topic, offsets).await?;
            commit_at = Instant::now() + COMMIT_EVERY;
        }
    }
    Ok(output.flush()?)
}

fn print_fetched(
    args: &ConsumeArgs,
    output: &mut impl Write,
    fetched: &Fetched,
    offsets: &mut BTreeMap<i32, i64>,
    printed: u64,
) -> anyhow::Result<u64> {
    let mut count = 0;
    for batch in &fetched.batches {
        if !batch.is_control() {
            for record in records(batch)? {
                if record.offset < fetched.from_offset {
                    continue;
                }
                if args.max_messages.is_some_and(|max| printed + count >= max) {
                    return Ok(count);
                }
                print_record(args, output, fetched.partition, &record)?;
                offsets.insert(fetched.partition, record.offset + 1);
                count += 1;
            }
        }
        offsets.insert(fetched.partition, batch.last_offset + 1);
    }
    offsets.insert(fetched.partition, fetched.next_offset);
    Ok(count)
}

fn print_record(
    args: &ConsumeArgs,
    output: &mut impl Write,
    partition: i32,
    record: &Record,
) -> std::io::Result<()> {
    if args.output.output == Output::Json {
        let text = |bytes: &Option<bytes::Bytes>| {
            bytes
                .as_ref()
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let headers: Vec<_> = record
            .headers
            .iter()
            .map(|(name, value)| json!({ "name": name, "value": text(value) }))
            .collect();
        let line = json!({
            "partition": partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "key": text(&record.key),
            "value": text(&record.value),
            "headers": headers,
        });
        return writeln!(output, "{line}");
    }
    if args.print_partition {
        write!(output, "{partition}\t")?;
    }
    if args.print_offset {
        write!(output, "{}\t", record.offset)?;
    }
    if args.print_timestamp {
        write!(output, "{}\t", record.timestamp)?;
    }
    if args.print_key {
        output.write_all(record.key.as_deref().unwrap_or(b"null"))?;
        output.write_all(b"\t")?;
    }
    output.write_all(record.value.as_deref().unwrap_or(b"null"))?;
    output.write_all(b"\n")
}
