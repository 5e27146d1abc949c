//! `drave bench`: what survives.

mod arguments;
mod durability;
mod judge;
mod told;

use anyhow::{bail, ensure};
use clap::Subcommand;
use tokio::signal::unix::{SignalKind, signal};

use self::arguments::DurabilityArgs;
use self::judge::JudgeArgs;

const INTERRUPTED: &str = "interrupted; everything that was started is stopped";

/// Benchmarks that a user runs.
#[derive(Subcommand)]
pub(super) enum BenchCommand {
    /// Hurt a cluster under load, and tell what survived
    Durability(Box<DurabilityArgs>),
    /// Judge histories again that a run has kept
    Judge(JudgeArgs),
}

/// Runs a benchmark.
pub(super) fn run(command: BenchCommand) -> anyhow::Result<()> {
    let bad = match command {
        BenchCommand::Durability(args) => durability(&args)?,
        BenchCommand::Judge(args) => judge::run(&args)?,
    };
    ensure!(
        bad == 0,
        "{bad} scenarios broke a promise or could not be played to their end"
    );
    Ok(())
}

/// Runs scenarios until they end or a signal comes.
fn durability(args: &DurabilityArgs) -> anyhow::Result<usize> {
    // The load has threads of its own: nothing that the faults wait for makes a gap in it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate, mut hangup) = (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        );
        // What was started goes with the future that is dropped.
        tokio::select! {
            outcome = durability::run(args) => outcome,
            _ = interrupt.recv() => bail!(INTERRUPTED),
            _ = terminate.recv() => bail!(INTERRUPTED),
            _ = hangup.recv() => bail!(INTERRUPTED),
        }
    })
}
