//! The overview for a terminal.

use super::summary::{self, Standing};
use super::{Report, ScenarioReport};

/// What the columns of [`table`] are.
pub const TABLE_HEADER: [&str; 5] = [
    "scenario",
    "target",
    "verdict",
    "longest gap",
    "failover (median / worst)",
];

/// A row for each scenario and target, those of one scenario below each other.
pub fn table(report: &Report) -> Vec<Vec<String>> {
    let mut lines = Vec::new();
    for row in summary::rows(report) {
        for (target, run) in report.targets.iter().zip(&row.runs) {
            let ran = run.filter(|run| run.standing() != Standing::Skipped);
            let figure = |of: fn(&ScenarioReport) -> String| ran.map(of).unwrap_or_default();
            let line = [
                row.name.to_owned(),
                target.name.clone(),
                summary::verdict(*run),
                figure(summary::longest_gap),
                figure(summary::failover),
            ];
            lines.push(line.map(|cell| plain(&cell)).to_vec());
        }
    }
    lines
}

/// Text that can't move the cursor or change a terminal's colours.
fn plain(text: &str) -> String {
    text.replace(char::is_control, " ")
}
