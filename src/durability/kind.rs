//! How brokers of either make are configured and started.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// Heap of a Kafka broker.
const HEAP: &str = "1g";
/// Any id of 16 bytes in Kafka's spelling; the clusters live only for a scenario.
const KAFKA_CLUSTER_ID: &str = "ZHJhdmUtZHVyYWJsZS1iZQ";

/// A make of brokers.
#[derive(Clone, Debug)]
pub enum Kind {
    /// This very program.
    Drave,
    /// Apache Kafka 4 in KRaft mode, every node broker and controller.
    Kafka {
        /// Folder of its jars.
        libs: PathBuf,
        /// Whether it syncs every append before it acknowledges (`log.flush.interval.messages=1`); by default it does not.
        fsync: bool,
    },
}

/// Where a broker listens and keeps its data.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) id: u32,
    /// HOST:PORT for clients,
    pub(super) client: String,
    /// for other brokers (Kafka's controllers listen at the port above),
    pub(super) peer: String,
    /// for /metrics.
    pub(super) http: String,
    /// Holds its configuration and log; never hurt.
    pub(super) folder: PathBuf,
    /// Holds its data.
    pub(super) data: PathBuf,
}

impl Kind {
    /// Its name in reports.
    pub fn name(&self) -> String {
        match self {
            Kind::Drave => format!("drave {}", env!("CARGO_PKG_VERSION")),
            Kind::Kafka { libs, fsync } => {
                let version = kafka_version(libs).unwrap_or_default();
                let fsync = if *fsync { ", fsync" } else { "" };
                format!("Kafka {version}{fsync}")
            }
        }
    }

    /// Whether followers serve consumers, so that each replica can be read by itself (KIP-392).
    pub(super) fn followers_serve(&self) -> bool {
        matches!(self, Kind::Kafka { .. })
    }

    /// How long a cluster of it may take to start, in seconds.
    pub(super) fn start_seconds(&self) -> u64 {
        match self {
            Kind::Drave => 30,
            Kind::Kafka { .. } => 120,
        }
    }

    /// Writes what the broker needs before its first start on an empty disk.
    pub(super) fn prepare(&self, place: &Place, all: &[Place]) -> anyhow::Result<()> {
        let Kind::Kafka { libs, fsync } = self else {
            return Ok(());
        };
        if place.data.join("meta.properties").exists() {
            return Ok(());
        }
        ensure!(
            kafka_version(libs).is_some(),
            "{}: no kafka-clients-*.jar is there; --kafka-libs names the folder of Kafka's jars",
            libs.display()
        );
        let config = place.folder.join("server.properties");
        std::fs::write(&config, kafka_properties(place, all, *fsync))
            .with_context(|| format!("{}", config.display()))?;
        let formatted = java(libs, "256m")
            .args(["kafka.tools.StorageTool", "format", "-t", KAFKA_CLUSTER_ID])
            .arg("-c")
            .arg(&config)
            .output()
            .context("java can't be run")?;
        ensure!(
            formatted.status.success(),
            "Kafka's storage can't be formatted: {}",
            String::from_utf8_lossy(&formatted.stderr).trim()
        );
        Ok(())
    }

    /// The program and arguments that run a broker.
    pub(super) fn command(&self, place: &Place, all: &[Place]) -> anyhow::Result<Vec<OsString>> {
        match self {
            Kind::Drave => {
                let program = std::env::current_exe().context("this program's own path")?;
                let peers: Vec<String> = all
                    .iter()
                    .map(|place| format!("{}@{}", place.id, place.peer))
                    .collect();
                let mut command = vec![program.into_os_string(), "server".into()];
                command.extend(
                    [
                        format!("--node-id={}", place.id),
                        format!("--listen={}", place.client),
                        format!("--advertise={}", place.client),
                        format!("--peer-listen={}", place.peer),
                        format!("--http-listen={}", place.http),
                        format!("--peers={}", peers.join(",")),
                        format!("--data={}", place.data.display()),
                    ]
                    .map(OsString::from),
                );
                Ok(command)
            }
            Kind::Kafka { libs, .. } => {
                let command = java(libs, HEAP);
                let mut all = vec![command.get_program().to_owned()];
                all.extend(command.get_args().map(OsString::from));
                all.push("kafka.Kafka".into());
                all.push(place.folder.join("server.properties").into());
                Ok(all)
            }
        }
    }
}

fn java(libs: &Path, heap: &str) -> Command {
    let mut command = Command::new("java");
    command
        .args([&format!("-Xmx{heap}"), &format!("-Xms{heap}")])
        .args([
            "-XX:+UseG1GC",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        ])
        .arg("-cp")
        .arg(libs.join("*"));
    command
}

/// From the name of the jar that every Kafka has.
fn kafka_version(libs: &Path) -> Option<String> {
    let entries = std::fs::read_dir(libs).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let version = name.strip_prefix("kafka-clients-")?.strip_suffix(".jar")?;
        Some(version.to_owned())
    })
}

/// Kafka's defaults, but for what three nodes with replication need.
fn kafka_properties(place: &Place, all: &[Place], fsync: bool) -> String {
    let voters: Vec<String> = all
        .iter()
        .map(|place| format!("{}@{}", place.id, controller(&place.peer)))
        .collect();
    let mut text = format!(
        "process.roles=broker,controller\n\
         node.id={}\n\
         controller.quorum.voters={}\n\
         listeners=CLIENTS://{},PEERS://{},CONTROLLER://{}\n\
         advertised.listeners=CLIENTS://{},PEERS://{}\n\
         controller.listener.names=CONTROLLER\n\
         inter.broker.listener.name=PEERS\n\
         listener.security.protocol.map=CLIENTS:PLAINTEXT,PEERS:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=3\n\
         transaction.state.log.replication.factor=3\n\
         transaction.state.log.min.isr=2\n\
         min.insync.replicas=2\n\
         default.replication.factor=3\n",
        place.id,
        voters.join(","),
        place.client,
        place.peer,
        controller(&place.peer),
        place.client,
        place.peer,
        place.data.display(),
    );
    if fsync {
        text += "log.flush.interval.messages=1\n";
    }
    text
}

/// A controller listens one port above the broker's for its peers.
fn controller(peer: &str) -> String {
    let (host, port) = peer.rsplit_once(':').expect("HOST:PORT");
    let port: u16 = port.parse().expect("a port");
    format!("{host}:{}", port + 1)
}
