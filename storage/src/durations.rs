//! How long something takes, counted without a lock.
//!
//! Anybody may observe; an observation is two relaxed additions. A reader may
//! see one of them before the other, which a histogram that only grows allows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; one more bucket has no bound.
const BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];
const BUCKETS: usize = BOUNDS_US.len() + 1;

/// A histogram of durations from 100 µs to 10 s.
#[derive(Debug, Default)]
pub struct DurationHistogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

/// What a [`DurationHistogram`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct DurationCounts {
    /// Each bucket's upper bound in seconds, the last one infinite, and what
    /// fell between the bound before it and its own.
    pub buckets: [(f64, u64); BUCKETS],
    /// Sum of all durations, in seconds.
    pub sum_seconds: f64,
}

impl DurationHistogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound_us| bound_us * 1_000 < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn counts(&self) -> DurationCounts {
        let mut counts = DurationCounts::default();
        for ((_, count), bucket) in counts.buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        counts.sum_seconds = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        counts
    }
}

impl DurationCounts {
    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl Default for DurationCounts {
    fn default() -> DurationCounts {
        let mut buckets = [(f64::INFINITY, 0); BUCKETS];
        for ((bound, _), bound_us) in buckets.iter_mut().zip(BOUNDS_US) {
            *bound = bound_us as f64 / 1e6;
        }
        DurationCounts {
            buckets,
            sum_seconds: 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let histogram = DurationHistogram::default();
        for duration in [
            Duration::ZERO,
            Duration::from_micros(100),
            Duration::from_nanos(100_001),
            Duration::from_secs(10),
            Duration::from_secs(11),
        ] {
            histogram.observe(duration);
        }
        let counts = histogram.counts();
        let filled = counts.buckets.into_iter().filter(|(_, count)| *count > 0);
        assert_eq!(
            filled.collect::<Vec<_>>(),
            [(0.0001, 2), (0.00025, 1), (10.0, 1), (f64::INFINITY, 1)]
        );
        assert_eq!(counts.count(), 5);
        assert!((counts.sum_seconds - 21.0002).abs() < 1e-6, "{counts:?}");
    }

    #[test]
    fn bounds_only_grow() {
        assert!(BOUNDS_US.is_sorted());
        let bounds = DurationCounts::default().buckets.map(|(bound, _)| bound);
        assert!(bounds.is_sorted() && bounds[BUCKETS - 1].is_infinite());
    }
}
