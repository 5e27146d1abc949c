//! Throughput and latency over the time of a scenario, with its faults behind them.

use std::fmt::Write;

use maud::{Markup, html};

use super::axis::{self, LEFT, RIGHT, Time, Values, WIDTH};
use super::units;
use crate::availability::{Availability, Bucket};
use crate::history::Fault;

/// Height of a plot.
const HEIGHT: f64 = 196.0;
/// Where its values end; the names of the faults are above.
const TOP: f64 = 28.0;
/// Where its values begin; the time is below.
const BOTTOM: f64 = HEIGHT - 28.0;
/// Width of a character of the largest type that the page's style sets.
const CHARACTER: f64 = 9.0;

/// How many times the median rate has room in a plot.
const RATE_MEDIANS_MAX: f64 = 3.0;

/// What plots have in common that are to be compared.
pub(super) struct Scale {
    /// The time.
    pub(super) time: Time,
    rates: Values,
    latencies: Values,
}

impl Scale {
    /// One on which all of `runs` have room.
    pub(super) fn of<'a>(runs: impl Iterator<Item = &'a Availability> + Clone) -> Scale {
        let end_us = runs.clone().map(end_us).max().unwrap_or(0);
        let largest = largest_rate(runs.clone().flat_map(rates));
        let buckets = runs.flat_map(|run| &run.timeline.buckets);
        let (mut fastest, mut slowest) = (f64::MAX, 0.0f64);
        for bucket in buckets {
            fastest = bucket.p50_us.map_or(fastest, |us| fastest.min(us as f64));
            slowest = bucket.p99_us.map_or(slowest, |us| slowest.max(us as f64));
        }
        Scale {
            time: Time { end_us },
            rates: Values::linear(largest, BOTTOM, TOP),
            latencies: Values::logarithmic(fastest.min(slowest), slowest, BOTTOM, TOP),
        }
    }
}

/// The largest rate that has room. What waited for the end of an outage is acknowledged
/// at once then; the height of that moment must not make all others flat.
fn largest_rate(rates: impl Iterator<Item = f64>) -> f64 {
    let mut rates: Vec<f64> = rates.filter(|rate| *rate > 0.0).collect();
    rates.sort_unstable_by(f64::total_cmp);
    let median = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
    let peak = rates.last().copied().unwrap_or(0.0);
    peak.min(RATE_MEDIANS_MAX * median)
}

/// When the last bucket of a run ends.
pub(super) fn end_us(run: &Availability) -> u64 {
    let buckets = run.timeline.buckets.len() as u64;
    run.timeline.bucket_us.saturating_mul(buckets)
}

/// Records acknowledged a second, bucket by bucket.
pub(super) fn rates(run: &Availability) -> impl Iterator<Item = f64> {
    let seconds = run.timeline.bucket_us.max(1) as f64 / 1e6;
    let buckets = run.timeline.buckets.iter();
    buckets.map(move |bucket| bucket.acknowledged as f64 / seconds)
}

/// Acknowledged records a second over time.
pub(super) fn throughput(scale: &Scale, run: &Availability, faults: &[Fault]) -> Markup {
    let line = steps(scale, run);
    let first = format!("M{LEFT:.1} {BOTTOM:.1}");
    let peak = rates(run).fold(0.0, f64::max);
    let silent = run.timeline.buckets.iter();
    let silent = silent.filter(|bucket| bucket.acknowledged == 0).count() as u64;
    let summary = format!(
        "At most {} records a second; nothing was acknowledged in {} of {}.",
        units::count(peak.round() as u64),
        units::count(silent),
        units::counted(run.timeline.buckets.len() as u64, "interval"),
    );
    let ticks = scale.rates.ticks(units::short);
    let curves = html! {
        path class="area" d=(format!("{first}{line}V{BOTTOM:.1}Z")) {}
        path class="line first" d=(format!("{first}{line}")) {}
    };
    html! {
        figure {
            figcaption {
                "Throughput "
                small {
                    "(records acknowledged a second"
                    @if scale.rates.cuts(peak) { "; bursts of up to " (units::count(peak.round() as u64)) " are cut off" }
                    ")"
                }
            }
            (picture("Records acknowledged a second over time", &summary, scale.time, faults, &ticks, &curves))
        }
    }
}

