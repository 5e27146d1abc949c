//! Frames from a client's socket: four bytes of length, then a request.
//!
//! Invariants: the length is judged before anything is allocated by it; a
//! buffer grows only as bytes arrive; every byte of a frame is charged to the
//! budget that all connections share before there is room for it, until the
//! [`Frame`] is dropped. A frame has an allocation of its own, so keeping a
//! slice of it keeps nothing else.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::limits::{
    FRAME_BYTES_PER_MS_MIN, FRAME_READ_MS_MAX, FRAME_STEP_BYTES, SCRATCH_BUSY_BYTES, SCRATCH_BYTES,
};

/// Bytes of the length before a frame.
pub const LENGTH_BYTES: usize = 4;

/// One frame without its length.
#[derive(Debug)]
pub struct Frame {
    /// The request.
    pub bytes: Bytes,
    /// Its share of the budget.
    pub charge: OwnedSemaphorePermit,
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
    budget: Arc<Semaphore>,
    bytes_max: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// A reader that charges `budget` (in bytes) and refuses frames above `bytes_max`.
    pub fn new(reader: R, budget: Arc<Semaphore>, bytes_max: usize) -> Self {
        Self {
            reader,
            scratch: BytesMut::new(),
            scratch_bytes: SCRATCH_BYTES,
            budget,
            bytes_max,
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
        let deadline = Instant::now() + Duration::from_millis(FRAME_READ_MS_MAX);
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
        let charge = self.charge(bytes.min(FRAME_STEP_BYTES)).await;
        // The client's time begins when there is room for what it sends.
        let allowed = FRAME_READ_MS_MAX + (bytes / FRAME_BYTES_PER_MS_MIN) as u64;
        let body = timeout(Duration::from_millis(allowed), self.body(bytes, charge));
        body.await.map_err(|_| FrameError::Slow)?
    }

    async fn body(
        &mut self,
        bytes: usize,
        mut charge: OwnedSemaphorePermit,
    ) -> Result<Frame, FrameError> {
        let mut charged = bytes.min(FRAME_STEP_BYTES);
        let mut frame = BytesMut::with_capacity(charged);
        frame.put((&mut self.scratch).take(charged));
        while frame.len() < bytes {
            if frame.len() == charged {
                let step = charged.min(bytes - charged);
                charge.merge(self.charge(step).await);
                frame.reserve(step);
                charged += step;
            }
            let room = charged - frame.len();
            if self.reader.read_buf(&mut (&mut frame).limit(room)).await? == 0 {
                return Err(FrameError::Truncated);
            }
        }
        Ok(Frame {
            bytes: frame.freeze(),
            charge,
        })
    }

    async fn charge(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes).expect("frames are below 2 GiB");
        let charge = self.budget.clone().acquire_many_owned(bytes).await;
        charge.expect("the budget is never closed")
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
