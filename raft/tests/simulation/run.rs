//! One run: a cluster, its faults, and the time to recover from them.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tracing::info;
use turmoil::{Builder, Sim};

use super::cluster::{Cluster, Shape, name, run_node};
use super::disk::Breakage;
use super::faults::Faults;
use super::trace;

/// Faults end at this time.
const FAULTS_UNTIL_MS: u64 = 8_000;
/// Every group takes writes again this long after the last fault has ended.
const PROGRESS_MS_MAX: u64 = 6_000;
/// Every replica has applied everything this long after the last write.
const CATCH_UP_MS_MAX: u64 = 10_000;

/// What came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) violation: Option<String>,
    trace: u64,
    faults: usize,
    terms: usize,
    acknowledged: usize,
    recovered_ms: u64,
    ended_ms: u64,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {} trace {:016x} faults {} terms {} acknowledged {} recovered_ms {} ended_ms {}",
            self.seed,
            self.trace,
            self.faults,
            self.terms,
            self.acknowledged,
            self.recovered_ms,
            self.ended_ms
        )
    }
}

/// Runs a seed in this thread, which must be one that has not asked for randomness before.
pub(crate) fn run(seed: u64, breakage: Breakage) -> Outcome {
    let mut chance = StdRng::seed_from_u64(seed);
    let shape = Shape::chosen(&mut chance);
    let nodes = shape.nodes;
    let cluster = Cluster::new(chance.random(), shape, breakage);
    let mut sim = Builder::new()
        .rng_seed(chance.random())
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::ZERO)
        .max_message_latency(Duration::from_millis(shape.latency_ms))
        .tcp_capacity(1024)
        .enable_random_order()
        .build();
    let broker = |node| node as u32 + 1;
    let addresses = (0..nodes)
        .map(|node| (broker(node), Cluster::address_of(sim.lookup(name(node)))))
        .collect();
    cluster.addresses.set(addresses).expect("set once");
    info!(target: "simulation", seed, ?shape, "begin");
    for node in 0..nodes {
        let cluster = cluster.clone();
        sim.host(name(node), move || run_node(cluster.clone(), node));
    }
    let mut faults = Faults::new(cluster.clone(), chance.random(), FAULTS_UNTIL_MS);
    let mut recovered_ms = 0;
    let failed = drive(&mut sim, &cluster, &mut faults, &mut recovered_ms).err();
    let oracle = cluster.oracle();
    let violation = oracle.violation().map(String::from).or(failed);
    Outcome {
        seed,
        violation,
        trace: trace::hash(),
        faults: faults.count(),
        terms: oracle.terms_count(),
        acknowledged: oracle.acknowledged_count(),
        recovered_ms,
        ended_ms: trace::now_ms(),
    }
}

fn drive(
    sim: &mut Sim<'_>,
    cluster: &Cluster,
    faults: &mut Faults,
    recovered_ms: &mut u64,
) -> Result<(), String> {
    while trace::now_ms() < FAULTS_UNTIL_MS {
        faults.step(sim, trace::now_ms());
        step(sim, cluster)?;
    }
    faults.mend(sim, u64::MAX);
    let healed = trace::now_ms();
    cluster.moving.store(false, Ordering::Relaxed);
    info!(target: "simulation", "healed");
    while !cluster
        .oracle()
        .has_progressed(cluster.shape.groups, healed)
    {
        if trace::now_ms() > healed + PROGRESS_MS_MAX {
            return Err(format!(
                "no progress: a group took no write for {PROGRESS_MS_MAX} ms after all was healed"
            ));
        }
        step(sim, cluster)?;
    }
    *recovered_ms = trace::now_ms() - healed;
    cluster.writing.store(false, Ordering::Relaxed);
    let stopped = trace::now_ms();
    loop {
        let members = cluster.members();
        let behind = members.as_ref().map(|all| cluster.oracle().behind(all));
        if let (Some(members), Some([])) = (&members, behind.as_deref()) {
            cluster.oracle().final_check(members);
            return Ok(());
        }
        if trace::now_ms() > stopped + CATCH_UP_MS_MAX {
            return Err(format!(
                "{CATCH_UP_MS_MAX} ms after the last write, these have not applied everything \
                 (node, group; None: no leader): {behind:?}"
            ));
        }
        step(sim, cluster)?;
    }
}

/// A millisecond of every node; an error at the first violation.
fn step(sim: &mut Sim<'_>, cluster: &Cluster) -> Result<(), String> {
    sim.step()
        .map_err(|error| format!("a node stopped: {error}"))?;
    trace::set_now_ms(sim.elapsed().as_millis() as u64);
    match cluster.oracle().violation() {
        Some(violation) => Err(violation.into()),
        None => Ok(()),
    }
}
