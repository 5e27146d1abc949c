//! How long acknowledged writes waited: by phase, and along the run.

use super::types::{Bucket, FaultImpact, Latency, LatencyByPhase, Timeline};
use crate::history::{History, Outcome, Write};

/// Slices of a time line at most.
pub const BUCKETS_MAX: u64 = 400;

/// Slices are not narrower.
const BUCKET_US_MIN: u64 = 1_000;

fn acknowledged(history: &History) -> impl Iterator<Item = &Write> {
    (history.writes.iter()).filter(|it| matches!(it.outcome, Outcome::Acknowledged { .. }))
}

fn waited_us(write: &Write) -> u64 {
    write.answered_us.saturating_sub(write.sent_us)
}

/// Latencies before, during, between and after the faults.
pub(super) fn by_phase(history: &History, faults: &[FaultImpact]) -> LatencyByPhase {
    let troubled = troubled(faults);
    let [mut before, mut during, mut between, mut after] = [const { Vec::new() }; 4];
    for write in acknowledged(history) {
        // The first trouble that was not over when the write was sent.
        let next = troubled.partition_point(|(_, until_us)| *until_us < write.sent_us);
        let phase = match troubled.get(next) {
            Some((from_us, _)) if *from_us <= write.answered_us => &mut during,
            _ if next == 0 => &mut before,
            Some(_) => &mut between,
            None => &mut after,
        };
        phase.push(waited_us(write));
    }
    LatencyByPhase {
        before: latency(&mut before),
        during: latency(&mut during),
        between: latency(&mut between),
        after: latency(&mut after),
    }
}

/// The times that faults reach, in their order, none touching the next.
fn troubled(faults: &[FaultImpact]) -> Vec<(u64, u64)> {
    let mut all: Vec<_> = (faults.iter())
        .map(|fault| {
            let interrupted = fault.partitions.iter().filter(|it| it.interrupted);
            let recovered_us = interrupted.map(|it| it.gap.until_us).max();
            let until_us = fault.until_us.max(fault.from_us);
            (fault.from_us, until_us.max(recovered_us.unwrap_or(0)))
        })
        .collect();
    all.sort_unstable();
    all.dedup_by(|later, earlier| {
        let touch = later.0 <= earlier.1;
        if touch {
            earlier.1 = earlier.1.max(later.1);
        }
        touch
    });
    all
}

fn latency(waited_us: &mut [u64]) -> Option<Latency> {
    Some(Latency {
        count: waited_us.len() as u64,
        p50_us: percentile(waited_us, 500)?,
        p99_us: percentile(waited_us, 990)?,
        p999_us: percentile(waited_us, 999)?,
        max_us: percentile(waited_us, 1000)?,
    })
}

/// The smallest value that so many per mille of the values do not exceed.
fn percentile(values: &mut [u64], per_mille: usize) -> Option<u64> {
    let place = (values.len() * per_mille).div_ceil(1000).checked_sub(1)?;
    Some(*values.select_nth_unstable(place).1)
}

/// The run in slices.
pub(super) fn timeline(history: &History) -> Timeline {
    let answered_us = acknowledged(history).map(|it| it.answered_us);
    let ends_us = history.faults.iter().map(|it| it.until_us);
    let ends_us = answered_us.chain(ends_us).chain([history.stopped_us]);
    let end_us = ends_us.max().unwrap_or(0);
    let bucket_us = bucket_us(end_us);
    let bucket = |write: &Write| (write.answered_us / bucket_us) as usize;

    // All latencies, those of a slice side by side: first how many, then each to its place.
    let mut ends = vec![0; (end_us / bucket_us) as usize + 1];
    acknowledged(history).for_each(|write| ends[bucket(write)] += 1);
    let mut next = Vec::with_capacity(ends.len());
    let mut total = 0;
    for end in &mut ends {
        next.push(total);
        total += *end;
        *end = total;
    }
    let starts = next.clone();
    let mut waits_us = vec![0; total];
    for write in acknowledged(history) {
        let next = &mut next[bucket(write)];
        waits_us[*next] = waited_us(write);
        *next += 1;
    }

    let ranges = (0..).zip(starts.into_iter().zip(ends));
    let buckets = ranges.map(|(number, (start, end)): (u64, _)| {
        let waits_us = &mut waits_us[start..end];
        Bucket {
            from_us: number * bucket_us,
            acknowledged: waits_us.len() as u64,
            p50_us: percentile(waits_us, 500),
            p99_us: percentile(waits_us, 990),
        }
    });
    Timeline {
        bucket_us,
        buckets: buckets.collect(),
    }
}

/// The narrowest of 1, 2, 5, 10, … ms with which so long a run has few enough slices.
fn bucket_us(end_us: u64) -> u64 {
    let powers = (0..).map_while(|power| 10_u64.checked_pow(power));
    powers
        .flat_map(|power| [1, 2, 5].map(|digit| power.saturating_mul(digit)))
        .filter(|width| *width >= BUCKET_US_MIN)
        .find(|width| end_us / width < BUCKETS_MAX)
        .unwrap_or(u64::MAX)
}
