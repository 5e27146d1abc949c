//! `drave bench durability`: runs scenarios, and writes down what came of each.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use drave_durability::report::{
    FORMAT_VERSION, Report, ScenarioReport, TABLE_HEADER, TargetReport, html, table as rows,
};
use drave_durability::saved::{self, Saved};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::arguments::{DurabilityArgs, Target};
use super::told::{held, left_out, line, tell};
use crate::cli::output::{Output, print_json, print_line, table};
use crate::durability::{Given, Outcome, Progress, Scenario};

/// Of zstd: a history is mostly numbers that ascend.
const COMPRESSION_LEVEL: i32 = 3;

/// Runs everything, writes the report; how many scenarios broke a promise or off.
pub(super) async fn run(args: &DurabilityArgs) -> anyhow::Result<usize> {
    ensure!(
        args.load().all_producers() > 0,
        "there is nothing to judge without a producer"
    );
    let temporary = tempfile::Builder::new()
        .prefix("drave-durability-")
        .tempdir()?;
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut targets = args.target.clone();
    targets.dedup();
    let count = match args.bootstrap {
        Some(_) => 1,
        None => targets.len() * args.scenarios().len(),
    };
    let mut benchmark = Benchmark {
        args,
        data: args.data.as_deref().unwrap_or(temporary.path()),
        progress: Progress::new(count),
        report: Report {
            version: FORMAT_VERSION,
            title: "Durability under faults".to_owned(),
            started: now(),
            seed,
            command: repeat(seed),
            targets: Vec::new(),
        },
    };
    std::fs::create_dir_all(&args.report).with_context(|| format!("{}", args.report.display()))?;
    let drawing = benchmark.progress.draw();
    match &args.bootstrap {
        Some(bootstrap) => benchmark.hurt_given(bootstrap).await?,
        None => {
            for target in targets {
                benchmark.hurt(target).await?;
            }
        }
    }
    drawing.abort();
    benchmark.progress.finish();
    let report = benchmark.report;
    print(args, &report)?;
    let all = report.targets.iter().flat_map(|target| &target.scenarios);
    Ok(all.filter(|told| !held(told)).count())
}

/// A run under way.
struct Benchmark<'a> {
    args: &'a DurabilityArgs,
    /// Where brokers keep their data.
    data: &'a Path,
    progress: Progress,
    report: Report,
}

impl Benchmark<'_> {
    /// All scenarios on brokers of our own.
    async fn hurt(&mut self, target: Target) -> anyhow::Result<()> {
        let runner = self.args.runner(target, self.report.seed);
        self.begin(runner.kind.name());
        for scenario in self.args.scenarios() {
            let folder = self.data.join(target.name());
            let outcome = match scenario.impossible_here() {
                Some(why) => Err(why),
                None => Ok(runner.run(*scenario, &folder, &self.progress).await),
            };
            // A cluster that did not even start.
            let outcome = outcome.map(|ran| {
                ran.unwrap_or_else(|error| Outcome {
                    broken_off: Some(format!("{error:#}")),
                    ..Outcome::default()
                })
            });
            self.end(*scenario, target, outcome)?;
            if self.args.data.is_none() {
                std::fs::remove_dir_all(&folder).ok();
            }
        }
        Ok(())
    }

    /// A cluster of somebody else, with whatever its owner does to it.
    async fn hurt_given(&mut self, bootstrap: &str) -> anyhow::Result<()> {
        self.begin(bootstrap.to_owned());
        let given = Given {
            bootstrap: bootstrap.to_owned(),
            on_fault: self.args.on_fault.clone(),
            load: self.args.load(),
            rounds: self.args.rounds,
        };
        let outcome = given.run(&self.progress).await?;
        let (name, about) = ("given", "What the owner of the cluster did to it");
        self.keep(name, name, &outcome)?;
        self.tell(tell(name, about, outcome))
    }

    fn begin(&mut self, target: String) {
        self.report.targets.push(TargetReport {
            name: target,
            scenarios: Vec::new(),
        });
    }

    fn end(
        &mut self,
        scenario: Scenario,
        target: Target,
        outcome: Result<Outcome, String>,
    ) -> anyhow::Result<()> {
        let (name, about) = (scenario.name(), scenario.description());
        let told = match outcome {
            Ok(outcome) => {
                self.keep(&target.name(), &name, &outcome)?;
                tell(&name, &about, outcome)
            }
            Err(why) => left_out(&name, &about, why),
        };
        self.tell(told)
    }

    /// Adds to the report, and writes it: whatever comes next, what is known is written down.
    fn tell(&mut self, told: ScenarioReport) -> anyhow::Result<()> {
        let target = self.report.targets.last_mut().context("it has begun")?;
        self.progress.done(&line(&target.name, &told));
        target.scenarios.push(told);
        let folder = &self.args.report;
        let json = folder.join("report.json");
        let file = File::create(&json).with_context(|| format!("{}", json.display()))?;
        self.report.to_writer(BufWriter::new(file))?;
        let page = folder.join("report.html");
        std::fs::write(&page, html(&self.report)).with_context(|| format!("{}", page.display()))
    }

    /// Writes a history down, if histories are wanted.
    fn keep(&self, target: &str, scenario: &str, outcome: &Outcome) -> anyhow::Result<()> {
        if !self.args.histories {
            return Ok(());
        }
        let current = self.report.targets.last().context("it has begun")?;
        let saved = Saved {
            version: saved::FORMAT_VERSION,
            target: current.name.clone(),
            scenario: scenario.to_owned(),
            history: outcome.history.clone(),
        };
        let path = self.history(target, scenario);
        save(&saved, &path).with_context(|| format!("{}", path.display()))
    }

    fn history(&self, target: &str, scenario: &str) -> PathBuf {
        let file = format!("{target}-{scenario}.json.zst");
        self.args.report.join("histories").join(file)
    }
}

fn save(saved: &Saved, path: &Path) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = BufWriter::new(File::create(path)?);
    let mut compressed = zstd::Encoder::new(file, COMPRESSION_LEVEL)?;
    saved.to_writer(&mut compressed)?;
    compressed.finish()?.into_inner()?.sync_all()?;
    Ok(())
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
