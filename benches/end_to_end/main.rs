//! The end-to-end benchmark: real broker processes, real sockets, one load
//! generator for drave and for Kafka, side by side in one run.
//!
//! `cargo bench --profile release --bench end_to_end -- --kafka-script PATH`
//! where PATH is a script that knows `up DIR` and `down DIR`, writes the pids of
//! its three brokers to `DIR/pids` and listens on 127.0.0.1:19092. Without it,
//! drave is measured alone. Figures of a shared machine are worth their ratios.

mod load;
mod report;
mod servers;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};

use load::{Load, latency, read_back, throughput};
use report::{Figures, Row};
use servers::Servers;

/// Measures drave, and Kafka beside it.
#[derive(Parser)]
struct Arguments {
    /// What to measure; may be repeated [default: everything]
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Seconds that count
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds before them that don't
    #[arg(long, default_value_t = 5)]
    warm_up: u64,
    /// How often everything is measured, drave and Kafka in turn; medians are shown
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Starts and stops three Kafka brokers
    #[arg(long, value_name = "PATH")]
    kafka_script: Option<PathBuf>,
    /// Let Kafka acknowledge before its fsync, as it does by default
    #[arg(long)]
    kafka_without_fsync: bool,
    /// Measure these brokers instead of starting any
    #[arg(long, value_name = "HOST:PORT", requires = "pid")]
    bootstrap: Option<String>,
    /// Process of a broker of --bootstrap; may be repeated
    #[arg(long)]
    pid: Vec<u32>,
    /// Leave drave out
    #[arg(long)]
    only_kafka: bool,
    /// Folder for the brokers' data [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How to print the figures
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// 1 KiB records to 6 partitions at full speed, then read back
    Throughput,
    /// 1 KiB records to one partition
    OnePartition,
    /// 100-byte records to 6 partitions
    Small,
    /// 1 KiB records to 600 partitions
    ManyPartitions,
    /// 2,000 records of 1 KiB a second to 6 partitions, no linger
    Latency,
    /// 200 records of 1 KiB a second to 6 partitions, no linger
    LowRate,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // The load generator has one thread, so that it takes at most one core.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let scenarios = match arguments.scenario.is_empty() {
        true => Scenario::value_variants().to_vec(),
        false => arguments.scenario.clone(),
    };
    let temporary = tempfile::tempdir()?;
    let data = arguments
        .data
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    let mut rows: Vec<Row> = Vec::new();
    for round in 0..arguments.rounds.max(1) {
        for target in targets(arguments) {
            eprintln!("round {}: {target}", round + 1);
            let folder = data.join(format!("{target}-{round}"));
            std::fs::create_dir_all(&folder).context("data folder")?;
            let servers = match (target, &arguments.bootstrap) {
                (_, Some(bootstrap)) => Servers::given(bootstrap, &arguments.pid),
                ("drave", None) => Servers::drave(&folder).await?,
                _ => {
                    let script = arguments.kafka_script.as_deref().context("no script")?;
                    Servers::kafka(script, &folder, !arguments.kafka_without_fsync).await?
                }
            };
            for scenario in &scenarios {
                let measured = measure(arguments, *scenario, &servers, round).await;
                for (name, figures) in measured.context(target)? {
                    eprintln!("  {name}: {}", figures.sentence());
                    rows.push(Row {
                        scenario: name,
                        target: target.to_owned(),
                        figures,
                    });
                }
            }
            servers.stop().await?;
            std::fs::remove_dir_all(&folder).ok();
        }
    }
    let rows = report::medians(rows);
    match arguments.output {
        Output::Table => println!("{}", report::table(&rows)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
    }
    Ok(())
}

fn targets(arguments: &Arguments) -> Vec<&'static str> {
    if arguments.bootstrap.is_some() {
        return vec!["given"];
    }
    let mut targets = Vec::new();
    if !arguments.only_kafka {
        targets.push("drave");
    }
    if arguments.kafka_script.is_some() {
        targets.push("kafka");
    }
    targets
}

async fn measure(
    arguments: &Arguments,
    scenario: Scenario,
    servers: &Servers,
    round: usize,
) -> anyhow::Result<Vec<(&'static str, Figures)>> {
    let load = |name: &'static str, partitions, record_bytes| Load {
        name,
        topic: format!("bench-{name}-{round}").replace([' ', '×', ','], "-"),
        partitions,
        record_bytes,
        warm_up: Duration::from_secs(arguments.warm_up),
        measured: Duration::from_secs(arguments.seconds),
    };
    let load = match scenario {
        Scenario::Throughput => load("1KiB × 6", 6, 1024),
        Scenario::OnePartition => load("1KiB × 1", 1, 1024),
        Scenario::Small => load("100B × 6", 6, 100),
        Scenario::ManyPartitions => load("1KiB × 600", 600, 1024),
        Scenario::Latency => load("2000 a second", 6, 1024),
        Scenario::LowRate => load("200 a second", 6, 1024),
    };
    load.create_topic(servers).await?;
    let mut figures = vec![(
        load.name,
        match scenario {
            Scenario::Latency => latency(&load, servers, 2_000).await?,
            Scenario::LowRate => latency(&load, servers, 200).await?,
            _ => throughput(&load, servers).await?,
        },
    )];
    if scenario == Scenario::Throughput {
        figures.push(("read back", read_back(&load, servers).await?));
    }
    load.delete_topic(servers).await?;
    Ok(figures)
}
