//! The report as one page. It is well-formed XML too, so that any parser can check it.

use maud::{Markup, PreEscaped, html};

use super::summary::{self, Row, Standing};
use super::{Report, ScenarioReport, scenario};

/// Before all else: nothing may be loaded from anywhere.
const HEAD: &str = r#"<meta charset="utf-8"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
"#;
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The report as a page that needs no other file and no network.
pub fn html(report: &Report) -> String {
    let rows = summary::rows(report);
    let page = html! {
        (PreEscaped("<!DOCTYPE html>\n"))
        html lang="en" {
            head {
                (PreEscaped(HEAD))
                title { (report.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (report.title) }
                    (headlines(report))
                    (facts(report))
                }
                main {
                    (overview(report, &rows))
                    @for (number, row) in (1..).zip(&rows) {
                        (scenario::section(report, row, &id(number)))
                    }
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    printable(page.into_string())
}

/// What the parts of a page call the section of a scenario.
fn id(number: usize) -> String {
    format!("scenario-{number}")
}

/// The class of a standing in the style.
pub(super) fn class(standing: Option<Standing>) -> &'static str {
    match standing {
        Some(Standing::Held) => "verdict held",
        Some(Standing::Violated) => "verdict violated",
        Some(Standing::Unproven | Standing::BrokenOff) => "verdict unproven",
        Some(Standing::Skipped) | None => "verdict skipped",
    }
}

/// A sign for those who can't tell the colours apart.
fn sign(standing: Option<Standing>) -> &'static str {
    match standing {
        Some(Standing::Held) => "✓",
        Some(Standing::Violated) => "✗",
        Some(Standing::Unproven | Standing::BrokenOff) => "?",
        Some(Standing::Skipped) | None => "–",
    }
}

/// The verdict of a scenario with its sign.
pub(super) fn verdict(run: Option<&ScenarioReport>) -> Markup {
    html! {
        span aria-hidden="true" { (sign(run.map(ScenarioReport::standing))) " " }
        (summary::verdict(run))
    }
}

/// A sentence for each target.
fn headlines(report: &Report) -> Markup {
    html! {
        ul class="headlines" {
            @for target in &report.targets {
                @let (standing, sentence) = summary::headline(target);
                li class=(class(Some(standing))) {
                    strong { (sign(Some(standing))) " " (target.name) }
                    span { ": " (sentence) }
                }
            }
            @if report.targets.is_empty() {
                li class="skipped" { span { "No target was run." } }
            }
        }
    }
}

/// What it takes to repeat the run.
fn facts(report: &Report) -> Markup {
    html! {
        dl class="facts" {
            dt { "Started" }
            dd { (report.started) }
            dt { "Seed" }
            dd { code { (report.seed) } }
            dt { "Repeat it with" }
            dd { pre { code { (report.command) } } }
        }
    }
}

/// All scenarios and all targets in one table.
fn overview(report: &Report, rows: &[Row<'_>]) -> Markup {
    html! {
        section aria-labelledby="overview" {
            h2 id="overview" { "Scenarios" }
            div class="scroll" tabindex="0" role="region" aria-label="All scenarios and targets" {
                table class="overview" {
                    thead {
                        tr {
                            th scope="col" rowspan="2" { "scenario" }
                            @for target in &report.targets {
                                th class="starts" scope="colgroup" colspan="3" { (target.name) }
                            }
                        }
                        tr {
                            @for _ in &report.targets {
                                th class="starts text" scope="col" { "verdict" }
                                th class="number" scope="col" { "longest gap" }
                                th class="number" scope="col" { "failover median / worst" }
                            }
                        }
                    }
                    tbody {
                        @for (number, row) in (1..).zip(rows) {
                            tr {
                                th scope="row" { a href=(format!("#{}", id(number))) { (row.name) } }
                                @for run in &row.runs { (cells(*run)) }
                            }
                        }
                    }
                }
            }
            (legend())
        }
    }
}

/// One target's part of a scenario's row.
fn cells(run: Option<&ScenarioReport>) -> Markup {
    let standing = run.map(ScenarioReport::standing);
    let class = class(standing);
    html! {
        @match run.filter(|run| run.standing() != Standing::Skipped) {
            None => {
                td class="starts text" colspan="3" { span class=(class) { (verdict(run)) } }
            }
            Some(ran) => {
                td class="starts text" { span class=(class) { (verdict(run)) } }
                td class="number" { (summary::longest_gap(ran)) }
                td class="number" { (summary::failover(ran)) }
            }
        }
    }
}

/// What the words of the overview mean.
fn legend() -> Markup {
    html! {
        details {
            summary { "What the columns say" }
            ul {
                li {
                    strong { "OK" } ": every record that was acknowledged to a producer with acks=all is there, once, in order, at the "
                    "offset that the producer was told, and all replicas and consumers agree on it."
                }
                li { strong { "Longest gap" } ": the longest time in which any partition acknowledged nothing although producers wrote to it." }
                li {
                    strong { "Failover" } ": how long a partition that a fault interrupted acknowledged nothing, median and worst over "
                    "all interrupted partitions and all faults of the scenario. " em { "None" } ": no fault interrupted any."
                }
                li { strong { "Over" } ": the producers stopped before it ended." }
            }
        }
    }
}

/// `page` without characters that no text may have. Where they come from, they are text of others.
fn printable(page: String) -> String {
    let allowed = |character: char| match character {
        '\n' | '\t' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        _ => !character.is_control(),
    };
    if page.chars().all(allowed) {
        return page;
    }
    let replaced = |character| match allowed(character) {
        true => character,
        false => char::REPLACEMENT_CHARACTER,
    };
    page.chars().map(replaced).collect()
}
