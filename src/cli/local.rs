//! The broker processes of a local cluster: their directory, ports and pids.
//!
//! `DATA/node-N/data` is a broker's data directory, `DATA/node-N/log` what it
//! logs. `DATA/cluster.json` says which processes run; a pid counts only while
//! it is still the process that was started (same start time), so that a pid
//! used again by another program is never taken for ours.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Ports of two brokers lie so far apart.
const PORTS_PER_NODE: u16 = 10;

/// A local cluster as the file in its directory describes it.
#[derive(Serialize, Deserialize)]
pub(super) struct Running {
    /// Port of the first broker.
    pub(super) base_port: u16,
    /// The process that looks after them, unless they are detached.
    pub(super) supervisor: Option<Process>,
    /// The broker processes.
    pub(super) processes: Vec<Process>,
}

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its broker id.
    pub(super) node: u32,
    /// Its pid.
    pub(super) pid: u32,
    /// When it started, in the kernel's ticks since boot.
    started: u64,
}

impl Process {
    fn new(node: u32, pid: u32) -> anyhow::Result<Process> {
        let started = start_time(pid).with_context(|| format!("node {node} ended at once"))?;
        Ok(Process { node, pid, started })
    }

    /// This process.
    pub(super) fn this() -> anyhow::Result<Process> {
        Process::new(0, std::process::id())
    }

    /// Whether it still runs.
    pub(super) fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Asks it to stop, or kills it.
    pub(super) fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            // It may have ended in between.
            kill_process(pid, signal).ok();
        }
    }
}

/// The start time of a process that is not a zombie: field 22 of its `stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The directory of a local cluster.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    fn file(&self) -> PathBuf {
        self.0.join("cluster.json")
    }

    /// Where a broker logs to.
    pub(super) fn log(&self, node: u32) -> PathBuf {
        self.0.join(format!("node-{node}")).join("log")
    }

    /// The brokers whose data is there.
    pub(super) fn nodes(&self) -> u32 {
        let has_data = |node: &u32| self.0.join(format!("node-{node}")).join("data").exists();
        (1..).take_while(has_data).count() as u32
    }

    /// What was started, whether it still runs or not.
    pub(super) fn running(&self) -> anyhow::Result<Option<Running>> {
        match std::fs::read(self.file()) {
            Ok(bytes) => {
                let running = serde_json::from_slice(&bytes);
                running
                    .map(Some)
                    .with_context(|| format!("{}", self.file().display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}", self.file().display())),
        }
    }

    /// Notes what runs, as a whole or not at all.
    pub(super) fn note(&self, running: &Running) -> anyhow::Result<()> {
        let new = self.0.join("cluster.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(running)?)
            .and_then(|()| std::fs::rename(&new, self.file()))
            .with_context(|| format!("{}", self.file().display()))
    }

    /// Notes that nothing runs.
    pub(super) fn forget(&self) {
        drop(std::fs::remove_file(self.file()));
    }
}

/// How the brokers of a local cluster are started.
pub(super) struct Plan {
    /// Where their data is.
    pub(super) directory: Directory,
    /// How many.
    pub(super) nodes: u32,
    /// Port of the first.
    pub(super) base_port: u16,
    /// Whether they outlive this process.
    pub(super) detach: bool,
}

impl Plan {
    /// Address for clients.
    pub(super) fn address(&self, node: u32) -> String {
        format!("127.0.0.1:{}", self.port(node, 0))
    }

    /// All addresses for clients.
    pub(super) fn bootstrap(&self) -> String {
        (1..=self.nodes)
            .map(|node| self.address(node))
            .collect::<Vec<_>>()
            .join(",")
    }

    /// Ports of a broker: clients, peers, HTTP.
    fn port(&self, node: u32, which: u16) -> u16 {
        self.base_port + (node as u16 - 1) * PORTS_PER_NODE + which
    }

    /// Refuses what can't work before anything is touched.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if !(1..=64).contains(&self.nodes) {
            bail!("--nodes must be from 1 to 64");
        }
        let last = u32::from(self.base_port) + (self.nodes - 1) * u32::from(PORTS_PER_NODE) + 2;
        if self.base_port < 1 || last > u32::from(u16::MAX) {
            bail!(
                "--base-port {}: there are no ports for {} nodes",
                self.base_port,
                self.nodes
            );
        }
        let data = self.directory.0.display();
        if let Some(running) = self.directory.running()?
            && let Some(process) = running.processes.iter().find(|process| process.is_alive())
        {
            bail!(
                "{data} is in use: node {} runs as process {}; \
                   stop it with `drave down --data {data}`",
                process.node,
                process.pid
            );
        }
        match self.directory.nodes() {
            0 => {}
            nodes if nodes == self.nodes => {}
            nodes => bail!(
                "{data} holds a cluster of {nodes} nodes, not of {}",
                self.nodes
            ),
        }
        for node in 1..=self.nodes {
            for which in 0..3 {
                let port = self.port(node, which);
                TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                    format!("port {port} can't be used (--base-port chooses others)")
                })?;
            }
        }
        Ok(())
    }

    /// Starts one broker; it takes up its data if there is some.
    pub(super) fn start(&self, node: u32) -> anyhow::Result<(Process, Child)> {
        let home = self.directory.0.join(format!("node-{node}"));
        let data = home.join("data");
        std::fs::create_dir_all(&data).with_context(|| format!("{}", data.display()))?;
        let log = open_log(&self.directory.log(node))?;
        let peers = (1..=self.nodes).map(|node| format!("{node}@127.0.0.1:{}", self.port(node, 1)));
        let executable = std::env::current_exe().context("own executable")?;
        let mut command = Command::new(executable);
        command
            .arg("server")
            .args(["--node-id", &node.to_string()])
            .args(["--listen", &self.address(node)])
            .args([
                "--peer-listen",
                &format!("127.0.0.1:{}", self.port(node, 1)),
            ])
            .args([
                "--http-listen",
                &format!("127.0.0.1:{}", self.port(node, 2)),
            ])
            .args(["--peers", &peers.collect::<Vec<_>>().join(",")])
            .args(["--group-initial-rebalance-delay-ms", "0"])
            .arg("--data")
            .arg(&data)
            .stdout(Stdio::null())
            .stderr(log);
        match self.detach {
            true => command.arg("--new-session").stdin(Stdio::null()),
            // Ctrl-C in the terminal is for the supervisor alone.
            false => command
                .arg("--stop-on-stdin-end")
                .stdin(Stdio::piped())
                .process_group(0),
        };
        let child = command
            .spawn()
            .with_context(|| format!("node {node} can't be started"))?;
        Ok((Process::new(node, child.id())?, child))
    }
}

