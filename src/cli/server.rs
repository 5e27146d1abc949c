//! `drave server`: one broker.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Overrides};

/// Arguments of `drave server`.
#[derive(Args)]
pub(super) struct ServerArgs {
    /// Settings as TOML; variables and flags win over it
    #[arg(long, env = "DRAVE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Stop when standard input ends: a local cluster's brokers end with their supervisor
    #[arg(long, hide = true)]
    stop_on_stdin_end: bool,
    /// Leave the terminal's session: a detached broker outlives the terminal
    #[arg(long, hide = true)]
    new_session: bool,
}

pub(super) fn run(args: ServerArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), &args.overrides)?;
    let filter = EnvFilter::try_new(&config.log)
        .with_context(|| format!("log: `{}` is no filter", config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if args.new_session {
        rustix::process::setsid().context("can't leave the terminal's session")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let stop = stop_signal(args.stop_on_stdin_end)?;
        crate::node::run(config, stop).await
    });
    runtime.shutdown_background();
    outcome
}

/// Resolves at the first SIGTERM, SIGINT or, if asked for, end of standard
/// input. A second signal ends the process at once.
fn stop_signal(stop_on_stdin_end: bool) -> anyhow::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (ended, stdin_end) = tokio::sync::oneshot::channel::<()>();
    let mut never_ended = Some(ended);
    if stop_on_stdin_end {
        let ended = never_ended.take();
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                drop(std::io::copy(
                    &mut std::io::stdin().lock(),
                    &mut std::io::sink(),
                ));
                drop(ended);
            })?;
    }
    Ok(async move {
        let _never_ended = never_ended;
        tokio::select! {
            _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "stopping"),
            _ = stdin_end => tracing::info!("stopping, since the supervisor has gone"),
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::warn!("second signal: ending without handing anything over");
            std::process::exit(1);
        });
    })
}
