//! Where in a picture a value belongs. Every picture of a report has the same
//! width and the same margins, so that moments lie below each other.

use super::units;

/// Width of every picture, in its own units.
pub(super) const WIDTH: f64 = 560.0;
/// Where time begins.
pub(super) const LEFT: f64 = 64.0;
/// Where time ends.
pub(super) const RIGHT: f64 = WIDTH - 76.0;

/// Something to be written beside an axis.
#[derive(Debug, PartialEq)]
pub(super) struct Tick {
    /// Where, in the picture's units.
    pub(super) at: f64,
    /// What.
    pub(super) label: String,
}

/// The time of a scenario, from left to right.
#[derive(Clone, Copy)]
pub(super) struct Time {
    /// What is at the right.
    pub(super) end_us: u64,
}

impl Time {
    /// Where a moment is; later ones than the last are at the right.
    pub(super) fn at(self, us: u64) -> f64 {
        let end_us = self.end_us.max(1);
        LEFT + (RIGHT - LEFT) * (us.min(end_us) as f64 / end_us as f64)
    }

    /// From 0, some six of them.
    pub(super) fn ticks(self) -> Vec<Tick> {
        let step_us = step(self.end_us as f64 / 6.0).max(1.0) as u64;
        let moments = (0..).map_while(|index: u64| index.checked_mul(step_us));
        let within = moments.take_while(|us| *us <= self.end_us);
        within
            .map(|us| Tick {
                at: self.at(us),
                label: format!("{} s", (us as f64 / 1e4).round() / 1e2),
            })
            .collect()
    }
}

/// Values from the bottom of a plot to its top.
#[derive(Clone, Copy)]
pub(super) struct Values {
    low: f64,
    high: f64,
    bottom: f64,
    top: f64,
    logarithmic: bool,
}

impl Values {
    /// From 0 to `largest` or a little above, in equal steps.
    pub(super) fn linear(largest: f64, bottom: f64, top: f64) -> Values {
        let step = step(largest.max(1.0) / 4.0);
        Values {
            low: 0.0,
            high: (largest.max(1.0) / step).ceil() * step,
            bottom,
            top,
            logarithmic: false,
        }
    }

    /// Whole powers of ten around `smallest` and `largest`, each as high as the others.
    pub(super) fn logarithmic(smallest: f64, largest: f64, bottom: f64, top: f64) -> Values {
        let low = smallest.max(1.0).log10().floor();
        Values {
            low,
            high: largest.max(1.0).log10().ceil().max(low + 1.0),
            bottom,
            top,
            logarithmic: true,
        }
    }

    /// Whether a value is beyond the top.
    pub(super) fn cuts(self, value: f64) -> bool {
        !self.logarithmic && value > self.high
    }

    /// Where a value is; one that is beyond the ends is at the end.
    pub(super) fn at(self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.max(1.0).log10()
        } else {
            value
        };
        let share = (value.clamp(self.low, self.high) - self.low) / (self.high - self.low);
        self.bottom - (self.bottom - self.top) * share
    }

    /// What to write beside it, by `label`.
    pub(super) fn ticks(self, label: impl Fn(f64) -> String) -> Vec<Tick> {
        let span = self.high - self.low;
        let step = if self.logarithmic {
            1.0
        } else {
            step(span / 4.0)
        };
        let steps = (span / step).round() as u32;
        let values = (0..=steps).map(|index| self.low + f64::from(index) * step);
        values
            .map(|value| {
                let value = if self.logarithmic {
                    10f64.powf(value)
                } else {
                    value
                };
                Tick {
                    at: self.at(value),
                    label: label(value),
                }
            })
            .collect()
    }
}

/// The label of a power of ten of microseconds.
pub(super) fn power_of_ten(us: f64) -> String {
    match us {
        1e6.. => format!("{} s", units::short(us / 1e6)),
        1e3.. => format!("{} ms", us / 1e3),
        _ => format!("{us} µs"),
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is not below `least`.
fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.max(1e-9).log10().floor());
    let factors = [1.0, 2.0, 5.0].into_iter();
    // A hair less: 0.1 + 0.2 is not 0.3.
    let mut enough = factors.filter(|factor| factor * power >= least * (1.0 - 1e-9));
    enough.next().unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn time_goes_from_left_to_right_and_no_further() {
        let time = Time { end_us: 30_000_000 };
        assert_eq!(time.at(0), LEFT);
        assert_eq!(time.at(30_000_000), RIGHT);
        assert_eq!(time.at(u64::MAX), RIGHT);
        assert_eq!(
            labels(&time.ticks()),
            ["0 s", "5 s", "10 s", "15 s", "20 s", "25 s", "30 s"]
        );
        // Nothing happened at all: still an axis.
        assert_eq!(labels(&Time { end_us: 0 }.ticks()), ["0 s"]);
    }

    #[test]
    fn values_have_round_labels_and_stay_in_the_plot() {
        let values = Values::linear(4_321.0, 100.0, 0.0);
        let ticks = values.ticks(units::short);
        assert_eq!(labels(&ticks), ["0", "2k", "4k", "6k"]);
        assert_eq!((values.at(0.0), values.at(6_000.0)), (100.0, 0.0));
        assert_eq!(values.at(1e9), 0.0);
        // No record at all: still an axis.
        let nothing = Values::linear(0.0, 100.0, 0.0);
        assert_eq!(nothing.at(0.0), 100.0);
        assert!(nothing.ticks(units::short).len() >= 2);
    }

    #[test]
    fn latencies_are_shown_by_powers_of_ten() {
        let values = Values::logarithmic(1_700.0, 2_300_000.0, 90.0, 10.0);
        let ticks = values.ticks(power_of_ten);
        assert_eq!(labels(&ticks), ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]);
        assert_eq!(ticks[0].at, 90.0);
        assert_eq!(ticks[4].at, 10.0);
        // One value: one power of ten.
        let one = Values::logarithmic(1_000.0, 1_000.0, 90.0, 10.0);
        assert_eq!(labels(&one.ticks(power_of_ten)), ["1 ms", "10 ms"]);
    }
}