/// Median and 99th percentile of the time to acknowledgement over time.
pub(super) fn latency(scale: &Scale, run: &Availability, faults: &[Fault]) -> Markup {
    let p50 = curve(scale, run, |bucket| bucket.p50_us);
    let p99 = curve(scale, run, |bucket| bucket.p99_us);
    let buckets = &run.timeline.buckets;
    let summary = match buckets.iter().filter_map(|bucket| bucket.p99_us).max() {
        None => "No record was acknowledged.".to_owned(),
        Some(slowest) => format!(
            "The 99th percentile is at most {}.",
            units::duration(slowest)
        ),
    };
    // Names beside the ends of the lines, apart from each other.
    let end = |value: fn(&Bucket) -> Option<u64>, otherwise| {
        let last = buckets.iter().rev().find_map(value);
        last.map_or(otherwise, |us| scale.latencies.at(us as f64))
    };
    let p50_end = end(|bucket| bucket.p50_us, BOTTOM);
    let p99_end = end(|bucket| bucket.p99_us, TOP);
    let p50_end = p50_end.max(TOP + 22.0);
    let p99_end = p99_end.min(p50_end - 18.0);
    let ticks = scale.latencies.ticks(axis::power_of_ten);
    let curves = html! {
        path class="line second" d=(p99) {}
        path class="line first" d=(p50) {}
        text class="second" x=(format!("{:.1}", RIGHT + 5.0)) y=(format!("{:.1}", p99_end + 4.0)) { "p99" }
        text class="first" x=(format!("{:.1}", RIGHT + 5.0)) y=(format!("{:.1}", p50_end + 4.0)) { "p50" }
    };
    html! {
        figure {
            figcaption { "Latency " small { "(from send to acknowledgement; p50 and p99)" } }
            (picture("Time from send to acknowledgement over time", &summary, scale.time, faults, &ticks, &curves))
        }
    }
}

/// A line that is level within each bucket, to be continued from the left.
fn steps(scale: &Scale, run: &Availability) -> String {
    let mut path = String::new();
    for (index, rate) in (1..).zip(rates(run)) {
        let right = scale.time.at(run.timeline.bucket_us.saturating_mul(index));
        let y = scale.rates.at(rate);
        write!(path, "V{y:.1}H{right:.1}").expect("a String takes all text");
    }
    path
}

/// A line from bucket to bucket, broken where nothing was acknowledged.
fn curve(scale: &Scale, run: &Availability, value: impl Fn(&Bucket) -> Option<u64>) -> String {
    let mut path = String::new();
    let mut joined = false;
    for (index, bucket) in (0..).zip(&run.timeline.buckets) {
        let Some(us) = value(bucket) else {
            joined = false;
            continue;
        };
        let bucket_us = run.timeline.bucket_us;
        let x = scale.time.at(bucket_us
            .saturating_mul(index)
            .saturating_add(bucket_us / 2));
        let y = scale.latencies.at(us as f64);
        // A point without neighbours is a line of no length: its round ends show.
        let start = if joined { "L" } else { "M" };
        write!(path, "{start}{x:.1} {y:.1}").expect("a String takes all text");
        if !joined {
            path.push_str("h0");
        }
        joined = true;
    }
    path
}

/// A plot: its axes, its faults, and what is drawn on them.
fn picture(
    title: &str,
    summary: &str,
    time: Time,
    faults: &[Fault],
    ticks: &[axis::Tick],
    curves: &Markup,
) -> Markup {
    html! {
        svg role="img" viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) {
            title { (title) }
            desc { (summary) }
            @for tick in ticks {
                line class="grid" x1=(LEFT) x2=(RIGHT) y1=(format!("{:.1}", tick.at)) y2=(format!("{:.1}", tick.at)) {}
                text class="end" x=(LEFT - 6.0) y=(format!("{:.1}", tick.at + 4.0)) { (tick.label) }
            }
            (moments(time, BOTTOM))
            (shades(time, faults, TOP - 4.0, BOTTOM))
            (names(time, faults))
            (curves)
            (cursor(TOP, BOTTOM))
        }
    }
}

/// The axis of time, below `bottom`.
pub(super) fn moments(time: Time, bottom: f64) -> Markup {
    html! {
        @for tick in time.ticks() {
            line class="grid" x1=(format!("{:.1}", tick.at)) x2=(format!("{:.1}", tick.at)) y1=(bottom) y2=(bottom + 4.0) {}
            text class="middle" x=(format!("{:.1}", tick.at)) y=(bottom + 20.0) { (tick.label) }
        }
    }
}

