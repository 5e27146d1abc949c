//! The time of a scenario.

use std::time::Instant;

/// Counts from the beginning of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// Begins now.
    pub(super) fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Microseconds until now.
    pub(super) fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }
}
