//! How slowly a request may arrive.
//!
//! Owned by the task that reads the request. Two clocks run: every window, a
//! part has to arrive, so that a client that stops is known soon; and the whole
//! has to arrive in a time that grows with its size.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::FRAME_WINDOW_MS;
use crate::limits::{FRAME_BYTES_PER_MS_MIN, FRAME_PROGRESS_BYTES_MIN, FRAME_READ_MS_MAX};

/// The slowest that is borne with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// In every such time a part of the request arrives.
    pub window: Duration,
    /// Bytes of that part, unless fewer are left.
    pub bytes_min: usize,
    /// The time that a whole request has, besides that for its size.
    pub whole: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            window: Duration::from_millis(FRAME_WINDOW_MS),
            bytes_min: FRAME_PROGRESS_BYTES_MIN,
            whole: Duration::from_millis(FRAME_READ_MS_MAX),
        }
    }
}

/// The clocks of one request that arrives.
#[derive(Debug)]
pub(super) struct Progress {
    pace: Pace,
    window_end: Instant,
    /// Bytes of the request that must have arrived by then.
    due: usize,
    whole_end: Instant,
}

impl Progress {
    /// Of a request of so many bytes, from now on.
    pub(super) fn begin(pace: Pace, bytes: usize) -> Self {
        let now = Instant::now();
        let for_size = Duration::from_millis((bytes / FRAME_BYTES_PER_MS_MIN) as u64);
        Self {
            pace,
            window_end: now + pace.window,
            due: pace.bytes_min,
            whole_end: now + pace.whole + for_size,
        }
    }

    /// Whoever waits for more gives up then.
    pub(super) fn deadline(&self) -> Instant {
        self.window_end.min(self.whole_end)
    }

    /// So many bytes have arrived altogether.
    pub(super) fn arrived(&mut self, bytes: usize) {
        if bytes >= self.due {
            self.due = bytes + self.pace.bytes_min;
            self.window_end = Instant::now() + self.pace.window;
        }
    }

    /// The request was not read for so long: that is not the client's fault.
    pub(super) fn postpone(&mut self, paused: Duration) {
        self.window_end += paused;
        self.whole_end += paused;
    }
}
