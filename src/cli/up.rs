//! `drave up` and `drave down`: a local cluster of real broker processes.
//!
//! The supervisor owns the processes unless it is detached: Ctrl-C stops them
//! all, they end when it dies, and one that dies alone is started again.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::cluster::{BrokerLine, overview};
use super::local::{Directory, Plan, Process, Running, last_line, stop};
use super::output::{print_line, table};
use crate::client::Cluster;

/// How long brokers may take to form the cluster.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How long brokers may take to hand over and stop.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// A broker that ends sooner than this is not started again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
const RESTART_AFTER: Duration = Duration::from_secs(5);
const REFRESH: Duration = Duration::from_secs(1);

/// Arguments of `drave up`.
#[derive(Args)]
pub(super) struct UpArgs {
    /// Brokers [default: as many as DATA holds, else 1]
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Directory of the cluster's data and logs
    #[arg(long, default_value = "data", value_name = "DIR")]
    data: PathBuf,
    /// Port of the first broker; the next ones lie 10 apart
    #[arg(long, default_value_t = 9092, value_name = "PORT")]
    base_port: u16,
    /// Leave the brokers running in the background
    #[arg(long)]
    detach: bool,
}

/// Arguments of `drave down`.
#[derive(Args)]
pub(super) struct DownArgs {
    /// Directory of the cluster's data and logs
    #[arg(long, default_value = "data", value_name = "DIR")]
    data: PathBuf,
}

/// A broker process under supervision.
struct Node {
    process: Process,
    child: Child,
    started: Instant,
    state: State,
}