fn open_log(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("{}", path.display()))
}

/// The last line that a broker logged: most often why it ended.
pub(super) fn last_line(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let last = text
        .unwrap_or_default()
        .lines()
        .last()
        .unwrap_or("it logged nothing")
        .to_owned();
    last.strip_prefix("error: ")
        .map(str::to_owned)
        .unwrap_or(last)
}

/// Stops processes: SIGTERM, and SIGKILL for those that take too long. Says
/// which had to be killed.
pub(super) async fn stop(processes: &[Process], patience: Duration) -> Vec<u32> {
    for process in processes {
        process.signal(Signal::TERM);
    }
    let deadline = Instant::now() + patience;
    while processes.iter().any(Process::is_alive) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut killed = Vec::new();
    for process in processes.iter().filter(|process| process.is_alive()) {
        process.signal(Signal::KILL);
        killed.push(process.node);
    }
    killed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_that_is_used_again_is_not_taken_for_ours() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::new(1, child.id()).unwrap();
        assert!(process.is_alive());
        let other = Process {
            started: process.started + 1,
            ..process.clone()
        };
        assert!(!other.is_alive());
        other.signal(Signal::KILL);
        assert!(process.is_alive(), "a process that is not ours was killed");
        process.signal(Signal::KILL);
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn a_directory_of_another_size_is_refused() {
        let data = tempfile::tempdir().unwrap();
        for node in 1..=3 {
            std::fs::create_dir_all(data.path().join(format!("node-{node}/data"))).unwrap();
        }
        let directory = Directory(data.path().to_owned());
        let plan = Plan {
            directory,
            nodes: 1,
            base_port: 39_092,
            detach: false,
        };
        let refused = plan.check().unwrap_err().to_string();
        assert!(
            refused.contains("a cluster of 3 nodes, not of 1"),
            "{refused}"
        );
    }

    #[test]
    fn a_port_in_use_is_refused_by_number() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let data = tempfile::tempdir().unwrap();
        let directory = Directory(data.path().to_owned());
        let plan = Plan {
            directory,
            nodes: 1,
            base_port: port.min(65_000),
            detach: false,
        };
        let refused = plan.check().unwrap_err().to_string();
        assert!(
            port > 65_000 || refused.contains(&format!("port {port} ")),
            "{refused}"
        );
    }
}
