//! What can be done to a cluster.

use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;
use tokio::time::sleep;

use super::brokers::{BROKERS, Surroundings, disk};
use super::network::Network;
use super::stage::Stage;

/// A full disk's size: less than any broker has written by then.
const FULL_BYTES: u64 = 1 << 20;

/// A fault, or a row of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Nothing happens: what the other scenarios are compared with
    Calm,
    /// kill -9 of the leader, again and again
    KillLeader,
    /// kill -9 of a follower, again and again
    KillFollower,
    /// kill -9 of all brokers at once
    KillAll,
    /// kill -9 of one broker after the other
    KillRolling,
    /// SIGSTOP of the leader for 10 s
    PauseLeader,
    /// Graceful stop and start of one broker after the other
    RollingRestart,
    /// The leader is cut off from the other brokers, not from its clients
    IsolateLeader,
    /// Two brokers can't reach each other; the third one reaches both
    Bridge,
    /// What the leader sends to the other brokers is lost; what they send arrives
    OneWayLoss,
    /// A broker comes back with an empty disk
    WipedDisk,
    /// Bits are flipped in the files of a stopped broker
    FlippedBits,
    /// The leader loses power: what it had not synced is gone, but for torn pages
    PowerCut,
    /// All brokers lose power at once
    PowerCutAll,
    /// Every sync of the leader takes 200 ms longer
    SlowSync,
    /// The leader's syncs fail
    FailingSync,
    /// All disks are full, and then have room again
    FullDisk,
}

impl Scenario {
    /// All, in the order of a report.
    pub fn all() -> &'static [Scenario] {
        Scenario::value_variants()
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }

    /// One sentence.
    pub fn description(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default()
    }

    /// What it needs besides processes: network namespaces, or disks that can be hurt.
    pub(super) fn surroundings(self, seed: u64) -> Surroundings {
        let links = matches!(
            self,
            Scenario::IsolateLeader | Scenario::Bridge | Scenario::OneWayLoss
        );
        let disks = matches!(
            self,
            Scenario::PowerCut
                | Scenario::PowerCutAll
                | Scenario::SlowSync
                | Scenario::FailingSync
                | Scenario::FullDisk
        );
        Surroundings {
            links,
            disks: disks.then_some(seed),
        }
    }

    /// Why it can't be played on this machine, if it can't.
    pub fn impossible_here(self) -> Option<String> {
        let needed = self.surroundings(0);
        let tried = if needed.links {
            Network::new(BROKERS).map(drop)
        } else if needed.disks.is_some() {
            try_disk()
        } else {
            Ok(())
        };
        tried
            .err()
            .map(|error| format!("not possible here: {error:#}"))
    }

    /// Does it, `rounds` times where once says little. The cluster is whole again afterwards.
    pub(super) async fn play(self, stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
        match self {
            Scenario::Calm => sleep(Duration::from_secs(10)).await,
            Scenario::KillLeader => {
                for _ in 0..rounds {
                    let leader = stage.leader().await?;
                    kill(stage, &[leader], "the leader").await?;
                }
            }
            Scenario::KillFollower => {
                for _ in 0..rounds {
                    let follower = stage.follower().await?;
                    kill(stage, &[follower], "a follower").await?;
                }
            }
            Scenario::KillAll => {
                for _ in 0..rounds {
                    let all = stage.shuffled();
                    kill(stage, &all, "all").await?;
                }
            }
            Scenario::KillRolling => {
                for id in stage.shuffled() {
                    kill(stage, &[id], "one after the other").await?;
                }
            }
            Scenario::PauseLeader => pause_leader(stage).await?,
            Scenario::RollingRestart => rolling_restart(stage).await?,
            Scenario::IsolateLeader => {
                let leader = stage.leader().await?;
                let others = (1..=BROKERS).filter(|id| *id != leader);
                let lost: Vec<_> = others.flat_map(|id| [(leader, id), (id, leader)]).collect();
                let name = format!("broker {leader}, the leader, is cut off from its peers");
                cut(stage, name, &lost).await?;
            }
            Scenario::Bridge => {
                let (leader, other) = (stage.leader().await?, stage.follower().await?);
                let name = format!("brokers {leader} and {other} can't reach each other");
                cut(stage, name, &[(leader, other), (other, leader)]).await?;
            }
            Scenario::OneWayLoss => {
                let leader = stage.leader().await?;
                let others = (1..=BROKERS).filter(|id| *id != leader);
                let lost: Vec<_> = others.map(|id| (leader, id)).collect();
                let name = format!("what broker {leader}, the leader, sends to its peers is lost");
                cut(stage, name, &lost).await?;
            }
            Scenario::WipedDisk => {
                let leader = stage.leader().await?;
                stage.begin(format!("broker {leader} loses its disk"));
                stage.brokers.kill(leader);
                std::fs::remove_dir_all(stage.brokers.data(leader))?;
                come_back(stage, &[leader]).await?;
            }
            Scenario::FlippedBits => flipped_bits(stage).await?,
            Scenario::PowerCut => {
                for _ in 0..rounds {
                    let leader = stage.leader().await?;
                    power_cut(stage, &[leader], "the leader").await?;
                }
            }
            Scenario::PowerCutAll => {
                for _ in 0..rounds {
                    let all = stage.shuffled();
                    power_cut(stage, &all, "all").await?;
                }
            }
            Scenario::SlowSync => {
                let leader = stage.leader().await?;
                let longer = Duration::from_millis(200);
                stage.begin(format!(
                    "each sync of broker {leader}, the leader, takes 200 ms longer"
                ));
                stage.brokers.disk(leader)?.set_sync_delay(longer);
                sleep(Duration::from_secs(10)).await;
                stage.brokers.disk(leader)?.set_sync_delay(Duration::ZERO);
                stage.settled().await?;
                stage.over();
            }
            Scenario::FailingSync => failing_sync(stage).await?,
            Scenario::FullDisk => full_disk(stage).await?,
        }
        Ok(())
    }
}

