//! Faults of processes: brokers are killed, stand still, or are restarted.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use crate::durability::stage::Stage;

pub(super) async fn kill_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    kill(stage, &[leader], "the leader").await
}

pub(super) async fn kill_follower(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let follower = stage.follower().await?;
    kill(stage, &[follower], "a follower").await
}

pub(super) async fn kill_all(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let all = stage.shuffled();
    kill(stage, &all, "all").await
}

pub(super) async fn kill_rolling(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    for id in stage.shuffled() {
        kill(stage, &[id], "one after the other").await?;
    }
    Ok(())
}

async fn kill(stage: &mut Stage<'_>, ids: &[u32], who: &str) -> anyhow::Result<()> {
    stage.begin(format!("kill -9 of broker {} ({who})", listed(ids)));
    for id in ids {
        stage.brokers.kill(*id);
    }
    stage.rest(1_000, 3_000).await;
    come_back(stage, ids).await
}

pub(super) async fn pause_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!("SIGSTOP of broker {leader}, the leader, for 10 s"));
    stage.brokers.signal(leader, Signal::STOP)?;
    sleep(Duration::from_secs(10)).await;
    stage.brokers.signal(leader, Signal::CONT)?;
    stage.brokers.wait_ready().await?;
    stage.mended().await
}

pub(super) async fn rolling_restart(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    for id in stage.shuffled() {
        stage.begin(format!("graceful restart of broker {id}"));
        stage.brokers.stop(id).await?;
        come_back(stage, &[id]).await?;
    }
    Ok(())
}

/// Starts brokers again; the fault is over when all is in sync.
pub(super) async fn come_back(stage: &mut Stage<'_>, ids: &[u32]) -> anyhow::Result<()> {
    for id in ids {
        stage.brokers.run(*id)?;
    }
    stage.brokers.wait_ready().await?;
    stage.mended().await?;
    stage.rest(500, 1_500).await;
    Ok(())
}

/// Brokers as a sentence names them.
pub(super) fn listed(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    ids.join(", ")
}
