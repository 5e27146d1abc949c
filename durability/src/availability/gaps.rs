//! When each partition answered, and when it did not.

use super::types::Gap;
use crate::history::{History, Outcome};

/// What a partition was asked and when it answered.
#[derive(Default)]
pub(super) struct Answers {
    /// When the first record was sent to it.
    pub(super) first_sent_us: Option<u64>,
    /// When each record was acknowledged, in ascending order.
    pub(super) acknowledged_us: Vec<u64>,
}

/// The answers of every partition.
pub(super) fn answers(history: &History) -> Vec<Answers> {
    let mut partitions: Vec<_> = (0..history.partitions)
        .map(|_| Answers::default())
        .collect();
    for write in &history.writes {
        // Another partition than the topic has is for the judge to tell of.
        let Some(answers) = partitions.get_mut(write.partition as usize) else {
            continue;
        };
        let first = answers.first_sent_us.get_or_insert(write.sent_us);
        *first = (*first).min(write.sent_us);
        if let Outcome::Acknowledged { .. } = write.outcome {
            answers.acknowledged_us.push(write.answered_us);
        }
    }
    for answers in &mut partitions {
        answers.acknowledged_us.sort_unstable();
    }
    partitions
}

/// A partition's gaps in their order; together they cover the time from the first send to the
/// producers' stop. Gaps of no length are left out.
pub(super) fn gaps(answers: &Answers, stopped_us: u64) -> Vec<Gap> {
    let Some(first_sent_us) = answers.first_sent_us else {
        return Vec::new();
    };
    let mut gaps = Vec::new();
    let mut from_us = first_sent_us;
    for until_us in answers.acknowledged_us.iter().copied() {
        if from_us >= stopped_us {
            break;
        }
        if until_us > from_us {
            gaps.push(Gap {
                from_us,
                until_us,
                recovered: true,
            });
            from_us = until_us;
        }
    }
    if from_us < stopped_us {
        gaps.push(Gap {
            from_us,
            until_us: stopped_us,
            recovered: false,
        });
    }
    gaps
}