enum State {
    Running,
    /// Ended, to be started again at this time; `None`: not at all.
    Ended(Option<Instant>),
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// `drave up`.
pub(super) async fn up(args: UpArgs) -> anyhow::Result<()> {
    let directory = Directory(args.data.clone());
    let nodes = args.nodes.unwrap_or_else(|| directory.nodes().max(1));
    let mut plan = Plan {
        directory,
        nodes,
        base_port: args.base_port,
        detach: args.detach,
    };
    plan.check()?;
    let shown = || format!("{}", args.data.display());
    std::fs::create_dir_all(&args.data).with_context(shown)?;
    plan.directory = Directory(args.data.canonicalize().with_context(shown)?);
    let mut signals = Signals::new()?;
    let mut started = Vec::new();
    let outcome = run(&plan, &mut started, &mut signals, &args.data).await;
    if plan.detach && outcome.is_ok() {
        return outcome;
    }
    if started.iter_mut().any(|node| node.process.is_alive()) {
        eprintln!(
            "stopping {} …",
            if nodes == 1 {
                "the broker"
            } else {
                "the brokers"
            }
        );
    }
    let processes: Vec<Process> = started.iter().map(|node| node.process.clone()).collect();
    let killed = tokio::select! {
        killed = stop(&processes, STOP_WITHIN) => killed,
        () = signals.any() => stop(&processes, Duration::ZERO).await,
    };
    for node in &mut started {
        drop(node.child.wait());
    }
    plan.directory.forget();
    outcome?;
    match killed.is_empty() {
        true => eprintln!(
            "stopped; `drave up` takes up the data in {} again",
            args.data.display()
        ),
        false => bail!("nodes {killed:?} did not stop in time and were killed"),
    }
    Ok(())
}

async fn run(
    plan: &Plan,
    nodes: &mut Vec<Node>,
    signals: &mut Signals,
    data: &std::path::Path,
) -> anyhow::Result<()> {
    for node in 1..=plan.nodes {
        nodes.push(start(plan, node)?);
        note(plan, nodes)?;
    }
    let cluster = Cluster::new(&plan.bootstrap(), "drave-up");
    tokio::select! {
        ready = wait_until_ready(plan, nodes, &cluster) => ready?,
        () = signals.any() => return Ok(()),
    }
    print_welcome(plan, data)?;
    if plan.detach {
        print_line(&brokers_table(&overview(&cluster).await?.brokers))?;
        return print_line(&format!(
            "\nstop it with: drave down --data {}",
            data.display()
        ));
    }
    let live = std::io::stdout().is_terminal();
    let mut lines_shown = 0;
    let mut ticks = 0u64;
    loop {
        if (live || ticks == 0)
            && let Ok(overview) = overview(&cluster).await
        {
            let shown = brokers_table(&overview.brokers);
            if lines_shown > 0 {
                print!("\x1b[{lines_shown}A\x1b[J");
            }
            lines_shown = shown.lines().count() + 1;
            print_line(&shown)?;
            print_line(&format!("{}  Ctrl-C stops it.", overview.sentence()))?;
            std::io::stdout().flush()?;
        }
        ticks += 1;
        tokio::select! {
            () = tokio::time::sleep(REFRESH) => {}
            () = signals.any() => return Ok(()),
        }
        if supervise(plan, nodes)? {
            // What was said stands above the table, which is drawn anew.
            lines_shown = 0;
        }
    }
}

fn start(plan: &Plan, node: u32) -> anyhow::Result<Node> {
    let (process, child) = plan.start(node)?;
    Ok(Node {
        process,
        child,
        started: Instant::now(),
        state: State::Running,
    })
}

fn note(plan: &Plan, nodes: &[Node]) -> anyhow::Result<()> {
    let processes = nodes.iter().map(|node| node.process.clone()).collect();
    let supervisor = if plan.detach {
        None
    } else {
        Some(Process::this()?)
    };
    plan.directory.note(&Running {
        base_port: plan.base_port,
        supervisor,
        processes,
    })
}

/// Ready means that every broker answers and knows of all the others.
async fn wait_until_ready(
    plan: &Plan,
    nodes: &mut [Node],
    cluster: &Cluster,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        for node in nodes.iter_mut() {
            if let Some(status) = node.child.try_wait()? {
                let id = node.process.node;
                let why = last_line(&plan.directory.log(id));
                bail!("node {id} ended with {status}: {why}");
            }
        }
        let mut ready = 0;
        for node in 1..=plan.nodes {
            let one = Cluster::new(&plan.address(node), "drave-up");
            let known =
                tokio::time::timeout(Duration::from_secs(2), one.metadata(Some(&[]), false));
            if let Ok(Ok(metadata)) = known.await
                && metadata.brokers.len() == plan.nodes as usize
            {
                ready += 1;
            }
        }
        if ready == plan.nodes {
            return cluster.any().await.map(drop).map_err(Into::into);
        }
        if Instant::now() > deadline {
            bail!(
                "after {} s {ready} of {} brokers are ready; their logs: {}",
                READY_WITHIN.as_secs(),
                plan.nodes,
                plan.directory.0.join("node-*/log").display()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Notices brokers that ended and starts them again; whether something was said.
fn supervise(plan: &Plan, nodes: &mut [Node]) -> anyhow::Result<bool> {
    let mut said = false;
    for position in 0..nodes.len() {
        let node = &mut nodes[position];
        let id = node.process.node;
        match node.state {
            State::Running => {
                let Some(status) = node.child.try_wait()? else {
                    continue;
                };
                said = true;
                let log = plan.directory.log(id);
                if node.started.elapsed() < HEALTHY_AFTER {
                    node.state = State::Ended(None);
                    let why = last_line(&log);
                    eprintln!("node {id} ended with {status} and stays down: {why}");
                } else {
                    node.state = State::Ended(Some(Instant::now() + RESTART_AFTER));
                    let pause = RESTART_AFTER.as_secs();
                    let log = log.display();
                    eprintln!(
                        "node {id} ended with {status}, starting it again in {pause} s; log: {log}"
                    );
                }
            }
            State::Ended(Some(at)) if at <= Instant::now() => {
                nodes[position] = start(plan, id)?;
                note(plan, nodes)?;
                said = true;
                eprintln!("node {id} is started again");
            }
            State::Ended(_) => {}
        }
    }
    if nodes
        .iter()
        .all(|node| matches!(node.state, State::Ended(None)))
    {
        bail!("no broker is left");
    }
    Ok(said)
}

fn print_welcome(plan: &Plan, data: &std::path::Path) -> anyhow::Result<()> {
    let first = plan.address(1);
    let option = match plan.base_port {
        9092 => String::new(),
        _ => format!(" --bootstrap {first}"),
    };
    let brokers = if plan.nodes == 1 { "broker" } else { "brokers" };
    print_line(&format!(
        "drave is up: {} {brokers}, data in {}

  bootstrap address   {}
  create a topic      drave topic create orders --partitions 6{option}
  produce             echo 'hello' | drave produce orders{option}
  consume             drave consume orders --from-beginning{option}
  any Kafka client    echo 'hello' | kcat -b {first} -t orders -P
  logs                {}
",
        plan.nodes,
        data.display(),
        plan.bootstrap(),
        data.join("node-*/log").display(),
    ))
}

fn brokers_table(brokers: &[BrokerLine]) -> String {
    let rows = brokers.iter().map(BrokerLine::row);
    table(BrokerLine::HEADER, rows).trim_fmt()
}

/// `drave down`.
pub(super) async fn down(args: DownArgs) -> anyhow::Result<()> {
    let data = args.data.display();
    let directory = Directory(args.data.clone());
    let Some(running) = directory.running()? else {
        bail!("nothing runs in {data}")
    };
    let alive: Vec<Process> = running
        .processes
        .into_iter()
        .filter(Process::is_alive)
        .collect();
    // A supervisor stops its brokers itself, and would start them again otherwise.
    if let Some(supervisor) = running.supervisor.filter(Process::is_alive) {
        stop(&[supervisor], STOP_WITHIN + Duration::from_secs(5)).await;
    } else if alive.is_empty() {
        directory.forget();
        bail!("nothing runs in {data}");
    }
    let killed = stop(&alive, STOP_WITHIN).await;
    directory.forget();
    match killed.is_empty() {
        true => print_line(&format!("stopped {} brokers of {data}", alive.len())),
        false => bail!("nodes {killed:?} did not stop in time and were killed"),
    }
}
