//! Where a scenario's faults are played: the cluster, and what was done to it so far.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use drave_durability::history::Fault;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use tokio::time::{Instant, sleep};

use super::brokers::{BROKERS, Brokers};
use super::clock::Clock;
use super::progress::Progress;
use crate::client::Cluster;

/// How long replicas may take to catch up after a fault.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// How long a partition may be without a leader.
const LEADER_WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// A cluster under load, to be hurt.
pub(super) struct Stage<'a> {
    pub(super) brokers: &'a mut Brokers,
    /// A client of its own.
    pub(super) cluster: Cluster,
    pub(super) topic: &'a str,
    pub(super) clock: Clock,
    /// Decides whom and for how long.
    pub(super) rng: StdRng,
    pub(super) progress: &'a Progress,
    pub(super) faults: Vec<Fault>,
    /// What the report should say besides.
    pub(super) notes: Vec<String>,
    pub(super) flipped: Vec<FlippedBit>,
}

/// A bit of a stopped broker's file that is no longer what it was.
pub(super) struct FlippedBit {
    broker: u32,
    /// Below the broker's data.
    file: PathBuf,
    /// Byte in the file.
    at: usize,
    /// Length of the broker's log by then.
    log_bytes: usize,
}

impl Stage<'_> {
    /// Notes that a fault begins; [`Stage::mended`] says when it ends.
    pub(super) fn begin(&mut self, name: String) {
        self.progress.fault(&name);
        let now = self.clock.now_us();
        self.faults.push(Fault {
            name,
            from_us: now,
            until_us: now,
        });
    }

    /// Another fault takes the place of the last one.
    pub(super) fn turns_into(&mut self, name: String) {
        if let Some(fault) = self.faults.last_mut() {
            fault.until_us = self.clock.now_us();
        }
        self.begin(name);
    }

    /// The last fault is over: what it hurt works, and replicas have caught up.
    pub(super) async fn mended(&mut self) -> anyhow::Result<()> {
        self.settled().await?;
        if let Some(fault) = self.faults.last_mut() {
            fault.until_us = self.clock.now_us();
        }
        self.progress.fault("");
        Ok(())
    }

    /// The broker that leads partition 0.
    pub(super) async fn leader(&self) -> anyhow::Result<u32> {
        self.leader_of(<[i32]>::first).await
    }

    /// The broker that leads the last partition. A new drave cluster has its metadata led by the one that leads
    /// partition 0: where there are several partitions, this is another one.
    pub(super) async fn last_leader(&self) -> anyhow::Result<u32> {
        self.leader_of(<[i32]>::last).await
    }

    async fn leader_of(&self, choose: fn(&[i32]) -> Option<&i32>) -> anyhow::Result<u32> {
        let deadline = Instant::now() + LEADER_WITHIN;
        loop {
            if let Ok(leaders) = self.cluster.leaders(self.topic, false).await
                && let Some(leader) = choose(&leaders).filter(|leader| **leader > 0)
            {
                return Ok(*leader as u32);
            }
            ensure!(Instant::now() < deadline, "a partition has no leader");
            sleep(PAUSE).await;
        }
    }

    /// A broker that does not lead partition 0.
    pub(super) async fn follower(&mut self) -> anyhow::Result<u32> {
        let leader = self.leader().await?;
        let others: Vec<u32> = (1..=BROKERS).filter(|id| *id != leader).collect();
        others
            .choose(&mut self.rng)
            .copied()
            .context("there are other brokers")
    }

    /// All brokers in some order.
    pub(super) fn shuffled(&mut self) -> Vec<u32> {
        let mut all: Vec<u32> = (1..=BROKERS).collect();
        all.shuffle(&mut self.rng);
        all
    }

    /// Lets the cluster alone for a time between these, in milliseconds.
    pub(super) async fn rest(&mut self, from_ms: u64, to_ms: u64) {
        let pause = self.rng.random_range(from_ms..=to_ms);
        sleep(Duration::from_millis(pause)).await;
    }

    /// Waits until every partition has a leader and all its replicas in sync.
    pub(super) async fn settled(&self) -> anyhow::Result<()> {
        settled(&self.cluster, self.topic).await
    }

    /// Flips one bit in each of some files of a stopped broker's data.
    pub(super) fn flip_bits(&mut self, id: u32) -> anyhow::Result<()> {
        let mut files = Vec::new();
        list(self.brokers.data(id), &mut files).context("the broker's data")?;
        files.sort();
        files.shuffle(&mut self.rng);
        for path in files.iter().take(3) {
            let mut bytes = std::fs::read(path)?;
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8u32);
            std::fs::write(path, bytes).with_context(|| format!("{}", path.display()))?;
            let name = path.strip_prefix(self.brokers.data(id)).unwrap_or(path);
            self.flipped.push(FlippedBit {
                broker: id,
                file: name.to_owned(),
                at,
                log_bytes: self.brokers.log(id).len(),
            });
        }
        Ok(())
    }

    /// Notes of every flipped bit what its broker said of the file.
    pub(super) fn tell_of_flipped_bits(&mut self) {
        for bit in std::mem::take(&mut self.flipped) {
            let (broker, file, at) = (bit.broker, bit.file.display(), bit.at);
            let told = match bit.told(&self.brokers.log(broker)) {
                Some(line) => format!("the broker said: {line}"),
                None => "the broker said nothing of it".to_owned(),
            };
            self.notes.push(format!(
                "broker {broker}: a bit of {file} at byte {at}; {told}"
            ));
        }
    }
}

impl FlippedBit {
    /// What the broker said of the file since, in its log.
    fn told(&self, log: &str) -> Option<String> {
        let name = self.file.file_name()?.to_string_lossy().into_owned();
        let since = log.get(self.log_bytes..)?;
        let line = since.lines().find(|line| line.contains(&name))?;
        Some(line.trim().to_owned())
    }
}

/// Waits until every partition of a topic has a leader and all its replicas in sync.
pub(super) async fn settled(cluster: &Cluster, topic: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let metadata = cluster.metadata(Some(&[topic]), false).await;
        let behind = metadata.map_or(usize::MAX, |metadata| {
            let partitions = metadata.topics.iter().flat_map(|topic| &topic.partitions);
            let behind = partitions.filter(|partition| {
                *partition.leader_id < 0
                    || partition.isr_nodes.len() < partition.replica_nodes.len()
            });
            behind.count()
        });
        if behind == 0 {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "replicas are not in sync after {} s",
            SETTLED_WITHIN.as_secs()
        );
        sleep(PAUSE).await;
    }
}

/// Files with something in them, in a folder and below.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            list(&entry.path(), files)?;
        } else if metadata.is_file() && metadata.len() > 0 {
            files.push(entry.path());
        }
    }
    Ok(())
}
