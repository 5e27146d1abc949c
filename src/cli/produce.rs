//! `drave produce`: lines from standard input become records.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::Connect;
use super::output::{Output, OutputArgs, print_json};
use crate::client::{Compression, Producer, ProducerConfig};

/// Records without a key stay on a partition for so many before they move on to
/// the next: batches are larger then.
const RECORDS_PER_TURN: usize = 500;
const LINE_BYTES_MAX: usize = 64 << 20;

/// Arguments of `drave produce`.
#[derive(Args)]
pub(super) struct ProduceArgs {
    /// The topic
    topic: String,
    /// What comes before the first SEPARATOR in a line is the record's key
    #[arg(long, value_name = "SEPARATOR")]
    key_separator: Option<String>,
    /// When a record counts as written
    #[arg(long, value_enum, default_value_t = Acks::All, value_name = "WHEN")]
    acks: Acks,
    /// How batches are compressed
    #[arg(long, value_enum, default_value_t = Compression::None, value_name = "KIND")]
    compression: Compression,
    /// Write to this partition only
    #[arg(long, value_name = "N")]
    partition: Option<usize>,
    /// How long a batch waits for more lines, ms
    #[arg(long, default_value_t = 5, value_name = "MS")]
    linger_ms: u64,
    #[command(flatten)]
    connect: Connect,
    #[command(flatten)]
    output: OutputArgs,
}

/// When a record counts as written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Acks {
    /// At once, unseen
    #[value(name = "0")]
    None,
    /// When its leader has it (drave: as `all`)
    #[value(name = "1")]
    Leader,
    /// When a majority has it on disk
    All,
}

#[derive(Default)]
struct Counters {
    records: AtomicU64,
    bytes: AtomicU64,
    failure: Mutex<Option<String>>,
}

pub(super) async fn run(args: ProduceArgs) -> anyhow::Result<()> {
    let config = ProducerConfig {
        acks: match args.acks {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        },
        idempotent: args.acks == Acks::All,
        linger: Duration::from_millis(args.linger_ms),
        compression: args.compression,
        ..ProducerConfig::default()
    };
    let counters = Arc::new(Counters::default());
    let counted = counters.clone();
    let report = move |batch: crate::client::Acknowledged| match batch.outcome {
        Ok(_) => {
            counted
                .records
                .fetch_add(batch.appended_at.len() as u64, Ordering::Relaxed);
            counted
                .bytes
                .fetch_add(batch.bytes as u64, Ordering::Relaxed);
        }
        Err(error) => {
            counted.failure.lock().get_or_insert(error.to_string());
        }
    };
    let producer = Producer::new(args.connect.cluster(), &args.topic, config, report)
        .await
        .with_context(|| format!("topic {}", args.topic))?;
    if let Some(partition) = args.partition {
        let partitions = producer.partitions();
        anyhow::ensure!(
            partition < partitions,
            "topic {} has partitions 0 to {}",
            args.topic,
            partitions - 1
        );
    }
    let outcome = copy_lines(&args, &producer, &counters).await;
    let records = counters.records.load(Ordering::Relaxed);
    if let Some(failure) = counters.failure.lock().take() {
        anyhow::bail!("{failure} ({records} records are written)");
    }
    outcome?;
    match args.output.output {
        Output::Json => print_json(&json!({ "topic": args.topic, "records": records })),
        Output::Table => {
            eprintln!("{records} records written to {}", args.topic);
            Ok(())
        }
    }
}

async fn copy_lines(
    args: &ProduceArgs,
    producer: &Producer,
    counters: &Counters,
) -> anyhow::Result<()> {
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        eprintln!("one record a line; Ctrl-D ends");
    }
    let bar = progress_bar();
    let mut input = BufReader::with_capacity(256 << 10, tokio::io::stdin());
    let mut line = Vec::new();
    let mut number = 0usize;
    loop {
        line.clear();
        let read = tokio::io::AsyncReadExt::take(&mut input, LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .await
            .context("standard input")?;
        if read == 0 {
            break;
        }
        anyhow::ensure!(read < LINE_BYTES_MAX, "line {} is too long", number + 1);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let (key, value) = split(&line, args.key_separator.as_deref());
        let partition = match (args.partition, key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => producer.partition_of(key),
            (None, None) => number / RECORDS_PER_TURN % producer.partitions(),
        };
        producer.send(partition, key, Some(value)).await?;
        number += 1;
        if number.is_multiple_of(1024) {
            bar.set_position(counters.records.load(Ordering::Relaxed));
            bar.set_message(
                indicatif::HumanBytes(counters.bytes.load(Ordering::Relaxed)).to_string(),
            );
        }
    }
    producer.flush().await?;
    bar.finish_and_clear();
    Ok(())
}

/// A bar is drawn only where a file or a pipe comes in and a person looks on.
fn progress_bar() -> ProgressBar {
    if std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {pos} records, {msg}, {per_sec}, {elapsed}");
    ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

fn split<'a>(line: &'a [u8], separator: Option<&str>) -> (Option<&'a [u8]>, &'a [u8]) {
    let separator = separator.unwrap_or_default().as_bytes();
    if separator.is_empty() {
        return (None, line);
    }
    match line
        .windows(separator.len())
        .position(|window| window == separator)
    {
        Some(at) => (Some(&line[..at]), &line[at + separator.len()..]),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_the_first_separator() {
        assert_eq!(split(b"a:b:c", Some(":")), (Some(&b"a"[..]), &b"b:c"[..]));
        assert_eq!(split(b"abc", Some(":")), (None, &b"abc"[..]));
        assert_eq!(split(b"a:b", None), (None, &b"a:b"[..]));
        assert_eq!(split(b"a=>b", Some("=>")), (Some(&b"a"[..]), &b"b"[..]));
    }
}
