//! A cluster of real `drave` processes on loopback, for the tests of the whole system.
//!
//! Every test program uses a part of this. A [`Cluster`] owns its processes and its folder: whatever way a test ends,
//! they are ended, and after a failure the last lines of every broker's log are printed and the folder is kept.
//! With `DRAVE_TEST_BOOTSTRAP=HOST:PORT,…` the tests that only speak to brokers run against a cluster that is up
//! already, such as Kafka itself, which is how they were proven.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    missing_docs,
    reason = "each test program uses its part of the helpers, and codes need no more than their names"
)]

pub mod batch;
pub mod damage;
pub mod groups;
pub mod kafka;
pub mod ledger;
pub mod plot;
mod shared;
pub mod wire;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use drave_durability::network::Network;
use kafka::Kafka;
pub use shared::{Target, shared};

/// How long a cluster may take until every broker is there.
const START_SECONDS: u64 = 60;
/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 50;

/// Brokers on loopback, 1 to n.
pub struct Cluster {
    nodes: Vec<Node>,
    dir: PathBuf,
}

/// One broker.
pub struct Node {
    /// Its id.
    pub id: i32,
    place: Place,
    flags: Vec<String>,
    dir: PathBuf,
    process: Option<Child>,
}

/// Where a broker lives: its listeners, and its network namespace if it has one.
struct Place {
    client: String,
    peer: String,
    http: String,
    namespace: Option<String>,
}

impl Cluster {
    /// Starts three brokers and waits until all of them are there.
    pub fn start() -> Cluster {
        Cluster::start_with(3, &[])
    }

    /// Starts `count` brokers with more flags and waits until all of them are there.
    pub fn start_with(count: u16, flags: &[&str]) -> Cluster {
        // Ports are picked all at once, so that no two are the same.
        let ports = free_ports(usize::from(count) * 3);
        let places = ports.chunks(3).map(|ports| Place {
            client: format!("127.0.0.1:{}", ports[0]),
            peer: format!("127.0.0.1:{}", ports[1]),
            http: format!("127.0.0.1:{}", ports[2]),
            namespace: None,
        });
        Cluster::start_at(places.collect(), flags)
    }

    /// Starts `count` brokers, each in its own part of a network, and waits until all of them are there.
    pub fn start_in(network: &Network, count: u16, flags: &[&str]) -> Cluster {
        let places = (1..=u32::from(count)).map(|id| Place {
            client: format!("{}:9092", network.client_host(id)),
            peer: format!("{}:9093", network.peer_host(id)),
            http: "127.0.0.1:9094".to_owned(),
            namespace: Some(network.namespace(id)),
        });
        Cluster::start_at(places.collect(), flags)
    }

    fn start_at(places: Vec<Place>, flags: &[&str]) -> Cluster {
        let dir = tempfile::Builder::new()
            .prefix("drave-test-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let peers: Vec<_> = (1..)
            .zip(&places)
            .map(|(id, place)| format!("{id}@{}", place.peer))
            .collect();
        let nodes = (1..).zip(places).map(|(id, place)| {
            let dir = dir.join(format!("node{id}"));
            let mut all = vec![
                format!("--node-id={id}"),
                format!("--listen={}", place.client),
                format!("--advertise={}", place.client),
                format!("--peer-listen={}", place.peer),
                format!("--http-listen={}", place.http),
                format!("--peers={}", peers.join(",")),
                format!("--data={}", dir.join("data").display()),
                "--group-initial-rebalance-delay-ms=0".to_owned(),
                "--log=info,openraft=warn".to_owned(),
            ];
            all.extend(flags.iter().map(|flag| (*flag).to_owned()));
            Node {
                id,
                place,
                flags: all,
                dir,
                process: None,
            }
        });
        let mut cluster = Cluster {
            nodes: nodes.collect(),
            dir,
        };
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.wait_ready();
        cluster
    }

    /// Address of broker `id`.
    pub fn address(&self, id: i32) -> String {
        self.node(id).address()
    }

    /// Address of every broker.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(Node::address).collect()
    }

    /// Addresses of all brokers, as clients take them.
    pub fn bootstrap(&self) -> String {
        self.addresses().join(",")
    }

