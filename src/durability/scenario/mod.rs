//! What can be done to a cluster.

mod clocks;
mod disks;
mod links;
mod processes;

use std::time::Duration;

use clap::ValueEnum;
use drave_durability::disk::Options;
use drave_durability::network::Network;
use tokio::time::sleep;

use super::brokers::{BROKERS, Surroundings, disk};
use super::stage::Stage;
use super::wall_clock;

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
    /// One packet in ten between brokers is lost
    LossyNetwork,
    /// Packets between brokers are under way for 30 to 70 ms
    SlowNetwork,
    /// Brokers that elected another leader, and crashed, come back to the one that was cut off
    OldLeaderReturns,
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
    /// The leader's wall clock jumps an hour ahead, then two hours back
    ClockJump,
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

    /// What it needs besides processes: network namespaces, disks that can be hurt, or clocks that jump.
    pub(super) fn surroundings(self, disk: Options) -> Surroundings {
        let links = matches!(
            self,
            Scenario::IsolateLeader
                | Scenario::Bridge
                | Scenario::OneWayLoss
                | Scenario::LossyNetwork
                | Scenario::SlowNetwork
                | Scenario::OldLeaderReturns
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
            links: links.then_some(disk.seed),
            disks: disks.then_some(disk),
            clocks: self == Scenario::ClockJump,
        }
    }

    /// Why it can't be played on this machine, if it can't.
    pub fn impossible_here(self) -> Option<String> {
        let needed = self.surroundings(Options::default());
        let tried = if let Some(seed) = needed.links {
            Network::new(BROKERS, seed).map(drop).map_err(Into::into)
        } else if needed.disks.is_some() {
            try_disk()
        } else if needed.clocks {
            wall_clock::library().map(drop)
        } else {
            Ok(())
        };
        tried
            .err()
            .map(|error| format!("not possible here: {error:#}"))
    }

    /// Does it; what hits one broker at a time is done `rounds` times. The cluster is whole again afterwards.
    pub(super) async fn play(self, stage: &mut Stage<'_>, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..if self.is_repeated() { rounds } else { 1 } {
            match self {
                Scenario::Calm => sleep(Duration::from_secs(10)).await,
                Scenario::KillLeader => processes::kill_leader(stage).await?,
                Scenario::KillFollower => processes::kill_follower(stage).await?,
                Scenario::KillAll => processes::kill_all(stage).await?,
                Scenario::KillRolling => processes::kill_rolling(stage).await?,
                Scenario::PauseLeader => processes::pause_leader(stage).await?,
                Scenario::RollingRestart => processes::rolling_restart(stage).await?,
                Scenario::IsolateLeader => links::isolate_leader(stage).await?,
                Scenario::Bridge => links::bridge(stage).await?,
                Scenario::OneWayLoss => links::one_way_loss(stage).await?,
                Scenario::LossyNetwork => links::lossy(stage).await?,
                Scenario::SlowNetwork => links::slow(stage).await?,
                Scenario::OldLeaderReturns => links::old_leader_returns(stage).await?,
                Scenario::WipedDisk => disks::wiped_disk(stage).await?,
                Scenario::FlippedBits => disks::flipped_bits(stage).await?,
                Scenario::PowerCut => disks::power_cut_leader(stage).await?,
                Scenario::PowerCutAll => disks::power_cut_all(stage).await?,
                Scenario::SlowSync => disks::slow_sync(stage).await?,
                Scenario::FailingSync => disks::failing_sync(stage).await?,
                Scenario::FullDisk => disks::full_disk(stage).await?,
                Scenario::ClockJump => clocks::clock_jump(stage).await?,
            }
        }
        Ok(())
    }

    /// Whether once says little: what matters is the moment at which it hits.
    fn is_repeated(self) -> bool {
        matches!(
            self,
            Scenario::KillLeader
                | Scenario::KillFollower
                | Scenario::KillAll
                | Scenario::FlippedBits
                | Scenario::PowerCut
                | Scenario::PowerCutAll
        )
    }
}

/// Whether a disk that loses power can be had.
fn try_disk() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    disk(
        folder.path(),
        &folder.path().join("mount"),
        Options::default(),
    )
    .map(drop)
}
