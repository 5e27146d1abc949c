//! The section of a page that is about one scenario, its targets side by side.

use maud::{Markup, html};

use super::axis::{LEFT, RIGHT, WIDTH};
use super::plot::{self, Scale};
use super::summary::{Row, Standing};
use super::{Report, ScenarioReport, lanes, page, units};
use crate::availability::{Availability, ErrorCount, FaultImpact, Latency};
use crate::judge::Finding;

/// Characters of an error or a sample that are shown.
const CHARACTERS_MAX: usize = 600;

/// The section of `row`, which other parts of the page know as `id`.
pub(super) fn section(report: &Report, row: &Row<'_>, id: &str) -> Markup {
    let run = row.runs.iter().flatten();
    let run = run.filter(|run| run.standing() != Standing::Skipped);
    let scale = Scale::of(run.map(|run| &run.availability));
    let descriptions = row.runs.iter().flatten().map(|run| &run.description);
    html! {
        section id=(id) aria-labelledby=(format!("{id}-name")) {
            h2 id=(format!("{id}-name")) { (row.name) }
            @if let Some(description) = descriptions.into_iter().next() {
                p { (description) }
            }
            div class="targets" {
                @for (target, run) in report.targets.iter().zip(&row.runs) {
                    article {
                        div {
                            h3 {
                                (target.name) ": "
                                span class=(page::class(run.map(ScenarioReport::standing))) {
                                    (page::verdict(*run))
                                }
                            }
                            @if let Some(run) = run { (counts(run)) (notes(run)) }
                        }
                        @if let Some(run) = run.filter(|run| run.standing() != Standing::Skipped) {
                            div { (details(run, &scale)) }
                        }
                    }
                }
            }
        }
    }
}

/// All that is known of a target in a scenario. First the plots: those of the
/// targets are beside each other so.
fn details(run: &ScenarioReport, scale: &Scale) -> Markup {
    html! {
        (plots(run, scale))
        (findings(run))
        (faults(&run.availability.faults))
        (latencies(&run.availability))
        (errors(&run.availability))
    }
}

fn counts(run: &ScenarioReport) -> Markup {
    let counts = &run.verdict.counts;
    let transactions = counts.transactions();
    html! {
        @if run.standing() != Standing::Skipped {
            p {
                (units::counted(counts.sent, "record")) " sent: "
                (units::count(counts.acknowledged)) " acknowledged, "
                (units::count(counts.given_up)) " given up; "
                (units::count(counts.read_back)) " read back in the end, "
                (units::count(counts.seen_live)) " seen by live consumers."
                @if transactions > 0 {
                    " " (units::counted(transactions, "transaction")) ": "
                    (units::count(counts.transactions_committed)) " committed, "
                    (units::count(counts.transactions_aborted)) " aborted, "
                    (units::count(counts.transactions_unknown)) " without an answer."
                }
            }
            @if counts.operations > 0 {
                p {
                    (units::counted(counts.operations, "call"))
                    " about topics and committed offsets: "
                    (units::count(counts.operations_unknown)) " without an answer."
                }
            }
        }
    }
}

fn notes(run: &ScenarioReport) -> Markup {
    html! {
        @if !run.notes.is_empty() {
            ul class="quiet" {
                @for note in &run.notes {
                    li { (note) }
                }
            }
        }
    }
}

fn findings(run: &ScenarioReport) -> Markup {
    html! {
        @if !run.verdict.violations.is_empty() {
            h4 { "Violations" }
            @for found in &run.verdict.violations {
                (finding(found, "violated"))
            }
        }
        @if !run.verdict.tolerated.is_empty() {
            h4 { "Tolerated: seen, but not promised to be otherwise" }
            @for found in &run.verdict.tolerated {
                (finding(found, "quiet"))
            }
        }
    }
}

fn finding(found: &Finding, class: &str) -> Markup {
    let shown = found.samples.len() as u64;
    html! {
        p {
            strong class=(class) { (units::count(found.count)) " " (found.kind.label()) }
            ". " (found.kind.description())
            @if shown > 0 && shown < found.count { " The first " (units::count(shown)) ":" }
        }
        @if shown > 0 {
            ul class="samples" {
                @for sample in &found.samples {
                    li { code { (units::cut(sample, CHARACTERS_MAX)) } }
                }
            }
        }
    }
}

