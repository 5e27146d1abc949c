//! Leaders that are gone without being dead: stopped in their tracks, or cut off from the other brokers but not from
//! their clients. What they acknowledge must last, and the others must go on without them.

mod cluster;

use std::time::{Duration, Instant};

use cluster::kafka::Kafka;
use cluster::ledger::{Ledger, Writers, check, wait_in_sync};
use cluster::{Cluster, signal, skipped};
use drave_durability::network::Network;

const TOPIC: &str = "kept";
const PARTITIONS: i32 = 6;
/// How long a leader is gone.
const GONE: Duration = Duration::from_secs(10);
/// How long its partitions may take no write.
const GAP_MAX: Duration = Duration::from_secs(8);
/// Time for writes before and after.
const CALM: Duration = Duration::from_secs(2);

#[test]
fn a_leader_that_stands_still_for_ten_seconds_acknowledges_nothing_that_is_lost() {
    let cluster = Cluster::start();
    let stall = |id| {
        signal("STOP", cluster.node(id).pid());
        std::thread::sleep(GONE);
        signal("CONT", cluster.node(id).pid());
    };
    lose_a_leader(&cluster, stall);
}

#[test]
fn a_leader_cut_off_from_the_others_acknowledges_nothing_that_is_lost() {
    let network = match Network::new(3, 0) {
        Ok(network) => network,
        Err(why) => return skipped("a leader that is cut off", &why.to_string()),
    };
    let cluster = Cluster::start_in(&network, 3, &[]);
    let cut = |id: i32| {
        network.cut(id.unsigned_abs());
        std::thread::sleep(GONE);
        network.heal(id.unsigned_abs());
    };
    lose_a_leader(&cluster, cut);
}

/// Writes to every partition, and to the lost leader's ones also by writers that know no other broker, while `lose`
/// takes one leader away for a while.
fn lose_a_leader(cluster: &Cluster, lose: impl FnOnce(i32)) {
    let kafka = cluster.kafka();
    kafka.create(TOPIC, PARTITIONS, &[]);
    let lost = kafka.leaders(TOPIC).expect("metadata")[&0];
    let led: Vec<i32> = kafka
        .leaders(TOPIC)
        .expect("metadata")
        .into_iter()
        .filter_map(|(partition, leader)| (leader == lost).then_some(partition))
        .collect();
    let others = cluster.bootstrap_without(lost);
    let mut writers = Writers::of(TOPIC);
    for partition in 0..PARTITIONS {
        writers.follow(&others, partition);
    }
    for partition in &led {
        writers.insist(&cluster.address(lost), *partition);
    }
    std::thread::sleep(CALM);

    let gone = Instant::now();
    lose(lost);
    let back = Instant::now();
    wait_in_sync(&cluster.addresses(), &[TOPIC]);
    std::thread::sleep(CALM);
    let ledgers = writers.stop();

    let records = check(&Kafka::new(&others), TOPIC, &ledgers);
    let mut longest = Duration::ZERO;
    for ledger in ledgers
        .iter()
        .filter(|ledger| led.contains(&ledger.partition))
    {
        if ledger.writer.starts_with("follower") {
            longest = longest.max(longest_gap(ledger, gone, back));
        }
    }
    println!(
        "{records} records acknowledged and found; {} partitions without their leader took no write for {longest:?} at most",
        led.len()
    );
    assert!(longest <= GAP_MAX, "no write for {longest:?}");
    let insisters = ledgers
        .iter()
        .filter(|ledger| ledger.writer.starts_with("insister"));
    for insister in insisters {
        assert!(!insister.acked.is_empty(), "{} wrote", insister.writer);
    }
}

/// The longest time without an acknowledgement, from `from` on to the first one after `to`.
fn longest_gap(ledger: &Ledger, from: Instant, to: Instant) -> Duration {
    let mut longest = Duration::ZERO;
    let mut last = from;
    for acked in ledger.acked.iter().filter(|acked| acked.at > from) {
        longest = longest.max(acked.at - last);
        last = acked.at;
        if last > to {
            break;
        }
    }
    assert!(last > from, "{} wrote nothing more", ledger.writer);
    longest
}
