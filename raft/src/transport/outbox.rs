//! What waits to be written to one connection, and the task that writes it.
//!
//! Anybody pushes; one writer task takes batches, so frames leave in the order
//! of the pushes, except that control frames overtake bulk frames. Bounded in
//! bytes; bytes count until the socket has taken them.

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

use super::net::OwnedWriteHalf;
use super::wire::{FRAME_BYTES_MAX, Frame, Heartbeat};
use super::{TransportError, lock};

/// Bytes that may wait for one connection.
pub(crate) const OUTBOX_BYTES_MAX: usize = 64 << 20;
/// Control frames may exceed the bound by this much, so bulk can't shut them out.
const CONTROL_BYTES_EXTRA: usize = 8 << 20;
/// A batch is closed after so many bytes, so control frames wait for no more.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 1024;
/// Smaller pieces are copied into one buffer: cheaper than a slot of `writev`.
const COPY_BYTES_MAX: usize = 512;
const SLICES: usize = 128;

const _: () = assert!(FRAME_BYTES_MAX <= OUTBOX_BYTES_MAX);

#[derive(Default)]
struct Queues {
    heartbeat: Option<Heartbeat>,
    control: VecDeque<Frame>,
    bulk: VecDeque<Frame>,
    bytes: usize,
    writer_waits: bool,
    closed: bool,
}

/// The queues of one connection.
#[derive(Default)]
pub(crate) struct Outbox {
    queues: Mutex<Queues>,
    wake: Notify,
    space: Notify,
    closed: AtomicBool,
    closing: Notify,
}

impl Outbox {
    /// Queues a frame; refuses when the connection is closed or the bound reached.
    pub(crate) fn push(&self, frame: Frame, control: bool) -> Result<(), TransportError> {
        let bytes = frame.wire_bytes();
        if bytes > FRAME_BYTES_MAX {
            return Err(TransportError::Full);
        }
        let mut queues = lock(&self.queues);
        if queues.closed {
            return Err(TransportError::Unreachable);
        }
        let bound = OUTBOX_BYTES_MAX + if control { CONTROL_BYTES_EXTRA } else { 0 };
        if queues.bytes > 0 && queues.bytes + bytes > bound {
            return Err(TransportError::Full);
        }
        queues.bytes += bytes;
        match control {
            true => queues.control.push_back(frame),
            false => queues.bulk.push_back(frame),
        }
        self.wake_writer(&mut queues);
        Ok(())
    }

    /// Sends a heartbeat before anything else; an unsent older one is replaced.
    pub(crate) fn beat(&self, heartbeat: Heartbeat) {
        let mut queues = lock(&self.queues);
        if !queues.closed {
            queues.heartbeat = Some(heartbeat);
            self.wake_writer(&mut queues);
        }
    }

    fn wake_writer(&self, queues: &mut Queues) {
        if std::mem::take(&mut queues.writer_waits) {
            self.wake.notify_one();
        }
    }

    /// Waits until `bytes` more would fit, or the connection is closed.
    pub(crate) async fn room_for(&self, bytes: usize) {
        loop {
            let mut space = std::pin::pin!(self.space.notified());
            space.as_mut().enable();
            {
                let queues = lock(&self.queues);
                let fits = queues.bytes == 0 || queues.bytes + bytes <= OUTBOX_BYTES_MAX;
                if queues.closed || fits {
                    return;
                }
            }
            space.await;
        }
    }

    /// Bytes queued that the socket has not taken.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.queues).bytes
    }

    /// Whether everything queued was handed to the socket.
    pub(crate) fn is_drained(&self) -> bool {
        let queues = lock(&self.queues);
        queues.closed || queues.bytes == 0
    }

    /// Ends the connection: its tasks notice, what is queued is dropped.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut queues = lock(&self.queues);
            let dropped = std::mem::take(&mut *queues);
            queues.closed = true;
            dropped
        };
        drop(dropped);
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        self.space.notify_waiters();
    }

    /// Resolves once [`Outbox::close`] was called.
    pub(crate) async fn closed(&self) {
        let mut closing = std::pin::pin!(self.closing.notified());
        closing.as_mut().enable();
        if !self.closed.load(Ordering::Acquire) {
            closing.await;
        }
    }

    /// Moves what is queued, up to a batch, into `batch`; waits for the first frame.
    async fn take_batch(&self, batch: &mut Vec<Frame>) -> usize {
        loop {
            {
                let mut queues = lock(&self.queues);
                let mut bytes = 0;
                if let Some(heartbeat) = queues.heartbeat.take() {
                    batch.push(Frame::heartbeat(heartbeat));
                }
                while bytes < BATCH_BYTES && batch.len() < BATCH_FRAMES {
                    let next = match queues.control.pop_front() {
                        Some(frame) => Some(frame),
                        None => queues.bulk.pop_front(),
                    };
                    let Some(frame) = next else { break };
                    bytes += frame.wire_bytes();
                    batch.push(frame);
                }
                if !batch.is_empty() {
                    return bytes;
                }
                queues.writer_waits = true;
            }
            self.wake.notified().await;
        }
    }

    fn written(&self, bytes: usize) {
        {
            let mut queues = lock(&self.queues);
            queues.bytes = queues.bytes.saturating_sub(bytes);
        }
        self.space.notify_waiters();
    }

    /// The writer task: runs until the socket fails.
    pub(crate) async fn write_to(&self, mut socket: OwnedWriteHalf) -> io::Error {
        let mut batch = Vec::new();
        let mut heads = BytesMut::new();
        let mut pieces = VecDeque::new();
        loop {
            let bytes = self.take_batch(&mut batch).await;
            for frame in batch.drain(..) {
                gather(frame, &mut heads, &mut pieces);
            }
            if !heads.is_empty() {
                pieces.push_back(heads.split().freeze());
            }
            if let Err(error) = write_pieces(&mut socket, &mut pieces).await {
                return error;
            }
            self.written(bytes);
        }
    }
}

/// Appends a frame to the pieces to be written; large ones by reference.
fn gather(frame: Frame, heads: &mut BytesMut, pieces: &mut VecDeque<Bytes>) {
    frame.put_head(heads);
    for piece in std::iter::once(frame.message.header).chain(frame.message.payload) {
        if piece.len() <= COPY_BYTES_MAX {
            heads.extend_from_slice(&piece);
        } else {
            pieces.push_back(heads.split().freeze());
            pieces.push_back(piece);
        }
    }
}

async fn write_pieces(socket: &mut OwnedWriteHalf, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !pieces.is_empty() {
        let mut slices = [io::IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slot, piece) in slices.iter_mut().zip(pieces.iter()) {
            *slot = io::IoSlice::new(piece);
            used += 1;
        }
        let mut written = socket.write_vectored(&slices[..used]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        while let Some(piece) = pieces.front_mut() {
            if piece.len() > written {
                bytes::Buf::advance(piece, written);
                break;
            }
            written -= piece.len();
            pieces.pop_front();
        }
    }
    Ok(())
}