/// The plots, with the figures that the page's script shows under the pointer.
fn plots(run: &ScenarioReport, scale: &Scale) -> Markup {
    let availability = &run.availability;
    let timeline = &availability.timeline;
    let rates = plot::rates(availability).map(|rate| units::count(rate.round() as u64));
    let column = |values: Vec<String>| values.join(";");
    let said = |us: Option<u64>| us.map(units::duration).unwrap_or_default();
    let medians = timeline.buckets.iter().map(|bucket| said(bucket.p50_us));
    let slowest = timeline.buckets.iter().map(|bucket| said(bucket.p99_us));
    html! {
        @if timeline.buckets.is_empty() {
            p class="quiet" { "No record was sent, so there is nothing to plot." }
        } @else {
            div class="plots"
                data-bucket-us=(timeline.bucket_us) data-end-us=(scale.time.end_us)
                data-left=(LEFT) data-right=(RIGHT) data-width=(WIDTH)
                data-rates=(column(rates.collect()))
                data-p50=(column(medians.collect()))
                data-p99=(column(slowest.collect()))
            {
                p class="readout" {}
                (plot::throughput(scale, availability, &run.faults))
                (plot::latency(scale, availability, &run.faults))
                (lanes::lanes(scale, availability, &run.faults))
            }
        }
    }
}

fn faults(faults: &[FaultImpact]) -> Markup {
    html! {
        @if !faults.is_empty() {
            h4 { "Faults" }
            div class="scroll" tabindex="0" role="region" aria-label="Faults" {
                table {
                    thead {
                        tr {
                            th class="number" scope="col" { "#" }
                            th scope="col" { "fault" }
                            th class="number" scope="col" { "from, to" }
                            th class="number" scope="col" { "partitions out" }
                            th class="number" scope="col" { "outage median / worst" }
                            th class="number" scope="col" { "recovered after" }
                        }
                    }
                    tbody {
                        @for (number, fault) in (1..).zip(faults) {
                            tr {
                                td class="number" { (number) }
                                th scope="row" { (fault.name) }
                                td class="number" { (units::moment(fault.from_us)) ", " (units::moment(fault.until_us)) }
                                td class="number" { (interrupted(fault)) }
                                td class="number" { (outage(fault)) }
                                td class="number" { (recovery(fault)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How many partitions a fault interrupted.
fn interrupted(fault: &FaultImpact) -> String {
    let interrupted = fault.partitions.iter().filter(|impact| impact.interrupted);
    format!("{} of {}", interrupted.count(), fault.partitions.len())
}

fn outage(fault: &FaultImpact) -> String {
    fault.outage.map_or_else(
        || "none".to_owned(),
        |outage| {
            format!(
                "{} / {}",
                units::duration(outage.median_us),
                units::duration(outage.worst_us)
            )
        },
    )
}

/// When the last partition took records again, counted from the beginning of the fault.
fn recovery(fault: &FaultImpact) -> String {
    let mut impacts = fault.partitions.iter();
    if impacts.any(|impact| impact.interrupted && !impact.gap.recovered) {
        return "never".to_owned();
    }
    let worst = fault.recovery.map(|recovery| recovery.worst_us);
    worst.map_or_else(|| "–".to_owned(), units::duration)
}

fn latencies(availability: &Availability) -> Markup {
    let latency = &availability.latency;
    let phases = [
        ("before the first fault", latency.before),
        ("during faults", latency.during),
        ("between faults", latency.between),
        ("after the last fault", latency.after),
    ];
    html! {
        @if phases.iter().any(|(_, latency)| latency.is_some()) {
            h4 { "Latency of acknowledged records" }
            div class="scroll" tabindex="0" role="region" aria-label="Latency of acknowledged records" {
                table {
                    thead {
                        tr {
                            th scope="col" { "when" }
                            @for column in ["records", "p50", "p99", "p99.9", "longest"] {
                                th class="number" scope="col" { (column) }
                            }
                        }
                    }
                    tbody {
                        @for (phase, latency) in phases {
                            @if let Some(latency) = latency { (latency_row(phase, latency)) }
                        }
                    }
                }
            }
        }
    }
}

fn latency_row(phase: &str, latency: Latency) -> Markup {
    let times = [
        latency.p50_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
    ];
    html! {
        tr {
            th scope="row" { (phase) }
            td class="number" { (units::count(latency.count)) }
            @for us in times {
                td class="number" { (units::duration(us)) }
            }
        }
    }
}

fn errors(availability: &Availability) -> Markup {
    html! {
        (counted("Errors that producers were given", "records", &availability.errors))
        (counted("Errors that made clients send again by themselves", "batches", &availability.repeated))
    }
}

fn counted(title: &str, what: &str, errors: &[ErrorCount]) -> Markup {
    html! {
        h4 { (title) }
        @if errors.is_empty() {
            p { "None." }
        } @else {
            div class="scroll" tabindex="0" role="region" aria-label=(title) {
                table {
                    thead {
                        tr {
                            th class="number" scope="col" { (what) }
                            th scope="col" { "error" }
                        }
                    }
                    tbody {
                        @for error in errors {
                            tr {
                                td class="number" { (units::count(error.count)) }
                                td { code { (units::cut(&error.error, CHARACTERS_MAX)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
