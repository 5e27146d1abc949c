//! What goes wrong, chosen by the seed, and how it ends.
//!
//! Held messages arrive late, as those of TCP do when the network is back.
//! Dropped ones are gone, and the connection with them: such a cut lasts longer
//! than a peer is waited for, because the simulated TCP never sends again. A
//! crash leaves what was written, synced or not; a power cut only a part of it,
//! and nobody is told that the connections have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tracing::info;
use turmoil::Sim;

use super::cluster::{Cluster, name};

/// A node is down, or a disk slow, for this long at most.
const DOWN_MS_MAX: u64 = 2_500;
const HELD_MS_MAX: u64 = 3_000;
/// Peers give up after a second of silence, or one and a half after a stall.
const DROPPED_MS: std::ops::RangeInclusive<u64> = 2_500..=4_000;
const SLOW_SYNC_MS: std::ops::RangeInclusive<u64> = 50..=700;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Messages wait.
    Held,
    /// Messages both ways are lost.
    Dropped,
    /// Messages from this node to the other are lost.
    DroppedFrom(usize),
}

/// Breaks and mends the cluster, from outside.
pub(crate) struct Faults {
    cluster: Arc<Cluster>,
    chance: StdRng,
    next_ms: u64,
    until_ms: u64,
    /// Links with a fault, by their lower and higher node, and when it ends.
    links: BTreeMap<(usize, usize), (Cut, u64)>,
    /// Nodes that are down, and when they start again.
    down: BTreeMap<usize, u64>,
    /// Nodes with a slow disk, and until when.
    slow: BTreeMap<usize, u64>,
    /// Nodes whose power will be cut, and when.
    failing: Option<(Vec<usize>, u64)>,
    /// Those of the nodes that are down which were asked to stop, and may still be about to.
    stopping: BTreeSet<usize>,
    count: usize,
}

