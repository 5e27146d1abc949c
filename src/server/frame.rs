//! Frames from a client's socket: four bytes of length, then a request.
//!
//! Invariants: the length is judged before anything is allocated by it; a
//! buffer grows only as bytes arrive; every byte of a frame is charged to the
//! [`Budget`] before it is read, until the [`Frame`] is dropped, and no more is
//! charged than has arrived and one step; a client that sends too slowly loses
//! its connection. A frame has an allocation of its own, so keeping a slice of
//! it keeps nothing else.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::budget::{Budget, Charge};
use super::pace::{Pace, Progress};
use crate::limits::{
    FRAME_CHARGE_BYTES_MAX, FRAME_CHARGE_BYTES_MIN, FRAME_STEP_BYTES, SCRATCH_BUSY_BYTES,
    SCRATCH_BYTES,
};

/// Bytes of the length before a frame.
pub const LENGTH_BYTES: usize = 4;

/// One frame without its length.
#[derive(Debug)]
pub struct Frame {
    /// The request.
    pub bytes: Bytes,
    /// Its share of the budget.
    pub charge: Charge,
}

/// Why there is no further frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The client has closed the connection, between frames.
    #[error("closed by the client")]
    Closed,
    /// Nothing came for the allowed time.
    #[error("idle for too long")]
    Idle,
    /// A frame did not arrive in the allowed time.
    #[error("a request arrives too slowly")]
    Slow,
    /// The client has closed the connection within a frame.
    #[error("closed by the client within a request")]
    Truncated,
    /// The length is negative or above the bound.
    #[error("a request of {bytes} bytes, where at most {bytes_max} are accepted")]
    Length {
        /// What the client announced.
        bytes: i32,
        /// The bound.
        bytes_max: usize,
    },
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads frames from one socket.
pub struct FrameReader<R> {
    reader: R,
    scratch: BytesMut,
    scratch_bytes: usize,
    budget: Budget,
    bytes_max: usize,
    pace: Pace,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that charges `budget` and refuses frames above `bytes_max`, and
    /// those that arrive more slowly than `pace`.
    pub fn new(reader: R, budget: Budget, bytes_max: usize, pace: Pace) -> Self {
        Self {
            reader,
            scratch: BytesMut::new(),
            scratch_bytes: SCRATCH_BYTES,
            budget,
            bytes_max,
            pace,
        }
    }

    /// The next frame. `Idle` between frames may be followed by another call;
    /// every other error ends the connection.
    pub async fn next(&mut self, idle: Duration) -> Result<Frame, FrameError> {
        if self.scratch.is_empty() {
            let read = timeout(idle, self.fill_scratch())
                .await
                .map_err(|_| FrameError::Idle)??;
            if read == 0 {
                return Err(FrameError::Closed);
            }
        }
        let deadline = Instant::now() + self.pace.window;
        while self.scratch.len() < LENGTH_BYTES {
            let read = timeout_at(deadline, self.fill_scratch()).await;
            if read.map_err(|_| FrameError::Slow)?? == 0 {
                return Err(FrameError::Truncated);
            }
        }
        let announced = self.scratch.get_i32();
        let bytes = usize::try_from(announced)
            .ok()
            .filter(|bytes| *bytes <= self.bytes_max);
        let bytes = bytes.ok_or(FrameError::Length {
            bytes: announced,
            bytes_max: self.bytes_max,
        })?;
        self.body(bytes).await
    }

    async fn body(&mut self, bytes: usize) -> Result<Frame, FrameError> {
        let mut charged = bytes.min(self.scratch.len().max(FRAME_CHARGE_BYTES_MIN));
        let mut charge = self.budget.charge(charged).await;
        // The client's time begins when there is room for what it sends.
        let mut progress = Progress::begin(self.pace, bytes);
        // Memory that nothing is written to costs nothing yet.
        let mut frame = BytesMut::with_capacity(bytes.min(FRAME_STEP_BYTES));
        frame.put((&mut self.scratch).take(charged));
        while frame.len() < bytes {
            if frame.len() == charged {
                let step = charged.clamp(FRAME_CHARGE_BYTES_MIN, FRAME_CHARGE_BYTES_MAX);
                let step = step.min(bytes - charged);
                let paused = Instant::now();
                self.budget.charge_more(&mut charge, step).await;
                progress.postpone(paused.elapsed());
                charged += step;
            }
            if frame.len() == frame.capacity() {
                frame.reserve(frame.len().min(bytes - frame.len()));
            }
            let room = charged - frame.len();
            let mut buffer = (&mut frame).limit(room);
            let read = timeout_at(progress.deadline(), self.reader.read_buf(&mut buffer)).await;
            if read.map_err(|_| FrameError::Slow)?? == 0 {
                return Err(FrameError::Truncated);
            }
            progress.arrived(frame.len());
        }
        Ok(Frame {
            bytes: frame.freeze(),
            charge,
        })
    }

    async fn fill_scratch(&mut self) -> io::Result<usize> {
        self.scratch.reserve(self.scratch_bytes);
        let read = self
            .reader
            .read_buf(&mut (&mut self.scratch).limit(self.scratch_bytes))
            .await?;
        if read == self.scratch_bytes {
            self.scratch_bytes = SCRATCH_BUSY_BYTES;
        }
        Ok(read)
    }
}
