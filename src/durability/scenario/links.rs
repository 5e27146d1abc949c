//! Faults of the links between brokers; clients reach every broker all the time.

use crate::durability::brokers::BROKERS;
use crate::durability::stage::Stage;

pub(super) async fn isolate_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    let others = (1..=BROKERS).filter(|id| *id != leader);
    let lost: Vec<_> = others.flat_map(|id| [(leader, id), (id, leader)]).collect();
    let name = format!("broker {leader}, the leader, is cut off from its peers");
    cut(stage, name, &lost).await
}

pub(super) async fn bridge(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let (leader, other) = (stage.leader().await?, stage.follower().await?);
    let name = format!("brokers {leader} and {other} can't reach each other");
    cut(stage, name, &[(leader, other), (other, leader)]).await
}

pub(super) async fn one_way_loss(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    let others = (1..=BROKERS).filter(|id| *id != leader);
    let lost: Vec<_> = others.map(|id| (leader, id)).collect();
    let name = format!("what broker {leader}, the leader, sends to its peers is lost");
    cut(stage, name, &lost).await
}

/// Loses what is sent from one broker to another, for these pairs and some seconds.
async fn cut(stage: &mut Stage<'_>, name: String, lost: &[(u32, u32)]) -> anyhow::Result<()> {
    stage.begin(name);
    for (from, to) in lost {
        stage.brokers.network()?.lose(*from, *to)?;
    }
    stage.rest(8_000, 12_000).await;
    for (from, to) in lost {
        stage.brokers.network()?.deliver(*from, *to)?;
    }
    stage.mended().await
}
