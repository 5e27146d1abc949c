//! Faults of wall clocks.

use std::time::Duration;

use tokio::time::sleep;

use crate::durability::stage::Stage;

/// How far a clock jumps, in seconds: longer than any lease or time-out, shorter than any retention.
const JUMP: i64 = 3_600;

pub(super) async fn clock_jump(stage: &mut Stage<'_>) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    stage.begin(format!(
        "the clock of broker {leader}, the leader, jumps an hour ahead, then two hours back"
    ));
    for ahead in [JUMP, -JUMP, 0] {
        stage.brokers.set_clock(leader, ahead)?;
        sleep(Duration::from_secs(4)).await;
    }
    stage.mended().await
}
