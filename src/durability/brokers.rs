//! Three real brokers: started, hurt as processes, and always ended.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use drave_durability::disk::{Disk, Options};
use drave_durability::network::Network;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use super::kind::{Kind, Place};
use super::wall_clock;
use crate::client::Cluster;

/// Brokers of a cluster.
pub(super) const BROKERS: u32 = 3;
/// How long a graceful stop may take.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Ports of a broker besides the clients': peers, Kafka's controller, HTTP.
const PORTS: usize = 4;

/// A cluster of its own for one scenario.
#[derive(Debug)]
pub(super) struct Brokers {
    kind: Kind,
    places: Vec<Place>,
    children: Vec<Option<Child>>,
    network: Option<Network>,
    /// Of each broker, where disks are hurt.
    disks: Vec<Disk>,
    /// Whether each has a wall clock of its own.
    clocks: bool,
}

/// What brokers need besides processes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Surroundings {
    /// Links that lose and delay packets: a network namespace each. The seed says which packets are lost.
    pub(super) links: Option<u64>,
    /// Disks that lose power, and what they leave of it.
    pub(super) disks: Option<Options>,
    /// Wall clocks that jump.
    pub(super) clocks: bool,
}

impl Brokers {
    /// Starts three brokers with empty disks below `folder`. Ready when each shows all.
    pub(super) async fn start(
        kind: &Kind,
        folder: &Path,
        surroundings: Surroundings,
    ) -> anyhow::Result<Brokers> {
        let network = match surroundings.links {
            Some(seed) => Some(Network::new(BROKERS, seed)?),
            None => None,
        };
        let places = places(folder, network.as_ref())?;
        let mut brokers = Brokers {
            kind: kind.clone(),
            children: places.iter().map(|_| None).collect(),
            places,
            network,
            disks: Vec::new(),
            clocks: surroundings.clocks,
        };
        for place in &mut brokers.places {
            let made = std::fs::create_dir_all(&place.folder);
            made.with_context(|| format!("{}", place.folder.display()))?;
            if surroundings.clocks {
                wall_clock::set(&clock_file(place), 0)?;
            }
            if let Some(options) = surroundings.disks {
                let at = place.folder.join("mount");
                brokers.disks.push(disk(&place.folder, &at, options)?);
                place.data = at.join("data");
            }
        }
        // Formatting takes Kafka seconds.
        std::thread::scope(|scope| {
            let all = &brokers.places;
            let prepare = |place| scope.spawn(move || kind.prepare(place, all));
            let prepared: Vec<_> = all.iter().map(prepare).collect();
            let mut outcomes = prepared.into_iter().map(|thread| thread.join());
            outcomes.try_for_each(|outcome| outcome.expect("it does not panic"))
        })?;
        for id in 1..=BROKERS {
            brokers.run(id)?;
        }
        brokers.wait_ready().await?;
        Ok(brokers)
    }

    /// Addresses for clients.
    pub(super) fn bootstrap(&self) -> String {
        let addresses = self.places.iter().map(|place| place.client.clone());
        addresses.collect::<Vec<_>>().join(",")
    }

    /// The links between them, where they can be hurt.
    pub(super) fn network(&self) -> anyhow::Result<&Network> {
        self.network
            .as_ref()
            .context("links can be hurt in network namespaces only")
    }

    /// A broker's disk, where it can be hurt.
    pub(super) fn disk(&self, id: u32) -> anyhow::Result<&Disk> {
        self.disks
            .get(id as usize - 1)
            .context("only a disk that was made for it loses power")
    }

    /// Puts a broker's wall clock this far ahead of the true one.
    pub(super) fn set_clock(&self, id: u32, ahead_seconds: i64) -> anyhow::Result<()> {
        wall_clock::set(&clock_file(self.place(id)), ahead_seconds)
    }

    /// What set the cluster up is not lost with the power: it was long ago.
    pub(super) fn settle_disks(&self) -> anyhow::Result<()> {
        for disk in &self.disks {
            disk.settle()?;
        }
        Ok(())
    }

    /// Where a broker keeps its data.
    pub(super) fn data(&self, id: u32) -> &Path {
        &self.place(id).data
    }

    fn place(&self, id: u32) -> &Place {
        &self.places[id as usize - 1]
    }

    /// Starts a broker's process.
    pub(super) fn run(&mut self, id: u32) -> anyhow::Result<()> {
        let place = self.place(id);
        self.kind.prepare(place, &self.places)?;
        let arguments = self.kind.command(place, &self.places)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(place.folder.join("log"))
            .context("the broker's log")?;
        // Each of these becomes the next one: the process id stays.
        let mut line: Vec<std::ffi::OsString> = Vec::new();
        if let Some(network) = &self.network {
            let namespace = network.namespace(id);
            line.extend(["ip", "netns", "exec", &namespace].map(Into::into));
        }
        line.extend(arguments);
        let mut words = line.into_iter();
        let program = words.next().context("an empty command")?;
        let mut command = Command::new(program);
        if self.clocks {
            command.envs(wall_clock::environment(&clock_file(place))?);
        }
        let child = command
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal is for us; we end the brokers.
            .process_group(0)
            .spawn()
            .with_context(|| format!("broker {id} can't be started"))?;
        self.children[id as usize - 1] = Some(child);
        Ok(())
    }

