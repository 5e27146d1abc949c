//! Faults of the links between brokers; clients reach every broker all the time.

use std::time::Duration;

use drave_durability::network::Link;
use tokio::time::sleep;

use super::processes::listed;
use crate::durability::brokers::BROKERS;
use crate::durability::stage::Stage;

pub(super) async fn isolate_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    let others = (1..=BROKERS).filter(|id| *id != leader);
    let lost: Vec<_> = others.flat_map(|id| both_ways(leader, id)).collect();
    let name = format!("broker {leader}, the leader, is cut off from its peers");
    cut(stage, name, &lost).await
}

/// While a leader is cut off the other two elect another one, and acknowledge. Then they crash, and one after the other
/// comes back to the old leader, which knows of no election: they must still know that they took part in one, or they
/// give up for the old leader's log what they acknowledged. A leader of records, not of the metadata: with those it
/// would be the cluster that breaks.
pub(super) async fn old_leader_returns(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let old = stage.last_leader().await?;
    let mut others = stage.shuffled();
    others.retain(|id| *id != old);
    let lost = others.iter().flat_map(|id| both_ways(old, *id));
    let lost: Vec<_> = lost.collect();
    stage.begin(format!(
        "broker {old}, which leads, is cut off from its peers"
    ));
    set(stage, &lost, Link::CUT)?;
    stage.rest(8_000, 12_000).await;
    stage.turns_into(format!(
        "kill -9 of brokers {}, which come back to broker {old} one after the other",
        listed(&others)
    ));
    for id in &others {
        stage.brokers.kill(*id);
    }
    set(stage, &lost, Link::default())?;
    for id in &others {
        stage.brokers.run(*id)?;
        stage.rest(8_000, 12_000).await;
    }
    stage.brokers.wait_ready().await?;
    stage.mended().await
}

/// Each of two brokers sees a majority, and not the same one. With three brokers a ring, in which everyone reaches its
/// neighbours only, is this too.
pub(super) async fn bridge(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let (leader, other) = (stage.leader().await?, stage.follower().await?);
    let name = format!("brokers {leader} and {other} can't reach each other");
    cut(stage, name, &both_ways(leader, other)).await
}

pub(super) async fn one_way_loss(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    let others = (1..=BROKERS).filter(|id| *id != leader);
    let lost: Vec<_> = others.map(|id| (leader, id)).collect();
    let name = format!("what broker {leader}, the leader, sends to its peers is lost");
    cut(stage, name, &lost).await
}

/// Loses one packet in ten between all brokers.
pub(super) async fn lossy(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let link = Link {
        lost: 0.1,
        ..Link::default()
    };
    let name = "one packet in ten between brokers is lost";
    spoil(stage, name.to_owned(), link).await
}

/// Makes the way between all brokers as long as that between continents.
pub(super) async fn slow(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let link = Link {
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(20),
        ..Link::default()
    };
    let name = "packets between brokers are under way for 30 to 70 ms";
    spoil(stage, name.to_owned(), link).await
}

/// Makes all links like this for some seconds, and says what that did to packets.
async fn spoil(stage: &mut Stage<'_>, name: String, link: Link) -> anyhow::Result<()> {
    stage.begin(name);
    let before = stage.brokers.network()?.all_traffic();
    stage.brokers.network()?.set_all(link);
    sleep(Duration::from_secs(10)).await;
    let after = stage.brokers.network()?.all_traffic();
    stage.brokers.network()?.set_all(Link::default());
    stage.notes.push(format!(
        "between brokers {} packets arrived, {} were lost, {} were dropped by full queues",
        after.passed - before.passed,
        after.lost - before.lost,
        after.dropped - before.dropped,
    ));
    stage.mended().await
}

/// Loses what is sent from one broker to another, for these pairs and some seconds.
async fn cut(stage: &mut Stage<'_>, name: String, lost: &[(u32, u32)]) -> anyhow::Result<()> {
    stage.begin(name);
    set(stage, lost, Link::CUT)?;
    stage.rest(8_000, 12_000).await;
    set(stage, lost, Link::default())?;
    stage.mended().await
}

fn both_ways(one: u32, other: u32) -> [(u32, u32); 2] {
    [(one, other), (other, one)]
}

/// Makes what is sent from one broker to another, for these pairs, fare like this.
fn set(stage: &Stage<'_>, pairs: &[(u32, u32)], link: Link) -> anyhow::Result<()> {
    let network = stage.brokers.network()?;
    for (from, to) in pairs {
        network.set(*from, *to, link);
    }
    Ok(())
}
