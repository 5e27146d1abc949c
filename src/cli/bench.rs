//! `drave bench`: what survives.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use drave_durability::availability::measure;
use drave_durability::disk::{NamesPolicy, Torn};
use drave_durability::judge::judge;
use drave_durability::report::{
    FORMAT_VERSION, Report, ScenarioReport, Standing, TABLE_HEADER, TargetReport, html,
    table as rows,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::output::{Output, OutputArgs, print_json, print_line, table};
use crate::durability::{Given, Kind, Load, Outcome, Progress, Runner, Scenario};

/// A time without acknowledgements from here on is shown as an outage.
const OUTAGE_US: u64 = 500_000;
const INTERRUPTED: &str = "interrupted; everything that was started is stopped";

/// Benchmarks that a user runs.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Hurt a cluster under load, and tell what survived
    Durability(Box<DurabilityArgs>),
}

/// Flags of `drave bench durability`.
#[derive(Args)]
pub(super) struct DurabilityArgs {
    /// Whose brokers to start; may be repeated, for a report side by side
    #[arg(
        long,
        value_enum,
        default_value = "drave",
        conflicts_with = "bootstrap"
    )]
    target: Vec<Target>,
    /// Folder of Apache Kafka's jars
    #[arg(
        long,
        env = "DRAVE_KAFKA_LIBS",
        value_name = "DIR",
        default_value = "/opt/kafka/libs"
    )]
    kafka_libs: PathBuf,
    /// What to do to them; may be repeated [default: everything]
    #[arg(long, value_enum, conflicts_with = "bootstrap")]
    scenario: Vec<Scenario>,
    /// Load and judge this running cluster instead, HOST:PORT separated by commas
    #[arg(long, value_name = "HOST:PORT")]
    bootstrap: Option<String>,
    /// Shell command that hurts the cluster of --bootstrap when DRAVE_FAULT is `begin` and mends it when it is `end`
    #[arg(long, value_name = "COMMAND", requires = "bootstrap")]
    on_fault: Option<String>,
    /// How often a fault is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Decides whom faults hit, and when [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// What a power cut leaves of bytes that were written and not synced
    #[arg(
        long,
        value_enum,
        default_value = "pages",
        conflicts_with = "bootstrap"
    )]
    torn: TornWrites,
    /// A power cut also takes names (create, rename, unlink) whose folder was not synced
    #[arg(long, conflicts_with = "bootstrap")]
    lose_names: bool,
    /// Partitions of the topic
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Idempotent producers with acks=all
    #[arg(long, default_value_t = 2)]
    producers: u32,
    /// Producers with acks=all that are not idempotent
    #[arg(long, default_value_t = 1)]
    plain_producers: u32,
    /// Producers with acks=1, whose losses are told but tolerated
    #[arg(long, default_value_t = 0)]
    acks1_producers: u32,
    /// Idempotent producers that write in transactions, where the brokers have them
    #[arg(long, default_value_t = 1)]
    transactional_producers: u32,
    /// Consumers that read along
    #[arg(long, default_value_t = 2)]
    consumers: u32,
    /// Records a second of all producers together
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=900_000))]
    value_bytes: u32,
    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = "durability-report")]
    report: PathBuf,
    /// Folder for the brokers' data and logs, kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Brokers that can be started.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// This program
    Drave,
    /// Apache Kafka as it comes: it acknowledges before it syncs
    Kafka,
    /// Apache Kafka that syncs before it acknowledges
    KafkaFsync,
}

/// What a power cut leaves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TornWrites {
    /// Nothing
    Lost,
    /// A random half of the pages of 4096 bytes
    Pages,
    /// A random half of the sectors of 512 bytes
    Sectors,
}