    /// `kill -9`; the process is gone when this returns.
    pub(super) fn kill(&mut self, id: u32) {
        if let Some(mut child) = self.children[id as usize - 1].take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// SIGTERM, and waits for the end.
    pub(super) async fn stop(&mut self, id: u32) -> anyhow::Result<()> {
        self.signal(id, Signal::TERM)?;
        let deadline = Instant::now() + STOP_WITHIN;
        loop {
            let Some(child) = &mut self.children[id as usize - 1] else {
                return Ok(());
            };
            if child.try_wait()?.is_some() {
                self.children[id as usize - 1] = None;
                return Ok(());
            }
            if Instant::now() > deadline {
                self.kill(id);
                bail!(
                    "broker {id} did not stop within {} s",
                    STOP_WITHIN.as_secs()
                );
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends a signal to a broker's process.
    pub(super) fn signal(&self, id: u32, signal: Signal) -> anyhow::Result<()> {
        let child = self.children[id as usize - 1].as_ref();
        let pid = child.and_then(|child| Pid::from_raw(child.id() as i32));
        let pid = pid.with_context(|| format!("broker {id} does not run"))?;
        kill_process(pid, signal).with_context(|| format!("broker {id}"))
    }

    /// What a broker has printed so far.
    pub(super) fn log(&self, id: u32) -> String {
        let log = std::fs::read(self.place(id).folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// How a broker ended by itself, with the last line of its log.
    pub(super) fn ended(&mut self, id: u32) -> Option<String> {
        let child = self.children[id as usize - 1].as_mut()?;
        let status = child.try_wait().ok()??;
        let log = self.log(id);
        let line = log.lines().rev().find(|line| !line.trim().is_empty());
        self.children[id as usize - 1] = None;
        Some(format!("{status}: {}", line.unwrap_or("its log is empty")))
    }

    /// Waits until every broker runs and shows every broker.
    pub(super) async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let seconds = self.kind.start_seconds();
        let deadline = Instant::now() + Duration::from_secs(seconds);
        for id in 1..=BROKERS {
            let cluster = Cluster::new(&self.place(id).client, "drave-bench");
            loop {
                let asked = cluster.metadata(Some(&[]), false);
                let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
                let shown = answer.map(|answer| answer.map_or(0, |found| found.brokers.len()));
                if shown.is_ok_and(|shown| shown == BROKERS as usize) {
                    break;
                }
                if let Some(why) = self.ended(id) {
                    bail!("broker {id} ended by itself, {why}");
                }
                ensure!(
                    Instant::now() < deadline,
                    "broker {id} does not show {BROKERS} brokers after {seconds} s"
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        for id in 1..=BROKERS {
            self.kill(id);
        }
    }
}

/// Says how far a broker's clock is ahead.
fn clock_file(place: &Place) -> PathBuf {
    place.folder.join("clock")
}

/// Mounts a disk that loses power.
pub(super) fn disk(folder: &Path, at: &Path, options: Options) -> anyhow::Result<Disk> {
    let backing = folder.join("disk");
    std::fs::create_dir_all(&backing)?;
    std::fs::create_dir_all(at)?;
    Disk::mount(&backing, at, options).context("a disk that loses power takes /dev/fuse, as root")
}

/// Addresses that are free now, and folders.
fn places(folder: &Path, network: Option<&Network>) -> anyhow::Result<Vec<Place>> {
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut port = || -> anyhow::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        held.push(listener);
        Ok(port)
    };
    let mut places = Vec::new();
    for id in 1..=BROKERS {
        let folder: PathBuf = folder.join(format!("broker-{id}"));
        let (client, peer, http) = match network {
            Some(network) => (
                format!("{}:9092", network.client_host(id)),
                format!("{}:9093", network.peer_host(id)),
                "127.0.0.1:9095".to_owned(),
            ),
            None => {
                let [client, peer, http] = free_ports(&mut port)?;
                let at = |port: u16| format!("127.0.0.1:{port}");
                (at(client), at(peer), at(http))
            }
        };
        let data = folder.join("data");
        places.push(Place {
            id,
            client,
            peer,
            http,
            folder,
            data,
        });
    }
    Ok(places)
}

/// For clients, for peers (the port above is free too, for Kafka's controller), for HTTP.
fn free_ports(port: &mut impl FnMut() -> anyhow::Result<u16>) -> anyhow::Result<[u16; 3]> {
    for _ in 0..100 {
        let (client, peer, http) = (port()?, port()?, port()?);
        let above = peer.checked_add(1);
        if above.is_some_and(|above| TcpListener::bind(("127.0.0.1", above)).is_ok()) {
            return Ok([client, peer, http]);
        }
    }
    bail!("no {PORTS} free ports for a broker")
}
