//! `drave bench judge`: the verdict on histories that a run has kept.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use drave_durability::report::{FORMAT_VERSION, Report};
use drave_durability::report::{TABLE_HEADER, TargetReport, table as rows};
use drave_durability::saved::Saved;

use super::told::{held, tell};
use crate::cli::output::{Output, OutputArgs, print_json, print_line, table};
use crate::durability::Outcome;

/// Flags of `drave bench judge`.
#[derive(Args)]
pub(in crate::cli) struct JudgeArgs {
    /// Files that `drave bench durability --histories` wrote
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Judges them; how many broke a promise.
pub(super) fn run(args: &JudgeArgs) -> anyhow::Result<usize> {
    let mut report = Report {
        version: FORMAT_VERSION,
        title: "Histories judged again".to_owned(),
        started: String::new(),
        seed: 0,
        command: String::new(),
        targets: Vec::new(),
    };
    for file in &args.files {
        let saved = open(file).with_context(|| format!("{}", file.display()))?;
        let outcome = Outcome {
            history: saved.history,
            ..Outcome::default()
        };
        let told = tell(&saved.scenario, "", outcome);
        let known = report.targets.iter_mut().find(|it| it.name == saved.target);
        match known {
            Some(target) => target.scenarios.push(told),
            None => report.targets.push(TargetReport {
                name: saved.target,
                scenarios: vec![told],
            }),
        }
    }
    match args.output.output {
        Output::Json => print_json(&report)?,
        Output::Table => print_line(&table(&TABLE_HEADER, rows(&report)).trim_fmt())?,
    }
    let all = report.targets.iter().flat_map(|target| &target.scenarios);
    Ok(all.filter(|told| !held(told)).count())
}

fn open(path: &Path) -> anyhow::Result<Saved> {
    let compressed = File::open(path)?;
    Ok(Saved::from_reader(zstd::Decoder::new(compressed)?)?)
}
