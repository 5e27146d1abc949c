//! The command line: `drave server` and `drave up` run brokers, the other
//! commands are clients of a cluster.
//!
//! Results go to standard output, everything else to standard error. A command
//! that fails prints one line, `error: …`, and ends with 1; a wrong command line
//! ends with 2.

mod bench;
mod cluster;
mod consume;
mod group;
mod local;
mod output;
mod produce;
mod server;
mod topic;
mod up;

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::client::Cluster;
use crate::planted;

/// A replicated log service that speaks Kafka's protocol.
#[derive(Parser)]
#[command(
    name = "drave",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one broker
    Server(server::ServerArgs),
    /// Start a local cluster of real brokers, for development
    Up(up::UpArgs),
    /// Stop a local cluster
    Down(up::DownArgs),
    /// Create, list, describe, change and delete topics
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Write lines from standard input to a topic
    Produce(produce::ProduceArgs),
    /// Print a topic's records
    Consume(consume::ConsumeArgs),
    /// Show the brokers of a cluster
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Show consumer groups
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Benchmark a cluster
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// How a client command reaches the cluster.
#[derive(Args, Clone)]
struct Connect {
    /// Brokers to begin with, HOST:PORT separated by commas
    #[arg(
        long,
        env = "DRAVE_BOOTSTRAP",
        default_value = "127.0.0.1:9092",
        value_name = "HOST:PORT"
    )]
    bootstrap: String,
}

impl Connect {
    fn cluster(&self) -> Cluster {
        Cluster::new(&self.bootstrap, "drave-cli")
    }
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    let outcome = planted::check().and_then(|()| run(command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("{error:#}")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ");
            drop(writeln!(std::io::stderr(), "error: {line}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Server(args) => server::run(args),
        Command::Up(args) => client(up::up(args)),
        Command::Down(args) => client(up::down(args)),
        Command::Topic(command) => client(topic::run(command)),
        Command::Produce(args) => client(produce::run(args)),
        Command::Consume(args) => client(consume::run(args)),
        Command::Cluster(command) => client(cluster::run(command)),
        Command::Group(command) => client(group::run(command)),
        Command::Bench(command) => bench::run(command),
    }
}

/// One thread is enough for a client.
fn client(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(command);
    // A read of standard input may still be blocked.
    runtime.shutdown_background();
    outcome
}

/// Whether the reader of our output has gone, as `drave consume … | head` does.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