    /// Addresses of all brokers but one.
    pub fn bootstrap_without(&self, id: i32) -> String {
        let others = self.nodes.iter().filter(|node| node.id != id);
        others.map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// A client of this cluster.
    pub fn kafka(&self) -> Kafka {
        Kafka::new(&self.bootstrap())
    }

    /// The folder of this cluster.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Broker `id`.
    pub fn node(&self, id: i32) -> &Node {
        &self.nodes[id as usize - 1]
    }

    /// Broker `id`, to be ended or started.
    pub fn node_mut(&mut self, id: i32) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// All brokers.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Waits until every broker shows every broker.
    pub fn wait_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        let count = self.nodes.len();
        for node in &mut self.nodes {
            let kafka = Kafka::new(&node.address());
            while kafka
                .metadata(&[])
                .map_or(0, |metadata| metadata.brokers.len())
                < count
            {
                if let Some(status) = node.exit_status() {
                    panic!("broker {} ended by itself: {status}", node.id);
                }
                assert!(
                    Instant::now() < deadline,
                    "broker {} does not show {count} brokers",
                    node.id
                );
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            self.nodes.iter().for_each(|node| show_log(&node.log()));
        } else {
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

impl Node {
    /// Its address for clients.
    pub fn address(&self) -> String {
        self.place.client.clone()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The flags it is started with.
    pub fn flags(&self) -> &[String] {
        &self.flags
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the broker runs").id()
    }

    /// Starts the process; does not wait for it to serve.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "broker {} runs already", self.id);
        fs::create_dir_all(&self.dir).expect("the broker's folder");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("the broker's log");
        let mut command = match &self.place.namespace {
            // It becomes the broker: the process id stays.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(drave());
                command
            }
            None => Command::new(drave()),
        };
        let process = command
            .arg("server")
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the broker's log"))
            .stderr(log)
            .spawn();
        self.process = Some(process.expect("the built binary starts"));
    }

    /// `kill -9`, and waits until the process is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
    }

    /// SIGTERM, and waits for the process to end.
    pub fn terminate(&mut self) -> ExitStatus {
        signal("TERM", self.pid());
        self.wait()
    }

    /// Waits for a process that was told to stop.
    pub fn wait(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the broker runs");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(status) = process.try_wait().expect("the broker's status") {
                return status;
            }
            if Instant::now() >= deadline {
                process.kill().ok();
                process.wait().ok();
                panic!("broker {} did not stop within 30 s of SIGTERM", self.id);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it was started and not ended by the test.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// Whether the process has ended by itself, and how.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process
            .as_mut()?
            .try_wait()
            .expect("the broker's status")
    }

    /// Processor time that the process has used, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the broker");
        // After the name, which is in parentheses: user and system time are the 12th and 13th field, in 1/100 s.
        let (_, fields) = stat.rsplit_once(')').expect("the process's name");
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse::<f64>().expect("a number");
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the broker runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number")
            * 1024
    }
}

/// Prints the last lines of a log.
fn show_log(path: &Path) {
    let log = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    eprintln!("---- the end of {}", path.display());
    eprintln!(
        "{}",
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    );
}

/// Sends a signal by `kill`.
pub fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()
        .expect("kill runs");
    assert!(sent.success(), "kill -{name} {pid}: {sent}");
}

/// Says that a test could not be run here: `scripts/test` counts it as skipped, not as passed. Past the test runner,
/// which keeps the output of a test that passes to itself.
pub fn skipped(what: &str, why: &str) {
    let line = format!("\nskipped test: {what}: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("standard error");
}

/// The binary under test.
pub fn drave() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_drave"))
}

/// Ports that were free a moment ago, below those that the kernel hands out for outgoing connections: a broker that
/// is started again must find its port free.
pub fn free_ports(count: usize) -> Vec<u16> {
    // Tests of one program run at the same time: no two may get the same ports.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 2_000) as u16 * 10;
    let mut held: Vec<TcpListener> = Vec::new();
    let mut found = Vec::new();
    while found.len() < count {
        let candidate = 10_000 + (first - 10_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 22_000;
        // A connection too, since a listener with SO_REUSEADDR elsewhere may not stop ours.
        if TcpStream::connect(("127.0.0.1", candidate)).is_err()
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", candidate))
        {
            held.push(listener);
            found.push(candidate);
        }
    }
    found
}