/// The time of each fault, shaded; its edges are dashed.
pub(super) fn shades(time: Time, faults: &[Fault], top: f64, bottom: f64) -> Markup {
    html! {
        @for (number, fault) in (1..).zip(faults) {
            @let (left, right) = (time.at(fault.from_us), time.at(fault.until_us));
            g {
                title {
                    (number) ": " (fault.name) ", "
                    (units::moment(fault.from_us)) " to " (units::moment(fault.until_us))
                }
                rect class="fault" x=(format!("{left:.1}")) width=(format!("{:.1}", (right - left).max(1.5))) y=(top) height=(bottom - top) {}
                @for x in [left, right] {
                    line class="edge" x1=(format!("{x:.1}")) x2=(format!("{x:.1}")) y1=(top) y2=(bottom) {}
                }
            }
        }
    }
}

/// Numbers and names of the faults above a plot, as far as there is room.
fn names(time: Time, faults: &[Fault]) -> Markup {
    let mut shown = Vec::new();
    let mut free = 0.0;
    for (index, fault) in faults.iter().enumerate() {
        let left = time.at(fault.from_us);
        if left < free {
            continue;
        }
        let next = faults[index + 1..].iter().map(|next| time.at(next.from_us));
        let end = next.fold(WIDTH, f64::min);
        let room = ((end - left) / CHARACTER).floor() as usize;
        let number = (index + 1).to_string();
        let name = format!("{number} {}", fault.name);
        let text = if room >= number.len() + 6 {
            units::cut(&name, room - 1)
        } else {
            number
        };
        free = left + CHARACTER * (text.chars().count() + 1) as f64;
        shown.push((left, text));
    }
    html! {
        @for (left, text) in shown {
            text class="named" x=(format!("{left:.1}")) y=(TOP - 9.0) { (text) }
        }
    }
}

/// The line below the pointer.
pub(super) fn cursor(top: f64, bottom: f64) -> Markup {
    html! {
        line class="cursor" visibility="hidden" x1="0" x2="0" y1=(top) y2=(bottom) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::availability::Timeline;

    fn run(acknowledged: impl Iterator<Item = u64>) -> Availability {
        let buckets = acknowledged.map(|acknowledged| Bucket {
            from_us: 0,
            acknowledged,
            p50_us: (acknowledged > 0).then_some(1_000),
            p99_us: (acknowledged > 0).then_some(2_000),
        });
        Availability {
            timeline: Timeline {
                bucket_us: 100_000,
                buckets: buckets.collect(),
            },
            ..Availability::default()
        }
    }

    #[test]
    fn a_burst_does_not_flatten_the_rest() {
        // Ten seconds at 500 a second, two without any, and what waited at once.
        let pace = (0..100).map(|_| 50);
        let troubled = run(pace.clone().chain([0; 20]).chain([1_050]));
        let scale = Scale::of([&troubled].into_iter());
        assert!(BOTTOM - scale.rates.at(500.0) >= (BOTTOM - TOP) / 4.0);
        assert_eq!(scale.rates.at(10_500.0), TOP);
        let said = throughput(&scale, &troubled, &[]).into_string();
        assert!(
            said.contains("bursts of up to 10,500 are cut off"),
            "{said}"
        );
        // A steady run has nothing to cut off.
        let steady = run(pace);
        let scale = Scale::of([&steady].into_iter());
        let said = throughput(&scale, &steady, &[]).into_string();
        assert!(!said.contains("cut off"), "{said}");
    }

    #[test]
    fn a_latency_without_neighbours_is_drawn_and_silence_is_not() {
        let run = run([0, 5, 0, 0, 5, 5, 0].into_iter());
        let scale = Scale::of([&run].into_iter());
        let path = curve(&scale, &run, |bucket| bucket.p50_us);
        // Two pieces: a point, and a line of two points.
        assert_eq!(path.matches('M').count(), 2, "{path}");
        assert_eq!(path.matches("h0").count(), 2, "{path}");
        assert_eq!(path.matches('L').count(), 1, "{path}");
    }

    #[test]
    fn names_of_faults_do_not_lie_on_each_other() {
        let time = Time { end_us: 10_000_000 };
        let fault = |from_us| Fault {
            name: "kill -9 of a broker".to_owned(),
            from_us,
            until_us: from_us + 500_000,
        };
        let far = [fault(1_000_000), fault(6_000_000)];
        let said = names(time, &far).into_string();
        assert!(
            said.contains(">1 kill -9 of") && said.contains(">2 kill -9 of"),
            "{said}"
        );
        // Too close for any name: numbers, and not each of them.
        let close: Vec<Fault> = (0..200).map(|number| fault(number * 50_000)).collect();
        let said = names(time, &close[..]).into_string();
        let shown = said.matches("<text").count();
        assert!((2..60).contains(&shown), "{shown} names");
    }
}