impl Faults {
    /// Faults from some time after the start until `until_ms`.
    pub(crate) fn new(cluster: Arc<Cluster>, seed: u64, until_ms: u64) -> Faults {
        let mut chance = StdRng::seed_from_u64(seed ^ 0xfa17);
        let next_ms = chance.random_range(0..=2_000);
        Faults {
            cluster,
            chance,
            next_ms,
            until_ms,
            links: BTreeMap::new(),
            down: BTreeMap::new(),
            slow: BTreeMap::new(),
            failing: None,
            stopping: BTreeSet::new(),
            count: 0,
        }
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Ends what is over, and begins what is due.
    pub(crate) fn step(&mut self, sim: &mut Sim<'_>, now_ms: u64) {
        self.mend(sim, now_ms);
        if let Some((nodes, _)) = self.failing.take_if(|(_, at)| *at <= now_ms) {
            let end = now_ms + self.chance.random_range(5..=DOWN_MS_MAX);
            self.power_cut(sim, &nodes, now_ms, end);
        }
        if now_ms >= self.next_ms && now_ms < self.until_ms {
            self.next_ms = now_ms
                + self
                    .chance
                    .random_range(50..=self.cluster.shape.fault_pause_ms);
            self.count += 1;
            self.begin(sim, now_ms);
        }
    }

    /// Ends every fault that is over at `now_ms`; all of them at `u64::MAX`.
    pub(crate) fn mend(&mut self, sim: &mut Sim<'_>, now_ms: u64) {
        let over = self.links.iter().filter(|(_, (_, end))| *end <= now_ms);
        let over: Vec<_> = over.map(|(link, (cut, _))| (*link, *cut)).collect();
        for ((a, b), cut) in over {
            info!(target: "simulation", a, b, "link mended");
            self.links.remove(&(a, b));
            match cut {
                Cut::Held => sim.release(name(a), name(b)),
                Cut::Dropped | Cut::DroppedFrom(_) => sim.repair(name(a), name(b)),
            }
        }
        while let Some((&node, _)) = self.down.iter().find(|(_, end)| **end <= now_ms) {
            info!(target: "simulation", node, "started again");
            self.down.remove(&node);
            if self.stopping.remove(&node) {
                self.kill(sim, node, usize::MAX);
            }
            sim.bounce(name(node));
        }
        while let Some((&node, _)) = self.slow.iter().find(|(_, end)| **end <= now_ms) {
            self.slow.remove(&node);
            let usual = self.cluster.shape.sync_ms;
            self.cluster.sync_ms[node].store(usual, Ordering::Relaxed);
        }
    }

    fn begin(&mut self, sim: &mut Sim<'_>, now_ms: u64) {
        let node = self.chance.random_range(0..self.cluster.shape.nodes);
        let down_ms = now_ms + self.chance.random_range(5..=DOWN_MS_MAX);
        match self.chance.random_range(0..100) {
            0..12 => {
                let other = (node + self.chance.random_range(1..self.cluster.shape.nodes))
                    % self.cluster.shape.nodes;
                let end = now_ms + self.chance.random_range(20..=HELD_MS_MAX);
                self.cut(sim, node, other, Cut::Held, end);
            }
            12..27 => {
                let end = now_ms + self.chance.random_range(20..=HELD_MS_MAX);
                self.isolate(sim, node, |_| Cut::Held, end);
            }
            27..51 => {
                let end = now_ms + self.chance.random_range(DROPPED_MS);
                let cut = match self.chance.random_range(0..3) {
                    // Too late for a cut that lasts long enough.
                    _ if end > self.until_ms => |_, _| Cut::Held,
                    0 => |_, _| Cut::Dropped,
                    1 => |node, _| Cut::DroppedFrom(node),
                    _ => |_, other| Cut::DroppedFrom(other),
                };
                self.isolate(sim, node, |other| cut(node, other), end);
            }
            51..61 => self.crash(sim, node, down_ms),
            61..65 => self.stop(node, down_ms),
            65..74 => self.power_cut(sim, &[node], now_ms, down_ms),
            74..82 => self.fail_together(now_ms, node, self.cluster.shape.nodes / 2 + 1),
            82..90 => self.fail_together(now_ms, node, self.cluster.shape.nodes),
            _ => {
                let takes = self.chance.random_range(SLOW_SYNC_MS);
                self.slow_down(node, takes, down_ms);
            }
        }
    }

    fn slow_down(&mut self, node: usize, takes: u64, end: u64) {
        info!(target: "simulation", node, takes, "slow disk");
        self.cluster.sync_ms[node].store(takes, Ordering::Relaxed);
        self.slow.insert(node, end);
    }

    /// The power of several nodes will be cut, while much is not synced yet.
    fn fail_together(&mut self, now_ms: u64, first: usize, count: usize) {
        let nodes = (0..count).map(|step| (first + step) % self.cluster.shape.nodes);
        let at = now_ms + self.chance.random_range(20..=400);
        self.failing = Some((nodes.collect(), at));
        let takes = self.chance.random_range(SLOW_SYNC_MS);
        for node in 0..self.cluster.shape.nodes {
            self.slow_down(node, takes, at);
        }
    }

    fn cut(&mut self, sim: &mut Sim<'_>, a: usize, b: usize, cut: Cut, end: u64) {
        let link = (a.min(b), a.max(b));
        if self.links.contains_key(&link) {
            return;
        }
        info!(target: "simulation", a, b, ?cut, end, "link cut");
        self.links.insert(link, (cut, end));
        match cut {
            Cut::Held => sim.hold(name(a), name(b)),
            Cut::Dropped => sim.partition(name(a), name(b)),
            Cut::DroppedFrom(from) => sim.partition_oneway(name(from), name(a + b - from)),
        }
    }

    fn isolate(&mut self, sim: &mut Sim<'_>, node: usize, cut: impl Fn(usize) -> Cut, end: u64) {
        for other in (0..self.cluster.shape.nodes).filter(|other| *other != node) {
            self.cut(sim, node, other, cut(other), end);
        }
    }

    /// The process ends; the operating system keeps what it wrote, and closes its connections.
    fn crash(&mut self, sim: &mut Sim<'_>, node: usize, end: u64) {
        if self.down.contains_key(&node) {
            return;
        }
        info!(target: "simulation", node, end, "crash");
        self.down.insert(node, end);
        self.kill(sim, node, usize::MAX);
    }

    /// The process is asked to stop, and killed in the end.
    fn stop(&mut self, node: usize, end: u64) {
        if self.down.contains_key(&node) {
            return;
        }
        info!(target: "simulation", node, end, "stop");
        self.down.insert(node, end);
        self.stopping.insert(node);
        // A process that is not up yet does not hear it.
        self.cluster.stop[node].notify_waiters();
    }

    /// Ends the process; the next one finds the first `kept` of the unsynced writes.
    fn kill(&mut self, sim: &mut Sim<'_>, node: usize, kept: usize) {
        sim.crash(name(node));
        let mut disk = self.cluster.disk(node);
        let found = disk.after_crash(kept);
        *disk = Arc::new(found);
    }

    fn power_cut(&mut self, sim: &mut Sim<'_>, nodes: &[usize], now_ms: u64, end: u64) {
        for &node in nodes {
            // Nothing that was under way arrives, and no connection is closed.
            for other in (0..self.cluster.shape.nodes).filter(|other| *other != node) {
                let link = (node.min(other), node.max(other));
                let later = self
                    .links
                    .get(&link)
                    .map_or(end, |(_, known)| end.max(*known));
                self.links.insert(link, (Cut::Dropped, later));
                sim.partition(name(node), name(other));
            }
        }
        for &node in nodes {
            let end = end + self.chance.random_range(0..=200);
            self.down.insert(node, end);
            self.stopping.remove(&node);
            let unsynced = self.cluster.disk(node).unsynced_count();
            let kept = self.chance.random_range(0..=unsynced);
            info!(target: "simulation", node, now_ms, unsynced, kept, end, "power cut");
            self.kill(sim, node, kept);
        }
    }
}
