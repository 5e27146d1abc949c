//! What a report comes down to: a word for a scenario, a sentence for a target.

use std::collections::{BTreeMap, HashMap};

use super::{Report, ScenarioReport, TargetReport, units};
use crate::availability::{Gap, Spread};
use crate::judge::Kind;

/// How a scenario ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Every promise was kept.
    Held,
    /// At least one was not.
    Violated,
    /// None was seen to be broken, but the scenario did not come to its end.
    BrokenOff,
    /// Nothing was acknowledged, so nothing was promised.
    Unproven,
    /// It was not run.
    Skipped,
}

impl ScenarioReport {
    /// How it ended.
    pub fn standing(&self) -> Standing {
        if self.skipped.is_some() {
            Standing::Skipped
        } else if !self.verdict.is_clean() {
            Standing::Violated
        } else if self.broken_off.is_some() {
            Standing::BrokenOff
        } else if self.verdict.counts.acknowledged == 0 {
            Standing::Unproven
        } else {
            Standing::Held
        }
    }

    /// How often a promise was broken.
    pub fn violations(&self) -> u64 {
        let findings = self.verdict.violations.iter();
        findings.fold(0, |sum, finding| sum.saturating_add(finding.count))
    }

    /// How long a partition that a fault interrupted acknowledged nothing, over
    /// all faults and partitions. `None`: no fault interrupted any.
    pub fn failover(&self) -> Option<Spread> {
        spread(self.outages())
    }

    /// The outage of each interrupted partition at each fault.
    fn outages(&self) -> impl Iterator<Item = u64> {
        let impacts = self.availability.faults.iter();
        let impacts = impacts.flat_map(|fault| &fault.partitions);
        let interrupted = impacts.filter(|impact| impact.interrupted);
        interrupted.map(|impact| impact.outage_us)
    }

    /// Whether a partition was still out when the producers stopped.
    fn stayed_out(&self) -> bool {
        let faults = self.availability.faults.iter();
        let mut impacts = faults.flat_map(|fault| &fault.partitions);
        impacts.any(|impact| impact.interrupted && !impact.gap.recovered)
    }
}

impl Report {
    /// Whether something was run, and every promise was kept in all that was.
    pub fn holds(&self) -> bool {
        let scenarios = self.targets.iter().flat_map(|target| &target.scenarios);
        let mut run = scenarios
            .map(ScenarioReport::standing)
            .filter(|standing| *standing != Standing::Skipped)
            .peekable();
        run.peek().is_some() && run.all(|standing| standing == Standing::Held)
    }
}

/// One scenario in all targets.
pub(super) struct Row<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Target by target; `None`: the target's report does not have it.
    pub(super) runs: Vec<Option<&'a ScenarioReport>>,
}

/// All scenarios, in the order in which they first appear. One that a target ran
/// twice under the same name is two.
pub(super) fn rows(report: &Report) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut places = HashMap::new();
    for (column, target) in report.targets.iter().enumerate() {
        let mut met: HashMap<&str, u32> = HashMap::new();
        for scenario in &target.scenarios {
            let nth = met.entry(&scenario.name).or_default();
            *nth += 1;
            let place = *places.entry((&scenario.name, *nth)).or_insert(rows.len());
            if place == rows.len() {
                rows.push(Row {
                    name: &scenario.name,
                    runs: vec![None; report.targets.len()],
                });
            }
            rows[place].runs[column] = Some(scenario);
        }
    }
    rows
}

/// The verdict of a scenario in a few words.
pub(super) fn verdict(run: Option<&ScenarioReport>) -> String {
    let Some(run) = run else {
        return "not run".to_owned();
    };
    let reason = |reason: &Option<String>| reason.clone().unwrap_or_default();
    match run.standing() {
        Standing::Skipped => format!("skipped: {}", reason(&run.skipped)),
        Standing::BrokenOff => format!("broken off: {}", reason(&run.broken_off)),
        Standing::Unproven => "unproven: nothing was acknowledged".to_owned(),
        Standing::Violated => {
            let broken_off = (run.broken_off.as_ref()).map(|why| format!("; broken off: {why}"));
            format!(
                "{}: {}{}",
                units::counted(run.violations(), "violation"),
                kinds([run].into_iter()),
                broken_off.unwrap_or_default()
            )
        }
        Standing::Held => "OK".to_owned(),
    }
}

/// The longest time that a partition was without an acknowledgement.
pub(super) fn longest_gap(run: &ScenarioReport) -> String {
    match run.availability.longest_gap() {
        None => "–".to_owned(),
        Some((_, gap)) => length(gap),
    }
}

/// Median and worst failover.
pub(super) fn failover(run: &ScenarioReport) -> String {
    match run.failover() {
        None => "none".to_owned(),
        Some(Spread {
            median_us,
            worst_us,
            ..
        }) => format!(
            "{} / {}{}",
            units::duration(median_us),
            if run.stayed_out() { "over " } else { "" },
            units::duration(worst_us)
        ),
    }
}

