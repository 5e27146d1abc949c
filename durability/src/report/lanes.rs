//! When each partition took records: a bar over the time of the scenario, thin
//! and green where it did, high and red where it did not.

use maud::{Markup, html};

use super::axis::{LEFT, RIGHT, WIDTH};
use super::plot::{self, Scale};
use super::units;
use crate::availability::{Availability, PartitionAvailability};
use crate::history::Fault;

/// Partitions that are drawn; of more, those with the longest gaps.
const LANES_MAX: usize = 24;
/// Height of a partition's lane.
const LANE: f64 = 20.0;
/// Above the first lane.
const TOP: f64 = 4.0;

/// A bar for each partition.
pub(super) fn lanes(scale: &Scale, run: &Availability, faults: &[Fault]) -> Markup {
    let lanes = worst(&run.partitions);
    let bottom = TOP + LANE * lanes.len() as f64;
    let height = bottom + 28.0;
    let interrupted = lanes.iter().filter(|lane| !lane.outages.is_empty());
    let summary = format!(
        "{} of {} had an outage.",
        units::count(interrupted.count() as u64),
        units::counted(lanes.len() as u64, "partition")
    );
    html! {
        figure {
            figcaption {
                "Partitions "
                small {
                    "(thin: takes records; high: outage; right: longest time without an acknowledgement)"
                    @if lanes.len() < run.partitions.len() {
                        " The " (lanes.len()) " worst of " (run.partitions.len()) " are shown."
                    }
                }
            }
            svg role="img" viewBox=(format!("0 0 {WIDTH} {height}")) {
                title { "Availability of each partition over time" }
                desc { (summary) }
                (plot::moments(scale.time, bottom))
                (plot::shades(scale.time, faults, TOP, bottom))
                @for (index, lane) in lanes.iter().enumerate() {
                    (bar(scale, run, lane, TOP + LANE * index as f64))
                }
                (plot::cursor(TOP, bottom))
            }
        }
    }
}

/// One partition's bar.
fn bar(scale: &Scale, run: &Availability, lane: &PartitionAvailability, top: f64) -> Markup {
    let buckets = run.timeline.buckets.len() as u64;
    let end = scale
        .time
        .at(run.timeline.bucket_us.saturating_mul(buckets));
    let gap = lane.longest_gap.map(|gap| units::duration(gap.length_us()));
    let class = if lane.outages.is_empty() {
        "named"
    } else {
        "down"
    };
    html! {
        text class="end" x=(LEFT - 6.0) y=(top + 14.5) { (lane.partition) }
        @if lane.longest_gap.is_some() {
            rect class="up" x=(LEFT) width=(format!("{:.1}", end - LEFT)) y=(top + 7.0) height=(LANE - 14.0) {}
        }
        @for gap in &lane.outages {
            @let (left, right) = (scale.time.at(gap.from_us), scale.time.at(gap.until_us));
            rect class="down" x=(format!("{left:.1}")) width=(format!("{:.1}", (right - left).max(1.5))) y=(top + 2.0) height=(LANE - 4.0) {
                title {
                    "Partition " (lane.partition) " acknowledged nothing for " (units::duration(gap.length_us()))
                    ", from " (units::moment(gap.from_us)) " to " (units::moment(gap.until_us))
                    @if !gap.recovered { ", when the producers stopped" }
                }
            }
        }
        text class=(class) x=(RIGHT + 5.0) y=(top + 14.5) { (gap.as_deref().unwrap_or("not used")) }
    }
}

/// Those with the longest gaps, by number.
fn worst(partitions: &[PartitionAvailability]) -> Vec<&PartitionAvailability> {
    let mut lanes: Vec<_> = partitions.iter().collect();
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.longest_gap.map(|gap| gap.length_us())));
    lanes.truncate(LANES_MAX);
    lanes.sort_by_key(|lane| lane.partition);
    lanes
}
