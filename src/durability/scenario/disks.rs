//! Faults of disks: they are lost, decay, lose power, are slow, fail, or are full.

use std::time::Duration;

use tokio::time::sleep;

use super::processes::{come_back, listed};
use crate::durability::brokers::BROKERS;
use crate::durability::stage::Stage;

/// A full disk's size: less than any broker has written by then.
const FULL_BYTES: u64 = 1 << 20;
/// How much longer a sync takes on a slow disk.
const SLOWER: Duration = Duration::from_millis(200);

pub(super) async fn wiped_disk(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!("broker {leader} loses its disk"));
    stage.brokers.kill(leader);
    std::fs::remove_dir_all(stage.brokers.data(leader))?;
    come_back(stage, &[leader]).await
}

/// A broker that refuses to start on damaged files gets an empty disk, as its operator would give it one.
pub(super) async fn flipped_bits(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let id = stage.leader().await?;
    stage.begin(format!("bits are flipped in the files of broker {id}"));
    stage.brokers.stop(id).await?;
    stage.flip_bits(id)?;
    stage.brokers.run(id)?;
    if let Err(error) = stage.brokers.wait_ready().await {
        stage.notes.push(format!("{error:#}; it got an empty disk"));
        stage.brokers.kill(id);
        std::fs::remove_dir_all(stage.brokers.data(id))?;
        stage.brokers.run(id)?;
        stage.brokers.wait_ready().await?;
    }
    stage.mended().await
}

pub(super) async fn power_cut_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    power_cut(stage, &[leader], "the leader").await
}

pub(super) async fn power_cut_all(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let all = stage.shuffled();
    power_cut(stage, &all, "all").await
}

/// Processes die and unsynced bytes are lost at the same moment, as far as anybody can tell.
async fn power_cut(stage: &mut Stage<'_>, ids: &[u32], who: &str) -> anyhow::Result<()> {
    stage.begin(format!("power cut of broker {} ({who})", listed(ids)));
    for id in ids {
        stage.brokers.kill(*id);
    }
    for id in ids {
        let loss = stage.brokers.disk(*id)?.power_cut()?;
        stage.notes.push(format!(
            "broker {id} lost {} bytes of {} files and {} names that were not synced",
            loss.bytes, loss.files, loss.names
        ));
    }
    stage.rest(1_000, 3_000).await;
    for id in ids {
        stage.brokers.disk(*id)?.power_on()?;
    }
    come_back(stage, ids).await
}

pub(super) async fn slow_sync(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!(
        "each sync of broker {leader}, the leader, takes {} ms longer",
        SLOWER.as_millis()
    ));
    stage.brokers.disk(leader)?.set_sync_delay(SLOWER);
    sleep(Duration::from_secs(10)).await;
    stage.brokers.disk(leader)?.set_sync_delay(Duration::ZERO);
    stage.mended().await
}

pub(super) async fn failing_sync(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!("syncs of broker {leader}, the leader, fail"));
    stage.brokers.disk(leader)?.fail_syncs(true);
    sleep(Duration::from_secs(5)).await;
    stage.brokers.disk(leader)?.fail_syncs(false);
    run_again(stage, &[leader])?;
    stage.brokers.wait_ready().await?;
    stage.mended().await
}

pub(super) async fn full_disk(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.begin("all disks are full".to_owned());
    let all: Vec<u32> = (1..=BROKERS).collect();
    for id in &all {
        stage.brokers.disk(*id)?.set_capacity(Some(FULL_BYTES));
    }
    sleep(Duration::from_secs(10)).await;
    for id in &all {
        stage.brokers.disk(*id)?.set_capacity(None);
    }
    run_again(stage, &all)?;
    stage.brokers.wait_ready().await?;
    stage.mended().await
}

/// Brokers that ended because of their disk are started again when it works.
fn run_again(stage: &mut Stage<'_>, ids: &[u32]) -> anyhow::Result<()> {
    for id in ids {
        if let Some(why) = stage.brokers.ended(*id) {
            stage.notes.push(format!("broker {id} ended, {why}"));
            stage.brokers.run(*id)?;
        }
    }
    Ok(())
}
