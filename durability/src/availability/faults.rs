//! What each fault did to each partition; the module above says how that is defined.

use super::gaps::Answers;
use super::types::{FaultImpact, Gap, PartitionImpact, Spread};
use crate::history::Fault;

/// A shorter outage is no interruption: schedulers and disks alone can cause it.
pub const INTERRUPTION_US_MIN: u64 = 100_000;

/// An outage of fewer mean times between acknowledgements is the pace of the load.
pub const INTERRUPTION_PACES: u64 = 5;

/// How long after its end a fault is taken to be the cause of a gap.
pub const AFTERMATH_US: u64 = 1_000_000;

/// What the faults did, given the answers and the gaps of every partition.
pub(super) fn impacts(
    faults: &[Fault],
    answers: &[Answers],
    gaps: &[Vec<Gap>],
) -> Vec<FaultImpact> {
    let calm_until_us = faults.iter().map(|fault| fault.from_us).min();
    let shortest: Vec<_> = (answers.iter())
        .map(|answers| interruption_us(answers, calm_until_us.unwrap_or(0)))
        .collect();
    let impact = |fault: &Fault| {
        let partitions = (0..).zip(gaps.iter().zip(&shortest));
        let partitions: Vec<_> = partitions
            .filter_map(|(partition, (gaps, shortest))| {
                partition_impact(partition, gaps, *shortest, fault)
            })
            .collect();
        let interrupted = || partitions.iter().filter(|it| it.interrupted);
        FaultImpact {
            name: fault.name.clone(),
            from_us: fault.from_us,
            until_us: fault.until_us,
            outage: spread(interrupted().map(|it| it.outage_us).collect()),
            recovery: spread(interrupted().map(|it| it.recovery_us).collect()),
            partitions,
        }
    };
    faults.iter().map(impact).collect()
}

/// The length that an outage of a partition must exceed to be an interruption.
fn interruption_us(answers: &Answers, calm_until_us: u64) -> u64 {
    let calm = answers.acknowledged_us.as_slice();
    let calm = &calm[..calm.partition_point(|it| *it < calm_until_us)];
    let steps = calm.windows(2).filter(|pair| pair[0] < pair[1]).count() as u64;
    let pace = match (calm.first(), calm.last()) {
        (Some(first), Some(last)) if steps > 0 => (last - first) / steps,
        _ => 0,
    };
    INTERRUPTION_US_MIN.max(pace.saturating_mul(INTERRUPTION_PACES))
}

/// `None`: nothing was sent to the partition, or no more when the fault began.
fn partition_impact(
    partition: u32,
    gaps: &[Gap],
    interruption_us: u64,
    fault: &Fault,
) -> Option<PartitionImpact> {
    let first = gaps.partition_point(|gap| gap.until_us <= fault.from_us);
    let end_us = fault
        .until_us
        .max(fault.from_us)
        .saturating_add(AFTERMATH_US);
    let outage_us = |gap: &Gap| gap.until_us - gap.from_us.max(fault.from_us);
    let open = gaps[first..].partition_point(|gap| gap.from_us <= end_us);
    let open = &gaps[first..first + open];
    // The first of equals, which `max_by_key` has last.
    let gap = *open.iter().rev().max_by_key(|gap| outage_us(gap))?;
    let outage_us = outage_us(&gap);
    let interrupted = outage_us > interruption_us;
    let recovered = if interrupted { gap } else { gaps[first] };
    Some(PartitionImpact {
        partition,
        gap,
        interrupted,
        outage_us,
        recovery_us: recovered.until_us - fault.from_us,
    })
}

fn spread(mut times: Vec<u64>) -> Option<Spread> {
    times.sort_unstable();
    let worst_us = *times.last()?;
    Some(Spread {
        count: times.len() as u64,
        median_us: times[(times.len() - 1) / 2],
        worst_us,
    })
}