async fn kill(stage: &mut Stage<'_>, ids: &[u32], who: &str) -> anyhow::Result<()> {
    let named: Vec<String> = ids.iter().map(u32::to_string).collect();
    stage.begin(format!("kill -9 of broker {} ({who})", named.join(", ")));
    for id in ids {
        stage.brokers.kill(*id);
    }
    stage.rest(1_000, 3_000).await;
    come_back(stage, ids).await
}

/// Starts brokers again; the fault is over when all is in sync.
async fn come_back(stage: &mut Stage<'_>, ids: &[u32]) -> anyhow::Result<()> {
    for id in ids {
        stage.brokers.run(*id)?;
    }
    stage.brokers.wait_ready().await?;
    stage.settled().await?;
    stage.over();
    stage.rest(500, 1_500).await;
    Ok(())
}

/// Processes die and unsynced bytes are lost at the same moment, as far as anybody can tell.
async fn power_cut(stage: &mut Stage<'_>, ids: &[u32], who: &str) -> anyhow::Result<()> {
    let named: Vec<String> = ids.iter().map(u32::to_string).collect();
    stage.begin(format!("power cut of broker {} ({who})", named.join(", ")));
    for id in ids {
        stage.brokers.kill(*id);
    }
    for id in ids {
        let loss = stage.brokers.disk(*id)?.power_cut()?;
        stage.notes.push(format!(
            "broker {id} lost {} bytes of {} files that were not synced",
            loss.bytes, loss.files
        ));
    }
    stage.rest(1_000, 3_000).await;
    for id in ids {
        stage.brokers.disk(*id)?.power_on()?;
    }
    come_back(stage, ids).await
}

/// A broker that ends because its disk fails is started again when the disk works.
async fn failing_sync(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!("syncs of broker {leader}, the leader, fail"));
    stage.brokers.disk(leader)?.fail_syncs(true);
    sleep(Duration::from_secs(5)).await;
    stage.brokers.disk(leader)?.fail_syncs(false);
    if let Some(why) = stage.brokers.ended(leader) {
        stage.notes.push(format!("broker {leader} ended, {why}"));
        stage.brokers.run(leader)?;
        stage.brokers.wait_ready().await?;
    }
    stage.settled().await?;
    stage.over();
    Ok(())
}

async fn full_disk(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    stage.begin("all disks are full".to_owned());
    for id in 1..=BROKERS {
        stage.brokers.disk(id)?.set_capacity(Some(FULL_BYTES));
    }
    sleep(Duration::from_secs(10)).await;
    for id in 1..=BROKERS {
        stage.brokers.disk(id)?.set_capacity(None);
    }
    for id in 1..=BROKERS {
        if let Some(why) = stage.brokers.ended(id) {
            stage.notes.push(format!("broker {id} ended, {why}"));
            stage.brokers.run(id)?;
        }
    }
    stage.brokers.wait_ready().await?;
    stage.settled().await?;
    stage.over();
    Ok(())
}

/// Whether a disk that loses power can be had.
fn try_disk() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    disk(folder.path(), &folder.path().join("mount"), 0).map(drop)
}

async fn pause_leader(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!("SIGSTOP of broker {leader}, the leader, for 10 s"));
    stage.brokers.signal(leader, Signal::STOP)?;
    sleep(Duration::from_secs(10)).await;
    stage.brokers.signal(leader, Signal::CONT)?;
    stage.brokers.wait_ready().await?;
    stage.settled().await?;
    stage.over();
    Ok(())
}

async fn rolling_restart(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    for id in stage.shuffled() {
        stage.begin(format!("graceful restart of broker {id}"));
        stage.brokers.stop(id).await?;
        come_back(stage, &[id]).await?;
    }
    Ok(())
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
    stage.settled().await?;
    stage.over();
    Ok(())
}

/// A broker that refuses to start on damaged files gets an empty disk, as its operator would give it one.
async fn flipped_bits(stage: &mut Stage<'_>) -> anyhow::Result<()> {
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
    stage.settled().await?;
    stage.over();
    Ok(())
}