/// How long a gap was; at the end of the run it might have become longer.
fn length(gap: Gap) -> String {
    let over = if gap.recovered { "" } else { "over " };
    format!("{over}{}", units::duration(gap.length_us()))
}

/// A target's verdict in one sentence, its name left out.
pub(super) fn headline(target: &TargetReport) -> (Standing, String) {
    let among = |standing| {
        let scenarios = target.scenarios.iter();
        scenarios.filter(move |scenario| scenario.standing() == standing)
    };
    let amount = |standing| among(standing).count() as u64;
    let skipped = amount(Standing::Skipped);
    let run = target.scenarios.len() as u64 - skipped;
    let (violated, unproven) = (amount(Standing::Violated), amount(Standing::Unproven));
    let broken_off = amount(Standing::BrokenOff);
    let held = run - violated - unproven - broken_off;
    let mut sentence = match (run, violated) {
        (0, _) => "no scenario was run".to_owned(),
        (_, 0) if unproven == run => "nothing was acknowledged, so nothing is proven".to_owned(),
        (1, 0) if held == 1 => "every promise was kept in the one scenario that was run".to_owned(),
        (_, 0) => format!(
            "every promise was kept in {}",
            units::counted(held, "scenario")
        ),
        _ => format!(
            "promises were broken in {} of {} ({})",
            units::count(violated),
            units::counted(run, "scenario"),
            kinds(among(Standing::Violated))
        ),
    };
    if broken_off > 0 {
        sentence += &format!(", {} broken off", units::counted(broken_off, "scenario"));
    }
    if unproven > 0 && unproven < run {
        sentence += &format!(
            ", nothing was acknowledged in {}",
            units::counted(unproven, "scenario")
        );
    }
    if skipped > 0 {
        sentence += &format!(", {} skipped", units::count(skipped));
    }
    sentence += &availability(target);
    sentence.push('.');
    let standing = match (run, violated) {
        (0, _) => Standing::Skipped,
        (_, 0) if broken_off > 0 => Standing::BrokenOff,
        (_, 0) if unproven > 0 => Standing::Unproven,
        (_, 0) => Standing::Held,
        _ => Standing::Violated,
    };
    (standing, sentence)
}

/// The rest of a target's sentence: its longest gap and its failovers. Where it
/// acknowledged nothing at all, the sentence says so already.
fn availability(target: &TargetReport) -> String {
    let run = || {
        let scenarios = target.scenarios.iter();
        scenarios
            .filter(|scenario| matches!(scenario.standing(), Standing::Held | Standing::Violated))
    };
    let gaps = run().filter_map(|scenario| {
        let (_, gap) = scenario.availability.longest_gap()?;
        Some((gap, &scenario.name))
    });
    let mut words = String::new();
    if let Some((gap, name)) = gaps.max_by_key(|(gap, _)| gap.length_us()) {
        words += &format!("; longest gap {} ({name})", length(gap));
    }
    if let Some(failover) = spread(run().flat_map(ScenarioReport::outages)) {
        words += &format!(
            "; failover median {}, worst {}{}",
            units::duration(failover.median_us),
            if run().any(ScenarioReport::stayed_out) {
                "over "
            } else {
                ""
            },
            units::duration(failover.worst_us)
        );
    }
    words
}

/// How often each promise was broken.
fn kinds<'a>(runs: impl Iterator<Item = &'a ScenarioReport>) -> String {
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    for finding in runs.flat_map(|run| &run.verdict.violations) {
        let count = counts.entry(finding.kind).or_default();
        *count = count.saturating_add(finding.count);
    }
    let words = counts.iter();
    let words = words.map(|(kind, count)| format!("{} {}", units::count(*count), kind.label()));
    words.collect::<Vec<_>>().join(", ")
}

