//! Kills, pauses, cuts and restarts in random order under load, then the check of every acknowledged record.
//!
//! `make soak` runs it for half an hour; among the other tests it runs for seconds. `DRAVE_SOAK_MINUTES` and
//! `DRAVE_SOAK_SEED` set how long and which faults; the seed is printed.

mod cluster;

use std::io::Write;
use std::time::{Duration, Instant};

use cluster::ledger::{Writers, check, wait_in_sync};
use cluster::{Cluster, signal};
use drave_durability::network::Network;

const TOPIC: &str = "soaked";
const PARTITIONS: i32 = 12;
/// Between a writer's batches: half an hour's records must fit in memory to be checked.
const PAUSE: Duration = Duration::from_millis(50);
const SECONDS_IN_CI: u64 = 30;
/// Between a broker's return and the next fault.
const CALM: Duration = Duration::from_secs(1);

/// A generator of faults; the same seed gives the same ones.
struct Draw(u64);

impl Draw {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn broker(&mut self) -> i32 {
        1 + self.below(3) as i32
    }

    /// Up to eight seconds: shorter than liveness, about as long, and much longer.
    fn while_(&mut self) -> Duration {
        Duration::from_millis(match self.below(3) {
            0 => 100 + self.below(700),
            1 => 800 + self.below(1_200),
            _ => 2_000 + self.below(6_000),
        })
    }
}

#[test]
fn acknowledged_records_survive_random_faults() {
    let setting = |name| {
        let value = std::env::var(name).ok();
        value.map(|value| value.parse::<u64>().expect("a number"))
    };
    let lasts = setting("DRAVE_SOAK_MINUTES").map_or(SECONDS_IN_CI, |minutes| minutes * 60);
    let seed = setting("DRAVE_SOAK_SEED").unwrap_or(cluster::batch::now_ms() as u64);
    say(&format!("soak of {lasts} s, DRAVE_SOAK_SEED={seed}"));
    let mut draw = Draw(seed | 1);
    // Without a network of its own the cluster is spared only the cuts.
    let network = Network::new(3, seed);
    if let Err(why) = &network {
        say(&format!("without cuts: {why}"));
    }
    let network = network.ok();
    let mut cluster = match &network {
        Some(network) => Cluster::start_in(network, 3, &[]),
        None => Cluster::start(),
    };
    cluster.kafka().create(TOPIC, PARTITIONS, &[]);
    let mut writers = Writers::with_pauses(TOPIC, PAUSE);
    for partition in 0..PARTITIONS {
        writers.follow(&cluster.bootstrap(), partition);
    }

    let began = Instant::now();
    let mut faults = 0;
    while began.elapsed() < Duration::from_secs(lasts) {
        std::thread::sleep(CALM);
        let what = fault(&mut cluster, network.as_ref(), &mut draw);
        cluster.wait_ready();
        wait_in_sync(&cluster.addresses(), &[TOPIC]);
        faults += 1;
        say(&format!("{:>5} s  {what}", began.elapsed().as_secs()));
    }
    let ledgers = writers.stop();
    let records = check(&cluster.kafka(), TOPIC, &ledgers);
    say(&format!(
        "{faults} faults, {records} records acknowledged and found at their offsets"
    ));
    assert!(records > 0, "nothing was acknowledged");
}

/// Does one fault and mends it; says which.
fn fault(cluster: &mut Cluster, network: Option<&Network>, draw: &mut Draw) -> String {
    let (id, lasts) = (draw.broker(), draw.while_());
    match (draw.below(6), network) {
        (0, _) => {
            cluster.node_mut(id).kill();
            std::thread::sleep(lasts);
            cluster.node_mut(id).start();
            format!("kill -9 of broker {id}, down for {lasts:.1?}")
        }
        (1, _) => {
            let status = cluster.node_mut(id).terminate();
            assert!(status.success(), "broker {id}: {status}");
            std::thread::sleep(lasts);
            cluster.node_mut(id).start();
            format!("broker {id} stopped, down for {lasts:.1?}")
        }
        (2, _) => {
            let nodes = cluster.nodes_mut();
            nodes.iter_mut().for_each(cluster::Node::kill);
            std::thread::sleep(lasts.min(Duration::from_secs(2)));
            nodes.iter_mut().for_each(cluster::Node::start);
            "kill -9 of all brokers".to_owned()
        }
        (3, _) => {
            let other = 1 + id % 3;
            cluster.node_mut(id).kill();
            cluster.node_mut(other).kill();
            std::thread::sleep(lasts.min(Duration::from_secs(2)));
            cluster.node_mut(id).start();
            cluster.node_mut(other).start();
            format!("kill -9 of brokers {id} and {other}")
        }
        (4, Some(network)) => {
            network.cut(id.unsigned_abs());
            std::thread::sleep(lasts);
            network.heal(id.unsigned_abs());
            format!("broker {id} cut off for {lasts:.1?}")
        }
        _ => {
            signal("STOP", cluster.node(id).pid());
            std::thread::sleep(lasts);
            signal("CONT", cluster.node(id).pid());
            format!("broker {id} stood still for {lasts:.1?}")
        }
    }
}

/// Past the test runner, which keeps the output of a test that passes to itself.
fn say(line: &str) {
    writeln!(std::io::stderr(), "{line}").expect("standard error");
}
