//! What is said of a scenario.

use drave_durability::availability::measure;
use drave_durability::judge::judge;
use drave_durability::report::{ScenarioReport, Standing};

use crate::durability::Outcome;

/// A time without acknowledgements from here on is shown as an outage.
const OUTAGE_US: u64 = 500_000;

/// A scenario without a history, and why.
pub(super) fn left_out(name: &str, description: &str, why: String) -> ScenarioReport {
    ScenarioReport {
        skipped: Some(why),
        ..tell(name, description, Outcome::default())
    }
}

/// Judges what came of a scenario.
pub(super) fn tell(name: &str, description: &str, outcome: Outcome) -> ScenarioReport {
    let history = outcome.history;
    ScenarioReport {
        name: name.to_owned(),
        description: description.to_owned(),
        verdict: judge(&history),
        availability: measure(&history, OUTAGE_US),
        faults: history.faults,
        notes: outcome.notes,
        skipped: None,
        broken_off: outcome.broken_off,
    }
}

/// What is said of a scenario as soon as it has ended.
pub(super) fn line(target: &str, told: &ScenarioReport) -> String {
    let name = &told.name;
    if let Some(why) = &told.skipped {
        return format!("{target}: {name}: {why}");
    }
    let counts = &told.verdict.counts;
    let gap = told.availability.longest_gap();
    let gap_ms = gap.map_or(0, |(_, gap)| gap.length_us() / 1_000);
    let violations: Vec<String> = told
        .verdict
        .violations
        .iter()
        .map(|finding| format!("{} {}", finding.count, finding.kind.label()))
        .collect();
    let mut verdict = match violations.as_slice() {
        [] => "nothing lost".to_owned(),
        some => some.join(", "),
    };
    if let Some(why) = &told.broken_off {
        verdict += &format!("; broken off: {why}");
    }
    format!(
        "{target}: {name}: {verdict}; {} records acknowledged, longest gap {gap_ms} ms",
        counts.acknowledged
    )
}

/// Whether a scenario kept its promises, or was left out because it is not possible here.
pub(super) fn held(told: &ScenarioReport) -> bool {
    matches!(told.standing(), Standing::Held | Standing::Skipped)
}
