//! What the judge says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Samples that a finding shows at most.
pub const SAMPLES_MAX: usize = 5;

/// The judgement of a history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Promises that were broken, one finding for each kind.
    pub violations: Vec<Finding>,
    /// What is worth knowing, but was not promised to be otherwise.
    pub tolerated: Vec<Finding>,
    /// How much was judged.
    pub counts: Counts,
}

impl Verdict {
    /// Whether every promise was kept.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }
}

/// How much a history has of everything. Records but for the last ones, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sent.
    pub sent: u64,
    /// Of these, acknowledged.
    pub acknowledged: u64,
    /// Of these, given up.
    pub given_up: u64,
    /// Of these, found in the end by at least one final read.
    pub read_back: u64,
    /// Of these, given to at least one live consumer.
    pub seen_live: u64,
    /// Transactions that were committed,
    pub transactions_committed: u64,
    /// aborted,
    pub transactions_aborted: u64,
    /// or asked to be committed and never answered.
    pub transactions_unknown: u64,
    /// Operations on metadata and group state.
    #[serde(default)]
    pub operations: u64,
    /// Of these, without an answer that says what became of them.
    #[serde(default)]
    pub operations_unknown: u64,
}

impl Counts {
    /// All transactions, however they ended.
    pub fn transactions(&self) -> u64 {
        self.transactions_committed + self.transactions_aborted + self.transactions_unknown
    }
}

/// All that is wrong in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// In which way.
    pub kind: Kind,
    /// How many times.
    pub count: u64,
    /// The first few, in words; [`SAMPLES_MAX`] at most.
    pub samples: Vec<String>,
}

/// The ways in which a log can break its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Counted in records.
    AcknowledgedAndLost,
    /// Counted in records.
    AcknowledgedAtAnotherOffset,
    /// Counted in records that are there more than once, however many times.
    Duplicated,
    /// Counted in records that come after one of a later sequence.
    Reordered,
    /// Counted in offsets of partitions.
    Corrupted,
    /// Counted in distinct pairs of an offset and the record seen there.
    DirtyRead,
    /// Counted in records.
    UncommittedRead,
    /// Counted in transactions.
    HalfTransaction,
    /// Counted in steps that were not forwards.
    OffsetsBackwards,
    /// Counted in offsets that a consumer was not given.
    RecordsSkipped,
    /// Counted in offsets of partitions.
    ReplicasDisagree,
    /// Counted in final reads that failed, and partitions that have none.
    Unreadable,
    /// Counted in pairs of a partition and a record id.
    FromNowhere,
    /// Counted in topic names and committed offsets.
    NotLinearizable,
    /// Counted in answers of Metadata.
    StaleMetadata,
    /// Counted in topic names and committed offsets.
    Undecided,
    /// Counted in contradictions.
    BrokenHistory,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 17] = [
        Self::AcknowledgedAndLost,
        Self::AcknowledgedAtAnotherOffset,
        Self::Duplicated,
        Self::Reordered,
        Self::Corrupted,
        Self::DirtyRead,
        Self::UncommittedRead,
        Self::HalfTransaction,
        Self::OffsetsBackwards,
        Self::RecordsSkipped,
        Self::ReplicasDisagree,
        Self::Unreadable,
        Self::FromNowhere,
        Self::NotLinearizable,
        Self::StaleMetadata,
        Self::Undecided,
        Self::BrokenHistory,
    ];

    /// A few words for a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::AcknowledgedAndLost => "acknowledged and lost",
            Self::AcknowledgedAtAnotherOffset => "acknowledged at another offset",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Corrupted => "corrupted",
            Self::DirtyRead => "dirty read",
            Self::UncommittedRead => "uncommitted record read",
            Self::HalfTransaction => "half a transaction",
            Self::OffsetsBackwards => "offsets went backwards",
            Self::RecordsSkipped => "skipped by a consumer",
            Self::ReplicasDisagree => "replicas disagree",
            Self::Unreadable => "unreadable",
            Self::FromNowhere => "appeared from nowhere",
            Self::NotLinearizable => "not linearizable",
            Self::StaleMetadata => "stale metadata",
            Self::Undecided => "undecided",
            Self::BrokenHistory => "broken history",
        }
    }

    /// What it means, in one sentence.
    pub fn description(self) -> &'static str {
        match self {
            Self::AcknowledgedAndLost => {
                "The producer was told that the record is written, and in the end it is not there."
            }
            Self::AcknowledgedAtAnotherOffset => {
                "The record is there, but not at the offset that its producer was told."
            }
            Self::Duplicated => "A record that was sent once is there more than once.",
            Self::Reordered => {
                "A record comes after one that the same producer sent later to the same partition."
            }
            Self::Corrupted => "A reader was given bytes that are not what any producer sent.",
            Self::DirtyRead => {
                "A consumer was given a record that is in the end no longer at that offset."
            }
            Self::UncommittedRead => {
                "A reader was given a record of a transaction that was never committed, or not yet."
            }
            Self::HalfTransaction => {
                "Of a transaction some records are there in the end, and others are not."
            }
            Self::OffsetsBackwards => {
                "A reader was given an offset that is not above the one before it."
            }
            Self::RecordsSkipped => {
                "A consumer went past an offset at which there is in the end a record."
            }
            Self::ReplicasDisagree => "Replicas of one partition hold different logs.",
            Self::Unreadable => {
                "A partition, or one replica of it, could not be read after all faults were over."
            }
            Self::FromNowhere => {
                "A record is in a partition to which nobody sent it, or was never sent at all."
            }
            Self::NotLinearizable => {
                "No order of the calls about a topic's name, or about an offset that a group committed, explains all that their clients were told."
            }
            Self::StaleMetadata => {
                "A broker answered Metadata from a state that was already changed when it was asked."
            }
            Self::Undecided => {
                "Whether an order of calls explains their answers was not found out: the search was given up."
            }
            Self::BrokenHistory => {
                "The history contradicts itself, so the benchmark that wrote it is at fault."
            }
        }
    }
}

/// Findings while they are found.
#[derive(Debug, Default)]
pub(super) struct Findings(BTreeMap<(bool, Kind), Finding>);

impl Findings {
    /// Counts a broken promise; `sample` is asked for only while samples are few.
    pub(super) fn violation(&mut self, kind: Kind, sample: impl FnOnce() -> String) {
        self.add(kind, true, sample);
    }

    /// Counts a broken promise, or what was not `promised` to be otherwise.
    pub(super) fn add(&mut self, kind: Kind, promised: bool, sample: impl FnOnce() -> String) {
        let finding = self.0.entry((promised, kind)).or_insert(Finding {
            kind,
            count: 0,
            samples: Vec::new(),
        });
        finding.count += 1;
        if finding.samples.len() < SAMPLES_MAX {
            finding.samples.push(sample());
        }
    }

    /// The findings as a verdict, in the order of [`Kind`].
    pub(super) fn verdict(self, counts: Counts) -> Verdict {
        let (violations, tolerated): (Vec<_>, Vec<_>) =
            (self.0.into_iter()).partition(|((promised, _), _)| *promised);
        let findings = |pairs: Vec<(_, Finding)>| pairs.into_iter().map(|(_, it)| it).collect();
        Verdict {
            violations: findings(violations),
            tolerated: findings(tolerated),
            counts,
        }
    }
}
