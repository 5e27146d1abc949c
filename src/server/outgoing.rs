//! Replies on their way out: a queue of chunks, written without copying.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Response;
use crate::limits::WRITE_CHUNKS_MAX;

/// Chunks that wait for a client's socket.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Outgoing {
    /// Appends a reply and, before it, its length.
    pub(super) fn push(&mut self, response: Response) {
        let bytes: usize = response.chunks.iter().map(Bytes::len).sum();
        let length = i32::try_from(bytes).expect("a reply is below 2 GiB");
        self.chunks
            .push_back(Bytes::copy_from_slice(&length.to_be_bytes()));
        self.chunks.extend(
            response
                .chunks
                .into_iter()
                .filter(|chunk| !chunk.is_empty()),
        );
        self.bytes += 4 + bytes;
    }

    /// Bytes waiting.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes some of what waits; the caller passes the result to [`Self::advance`].
    pub(super) async fn write_to<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
    ) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); WRITE_CHUNKS_MAX];
        let mut count = 0;
        for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
            *slice = IoSlice::new(chunk);
            count += 1;
        }
        match writer.write_vectored(&slices[..count]).await {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            result => result,
        }
    }

    /// Drops what has been written.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while written > 0 {
            let front = self
                .chunks
                .front_mut()
                .expect("no more is written than waits");
            let taken = written.min(front.len());
            front.advance(taken);
            written -= taken;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}