/// Runs a benchmark.
pub(super) fn run(command: BenchCommand) -> anyhow::Result<()> {
    let BenchCommand::Durability(args) = command;
    // The load has threads of its own: nothing that the faults wait for makes a gap in it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let bad = runtime.block_on(async {
        let (mut interrupt, mut terminate, mut hangup) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        );
        // What was started goes with the future that is dropped.
        tokio::select! {
            outcome = durability(&args) => outcome,
            _ = interrupt.recv() => bail!(INTERRUPTED),
            _ = terminate.recv() => bail!(INTERRUPTED),
            _ = hangup.recv() => bail!(INTERRUPTED),
        }
    })?;
    ensure!(
        bad == 0,
        "{bad} scenarios broke a promise or could not be played to their end"
    );
    Ok(())
}

/// Runs everything, writes the report; how many scenarios broke a promise or off.
async fn durability(args: &DurabilityArgs) -> anyhow::Result<usize> {
    ensure!(
        load(args).all_producers() > 0,
        "there is nothing to judge without a producer"
    );
    std::fs::create_dir_all(&args.report).with_context(|| format!("{}", args.report.display()))?;
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut report = Report {
        version: FORMAT_VERSION,
        title: "Durability under faults".to_owned(),
        started: now(),
        seed,
        command: repeat(seed),
        targets: Vec::new(),
    };
    let temporary = tempfile::Builder::new()
        .prefix("drave-durability-")
        .tempdir()?;
    let data = args.data.as_deref().unwrap_or(temporary.path());
    let scenarios = match args.scenario.as_slice() {
        [] => Scenario::all(),
        chosen => chosen,
    };
    let mut targets = args.target.clone();
    targets.dedup();
    let count = match args.bootstrap {
        Some(_) => 1,
        None => targets.len() * scenarios.len(),
    };
    let progress = Progress::new(count);
    let drawing = progress.draw();
    if let Some(bootstrap) = &args.bootstrap {
        let given = Given {
            bootstrap: bootstrap.clone(),
            on_fault: args.on_fault.clone(),
            load: load(args),
            rounds: args.rounds,
        };
        let outcome = given.run(&progress).await?;
        let told = tell("given", "What the owner of the cluster did to it", outcome);
        progress.done(&line(bootstrap, &told));
        report.targets.push(TargetReport {
            name: bootstrap.clone(),
            scenarios: vec![told],
        });
        write(&report, &args.report)?;
    } else {
        for target in targets {
            let kind = target.kind(&args.kafka_libs);
            report.targets.push(TargetReport {
                name: kind.name(),
                scenarios: Vec::new(),
            });
            let runner = Runner {
                kind,
                load: load(args),
                rounds: args.rounds,
                seed,
                torn: match args.torn {
                    TornWrites::Lost => Torn::No,
                    TornWrites::Pages => Torn::Pages,
                    TornWrites::Sectors => Torn::Sectors,
                },
                names: match args.lose_names {
                    true => NamesPolicy::LostUnlessSynced,
                    false => NamesPolicy::Durable,
                },
            };
            for scenario in scenarios {
                let folder = data.join(target.name());
                let told = match scenario.impossible_here() {
                    Some(why) => left_out(*scenario, why),
                    None => match runner.run(*scenario, &folder, &progress).await {
                        Ok(outcome) => tell(&scenario.name(), &scenario.description(), outcome),
                        Err(error) => {
                            let outcome = Outcome {
                                broken_off: Some(format!("{error:#}")),
                                ..Outcome::default()
                            };
                            tell(&scenario.name(), &scenario.description(), outcome)
                        }
                    },
                };
                progress.done(&line(&runner.kind.name(), &told));
                let current = report.targets.last_mut().context("pushed above")?;
                current.scenarios.push(told);
                // Whatever comes next: what is known is written down.
                write(&report, &args.report)?;
                if args.data.is_none() {
                    std::fs::remove_dir_all(&folder).ok();
                }
            }
        }
    }
    drawing.abort();
    progress.finish();
    print(args, &report)?;
    let all = report.targets.iter().flat_map(|target| &target.scenarios);
    Ok(all.filter(|told| !held(told)).count())
}