fn spread(values: impl Iterator<Item = u64>) -> Option<Spread> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    Some(Spread {
        count: values.len() as u64,
        median_us: *values.get(values.len().checked_sub(1)? / 2)?,
        worst_us: *values.last()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::availability::{Availability, FaultImpact, PartitionAvailability, PartitionImpact};
    use crate::judge::{Counts, Finding, Verdict};

    /// A scenario with so many acknowledged records, and outages that end or don't.
    fn scenario(name: &str, acknowledged: u64, outages_ms: &[(u64, bool)]) -> ScenarioReport {
        let gap = |(ms, recovered): (u64, bool)| Gap {
            from_us: 1_000_000,
            until_us: 1_000_000 + ms * 1_000,
            recovered,
        };
        let outages = (0..).zip(outages_ms.iter().copied());
        let partitions = outages
            .clone()
            .map(|(partition, outage)| PartitionAvailability {
                partition,
                acknowledged,
                longest_gap: Some(gap(outage)),
                outages: Vec::new(),
            });
        let impacts = outages.map(|(partition, outage)| PartitionImpact {
            partition,
            gap: gap(outage),
            interrupted: outage.0 >= 100,
            outage_us: outage.0 * 1_000,
            recovery_us: outage.0 * 1_000,
        });
        let impact = FaultImpact {
            name: "kill -9".to_owned(),
            from_us: 1_000_000,
            until_us: 2_000_000,
            partitions: impacts.collect(),
            outage: None,
            recovery: None,
        };
        ScenarioReport {
            name: name.to_owned(),
            description: String::new(),
            verdict: Verdict {
                counts: Counts {
                    acknowledged,
                    ..Counts::default()
                },
                ..Verdict::default()
            },
            availability: Availability {
                partitions: partitions.collect(),
                faults: vec![impact],
                ..Availability::default()
            },
            faults: Vec::new(),
            notes: Vec::new(),
            skipped: None,
            broken_off: None,
        }
    }

    fn violated(mut scenario: ScenarioReport, kind: Kind, count: u64) -> ScenarioReport {
        scenario.verdict.violations.push(Finding {
            kind,
            count,
            samples: Vec::new(),
        });
        scenario
    }

    fn skipped(mut scenario: ScenarioReport) -> ScenarioReport {
        scenario.skipped = Some("no FUSE here".to_owned());
        scenario
    }

    fn broken_off(mut scenario: ScenarioReport) -> ScenarioReport {
        scenario.broken_off = Some("broker 2 did not start".to_owned());
        scenario
    }

    fn said(scenarios: Vec<ScenarioReport>) -> (Standing, String) {
        headline(&TargetReport {
            name: "drave".to_owned(),
            scenarios,
        })
    }

    #[test]
    fn a_target_comes_down_to_one_sentence() {
        let kill = scenario("kill", 9, &[(50, true), (400, true), (600, true)]);
        let stop = scenario("stop", 9, &[(1_200, true)]);
        let silent = scenario("silent", 0, &[(9_000, false)]);
        let lost = violated(kill.clone(), Kind::AcknowledgedAndLost, 3);
        let both = violated(lost.clone(), Kind::Duplicated, 1_000);
        let cases = [
            (vec![], Standing::Skipped, "no scenario was run."),
            (
                vec![skipped(kill.clone())],
                Standing::Skipped,
                "no scenario was run, 1 skipped.",
            ),
            (
                vec![silent.clone()],
                Standing::Unproven,
                "nothing was acknowledged, so nothing is proven.",
            ),
            (
                vec![kill.clone()],
                Standing::Held,
                "every promise was kept in the one scenario that was run; \
                 longest gap 600 ms (kill); failover median 400 ms, worst 600 ms.",
            ),
            (
                vec![kill.clone(), stop.clone(), silent, skipped(kill)],
                Standing::Unproven,
                "every promise was kept in 2 scenarios, nothing was acknowledged in 1 scenario, \
                 1 skipped; longest gap 1.20 s (stop); failover median 600 ms, worst 1.20 s.",
            ),
            (
                vec![broken_off(stop.clone())],
                Standing::BrokenOff,
                "every promise was kept in 0 scenarios, 1 scenario broken off.",
            ),
            (
                vec![broken_off(lost.clone())],
                Standing::Violated,
                "promises were broken in 1 of 1 scenario (3 acknowledged and lost); \
                 longest gap 600 ms (kill); failover median 400 ms, worst 600 ms.",
            ),
            (
                vec![lost, stop, both],
                Standing::Violated,
                "promises were broken in 2 of 3 scenarios \
                 (6 acknowledged and lost, 1,000 duplicated); \
                 longest gap 1.20 s (stop); failover median 600 ms, worst 1.20 s.",
            ),
        ];
        for (scenarios, standing, sentence) in cases {
            assert_eq!(said(scenarios), (standing, sentence.to_owned()));
        }
    }

    #[test]
    fn an_outage_that_did_not_end_is_longer_than_was_seen() {
        let stuck = scenario("stuck", 9, &[(300, true), (5_000, false)]);
        assert_eq!(longest_gap(&stuck), "over 5.00 s");
        assert_eq!(failover(&stuck), "300 ms / over 5.00 s");
        let calm = scenario("calm", 9, &[(20, true)]);
        assert_eq!(
            (longest_gap(&calm), failover(&calm)),
            ("20 ms".to_owned(), "none".to_owned())
        );
        let empty = scenario("empty", 9, &[]);
        assert_eq!(
            (longest_gap(&empty), failover(&empty)),
            ("–".to_owned(), "none".to_owned())
        );
    }

    #[test]
    fn scenarios_of_one_name_are_beside_each_other() {
        let target = |names: &[&str]| TargetReport {
            name: "target".to_owned(),
            scenarios: names.iter().map(|name| scenario(name, 1, &[])).collect(),
        };
        let report = Report {
            version: crate::report::FORMAT_VERSION,
            title: String::new(),
            started: String::new(),
            seed: 0,
            command: String::new(),
            targets: vec![target(&["a", "b", "a"]), target(&["c", "a", "b"])],
        };
        let rows = rows(&report);
        let places: Vec<_> = rows
            .iter()
            .map(|row| (row.name, [row.runs[0].is_some(), row.runs[1].is_some()]))
            .collect();
        assert_eq!(
            places,
            [
                ("a", [true, true]),
                ("b", [true, true]),
                ("a", [true, false]),
                ("c", [false, true]),
            ]
        );
        assert!(report.holds());
    }
}
