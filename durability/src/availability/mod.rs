//! How well a cluster served its producers, measured from a history alone.
//!
//! **Gaps.** A partition's gaps lie between its first send, its acknowledgements and the
//! producers' stop. A gap that begins before the stop and that an acknowledgement ends after it
//! counts as a whole. Nobody can tell a partition that does not answer from one that nothing is
//! sent to: these numbers mean something only where the load on every partition is steady.
//!
//! **What a fault did.** Of the gaps that are open at some time from the fault's beginning to
//! [`AFTERMATH_US`] after its end (the end can disturb as well: a node that comes back may call
//! an election), the longest is taken, where only what lies after the fault's beginning counts.
//! That is its *outage*: from the beginning of the gap or of the fault, whichever is later, to
//! the acknowledgement that ended it. Its *recovery* lasts from the beginning of the fault to
//! that acknowledgement. The partition was *interrupted* if the outage is longer than
//! [`INTERRUPTION_US_MIN`] and than [`INTERRUPTION_PACES`] times the mean time between its
//! acknowledgements before the first fault. If it was not, its recovery is the time to its
//! first acknowledgement after the fault's beginning. Faults that overlap share their gaps.
//!
//! Time is that of sorting the acknowledgements, memory some forty bytes for each.

mod faults;
mod gaps;
mod latency;
mod types;

use std::collections::HashMap;

use crate::history::{History, Outcome};

pub use faults::{AFTERMATH_US, INTERRUPTION_PACES, INTERRUPTION_US_MIN};
pub use latency::BUCKETS_MAX;
pub use types::*;

/// A gap longer than this is an outage, unless a caller wants it otherwise.
pub const OUTAGE_US_DEFAULT: u64 = 500_000;

/// Different errors that are listed; the rest are counted together.
pub const ERRORS_MAX: usize = 50;

/// Measures a history; a gap longer than `outage_us` is listed as an outage.
pub fn measure(history: &History, outage_us: u64) -> Availability {
    let answers = gaps::answers(history);
    let gaps: Vec<_> = (answers.iter())
        .map(|answers| gaps::gaps(answers, history.stopped_us))
        .collect();
    let faults = faults::impacts(&history.faults, &answers, &gaps);
    let partitions = (0..).zip(answers.iter().zip(&gaps));
    Availability {
        partitions: partitions
            .map(|(partition, (answers, gaps))| PartitionAvailability {
                partition,
                acknowledged: answers.acknowledged_us.len() as u64,
                longest_gap: gaps.iter().copied().rev().max_by_key(Gap::length_us),
                outages: (gaps.iter().copied())
                    .filter(|gap| gap.length_us() > outage_us)
                    .collect(),
            })
            .collect(),
        latency: latency::by_phase(history, &faults),
        faults,
        errors: given_up(history),
        repeated: most_frequent(
            (history.repeated.iter()).map(|(error, count)| (error.as_str(), *count)),
        ),
        timeline: latency::timeline(history),
    }
}

/// The errors of records that were given up.
fn given_up(history: &History) -> Vec<ErrorCount> {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    for write in &history.writes {
        if let Outcome::GivenUp { error } = &write.outcome {
            *counts.entry(error).or_default() += 1;
        }
    }
    most_frequent(counts.into_iter())
}

/// The most frequent ones, and all others as one.
fn most_frequent<'a>(counts: impl Iterator<Item = (&'a str, u64)>) -> Vec<ErrorCount> {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_unstable_by_key(|(error, count)| (std::cmp::Reverse(*count), *error));
    let rest = counts.split_off(counts.len().min(ERRORS_MAX));
    let listed = (counts.into_iter()).map(|(error, count)| ErrorCount {
        error: error.to_owned(),
        count,
    });
    let mut listed: Vec<_> = listed.collect();
    if !rest.is_empty() {
        listed.push(ErrorCount {
            error: format!("{} other errors", rest.len()),
            count: rest.iter().map(|(_, count)| count).sum(),
        });
    }
    listed
}
