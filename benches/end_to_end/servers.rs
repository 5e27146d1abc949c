//! The brokers that are measured: started, watched by their pids, stopped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use drave::client::Cluster;

const KAFKA_BOOTSTRAP: &str = "127.0.0.1:19092,127.0.0.1:29092,127.0.0.1:39092";
const DRAVE_BASE_PORT: u16 = 17_092;
const NODES: u16 = 3;

/// Three brokers.
pub(crate) struct Servers {
    bootstrap: String,
    pids: Vec<u32>,
    children: Vec<Child>,
    kafka: Option<(PathBuf, PathBuf)>,
}

/// What the brokers have used since they started.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// CPU seconds, user and system.
    pub(crate) cpu_seconds: f64,
    /// Bytes sent to the block device.
    pub(crate) written_bytes: u64,
    /// Bytes of memory held now.
    pub(crate) resident_bytes: u64,
}

impl Servers {
    /// Three drave brokers, as a real deployment starts them.
    pub(crate) async fn drave(folder: &Path) -> anyhow::Result<Servers> {
        let port = |node: u16, which: u16| DRAVE_BASE_PORT + (node - 1) * 10 + which;
        let peers: Vec<String> = (1..=NODES)
            .map(|node| format!("{node}@127.0.0.1:{}", port(node, 1)))
            .collect();
        let addresses: Vec<String> = (1..=NODES)
            .map(|node| format!("127.0.0.1:{}", port(node, 0)))
            .collect();
        let mut servers = Servers {
            bootstrap: addresses.join(","),
            pids: vec![],
            children: vec![],
            kafka: None,
        };
        for node in 1..=NODES {
            let log = File::create(folder.join(format!("node-{node}.log")))?;
            let child = Command::new(env!("CARGO_BIN_EXE_drave"))
                .arg("server")
                .args(["--node-id", &node.to_string()])
                .args(["--listen", &format!("127.0.0.1:{}", port(node, 0))])
                .args(["--peer-listen", &format!("127.0.0.1:{}", port(node, 1))])
                .args(["--http-listen", &format!("127.0.0.1:{}", port(node, 2))])
                .args(["--peers", &peers.join(",")])
                .arg("--data")
                .arg(folder.join(format!("node-{node}")))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("drave server")?;
            servers.pids.push(child.id());
            servers.children.push(child);
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while servers.brokers().await < usize::from(NODES) {
            ensure!(
                Instant::now() < deadline,
                "drave is not ready; its logs: {}",
                folder.display()
            );
            for child in &mut servers.children {
                if let Some(status) = child.try_wait()? {
                    bail!(
                        "a broker ended with {status}; its log: {}",
                        folder.display()
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(servers)
    }

    /// Three Kafka brokers, by a script.
    pub(crate) async fn kafka(
        script: &Path,
        folder: &Path,
        fsync: bool,
    ) -> anyhow::Result<Servers> {
        ensure!(
            std::net::TcpListener::bind("127.0.0.1:19092").is_ok(),
            "port 19092 is in use: is a Kafka running already?"
        );
        let status = Command::new(script)
            .arg("up")
            .arg(folder)
            .env("FSYNC", if fsync { "1" } else { "0" })
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("{}", script.display()))?;
        let pids = std::fs::read_to_string(folder.join("pids")).unwrap_or_default();
        let servers = Servers {
            bootstrap: KAFKA_BOOTSTRAP.to_owned(),
            pids: pids
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect(),
            children: vec![],
            kafka: Some((script.to_owned(), folder.to_owned())),
        };
        ensure!(status.success(), "Kafka did not start");
        ensure!(
            servers.pids.len() == usize::from(NODES),
            "the script wrote no pids"
        );
        Ok(servers)
    }

    /// Brokers that run already.
    pub(crate) fn given(bootstrap: &str, pids: &[u32]) -> Servers {
        Servers {
            bootstrap: bootstrap.to_owned(),
            pids: pids.to_vec(),
            children: vec![],
            kafka: None,
        }
    }

    /// A client of its own.
    pub(crate) fn cluster(&self) -> Cluster {
        Cluster::new(&self.bootstrap, "drave-bench")
    }

    async fn brokers(&self) -> usize {
        match self.cluster().metadata(Some(&[]), false).await {
            Ok(metadata) => metadata.brokers.len(),
            Err(_) => 0,
        }
    }

    /// What all of them have used.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let mut sum = Usage {
            cpu_seconds: 0.0,
            written_bytes: 0,
            resident_bytes: 0,
        };
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        for pid in &self.pids {
            let read = |file: &str| {
                let path = format!("/proc/{pid}/{file}");
                std::fs::read_to_string(&path)
                    .with_context(|| format!("{path}: a broker has ended"))
            };
            let stat = read("stat")?;
            let after_name = stat.rfind(')').map_or("", |at| &stat[at + 1..]);
            let fields: Vec<&str> = after_name.split_whitespace().collect();
            for field in [11, 12] {
                let value: f64 = fields
                    .get(field)
                    .and_then(|field| field.parse().ok())
                    .unwrap_or(0.0);
                sum.cpu_seconds += value / ticks;
            }
            sum.resident_bytes += number_after(&read("status")?, "VmRSS:") * 1024;
            sum.written_bytes += number_after(&read("io")?, "\nwrite_bytes:");
        }
        Ok(sum)
    }

    /// Stops what was started.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        self.end();
        Ok(())
    }

    fn end(&mut self) {
        if let Some((script, folder)) = self.kafka.take() {
            Command::new(script)
                .arg("down")
                .arg(folder)
                .stdout(Stdio::null())
                .status()
                .ok();
        }
        for child in &self.children {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
            child.kill().ok();
            child.wait().ok();
        }
        self.children.clear();
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end();
    }
}

fn number_after(text: &str, name: &str) -> u64 {
    let after = text.find(name).map(|at| &text[at + name.len()..]);
    let number = after.and_then(|after| after.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}