impl Target {
    fn kind(self, libs: &Path) -> Kind {
        match self {
            Target::Drave => Kind::Drave,
            Target::Kafka | Target::KafkaFsync => Kind::Kafka {
                libs: libs.to_owned(),
                fsync: self == Target::KafkaFsync,
            },
        }
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}

fn load(args: &DurabilityArgs) -> Load {
    Load {
        partitions: args.partitions,
        producers: args.producers,
        plain_producers: args.plain_producers,
        acks1_producers: args.acks1_producers,
        transactional_producers: args.transactional_producers,
        consumers: args.consumers,
        rate: args.rate,
        value_bytes: args.value_bytes as usize,
    }
}

/// A scenario without a history, and why.
fn left_out(scenario: Scenario, why: String) -> ScenarioReport {
    let (name, description) = (scenario.name(), scenario.description());
    ScenarioReport {
        skipped: Some(why),
        ..tell(&name, &description, Outcome::default())
    }
}

fn tell(name: &str, description: &str, outcome: Outcome) -> ScenarioReport {
    let history = outcome.history;
    ScenarioReport {
        name: name.to_owned(),
        description: description.to_owned(),
        verdict: judge(&history),
        availability: measure(&history, OUTAGE_US),
        faults: history.faults,
        notes: outcome.notes,
        skipped: None,
        broken_off: outcome.broken_off,
    }
}

/// What is said of a scenario as soon as it has ended.
fn line(target: &str, told: &ScenarioReport) -> String {
    let name = &told.name;
    if let Some(why) = &told.skipped {
        return format!("{target}: {name}: {why}");
    }
    let counts = &told.verdict.counts;
    let gap = told.availability.longest_gap();
    let gap_ms = gap.map_or(0, |(_, gap)| gap.length_us() / 1_000);
    let violations: Vec<String> = told
        .verdict
        .violations
        .iter()
        .map(|finding| format!("{} {}", finding.count, finding.kind.label()))
        .collect();
    let mut verdict = match violations.as_slice() {
        [] => "nothing lost".to_owned(),
        some => some.join(", "),
    };
    if let Some(why) = &told.broken_off {
        verdict += &format!("; broken off: {why}");
    }
    format!(
        "{target}: {name}: {verdict}; {} records acknowledged, longest gap {gap_ms} ms",
        counts.acknowledged
    )
}

/// Whether a scenario kept its promises, or was left out because it is not possible here.
fn held(told: &ScenarioReport) -> bool {
    matches!(told.standing(), Standing::Held | Standing::Skipped)
}

fn write(report: &Report, folder: &Path) -> anyhow::Result<()> {
    let json = folder.join("report.json");
    let file = File::create(&json).with_context(|| format!("{}", json.display()))?;
    report.to_writer(BufWriter::new(file))?;
    let page = folder.join("report.html");
    std::fs::write(&page, html(report)).with_context(|| format!("{}", page.display()))
}

fn print(args: &DurabilityArgs, report: &Report) -> anyhow::Result<()> {
    match args.output.output {
        Output::Json => print_json(report),
        Output::Table => {
            print_line(&table(&TABLE_HEADER, rows(report)).trim_fmt())?;
            print_line(&format!(
                "\nreport: {}, {}",
                args.report.join("report.html").display(),
                args.report.join("report.json").display()
            ))
        }
    }
}

/// The command line with the seed that was used.
fn repeat(seed: u64) -> String {
    let mut words: Vec<String> = std::iter::once("drave".to_owned())
        .chain(std::env::args().skip(1))
        .collect();
    if !words.iter().any(|word| word.starts_with("--seed")) {
        words.push(format!("--seed={seed}"));
    }
    let quoted = words.iter().map(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@".contains(c);
        match word.chars().all(plain) {
            true => word.clone(),
            false => format!("'{}'", word.replace('\'', "'\\''")),
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Now, as RFC 3339 has it.
fn now() -> String {
    let mut text = String::new();
    let written = SystemTime.format_time(&mut Writer::new(&mut text));
    written.map_or_else(|_| "unknown".to_owned(), |()| text)
}
