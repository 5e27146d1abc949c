//! Cuts a connection's bytes into frames.
//!
//! Owned by a connection's reader task. Small frames are slices of a shared
//! buffer; a large frame gets a buffer of exactly its size, so that a small
//! message that is kept never holds more than [`SHARED_BYTES`]. No memory is
//! set aside for bytes a peer only announces, beyond [`TRUST_BYTES`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::wire::{Frame, LENGTH_BYTES, WireError, check_length};

/// Size of the shared buffer.
const SHARED_BYTES: usize = 64 << 10;
/// Frames above this size get their own buffer.
const SMALL_BYTES_MAX: usize = 32 << 10;
/// Announced sizes up to this are allocated at once.
const TRUST_BYTES: usize = 1 << 20;
/// Below this much free space the shared buffer is replaced.
const FREE_BYTES_MIN: usize = 4 << 10;

/// Reads frames from one socket.
pub(crate) struct FrameReader<R> {
    socket: R,
    shared: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(socket: R) -> FrameReader<R> {
        FrameReader {
            socket,
            shared: BytesMut::new(),
        }
    }

    /// The next frame, `None` at an orderly end. Calls `heard` whenever bytes arrive.
    pub(crate) async fn next(&mut self, heard: &impl Fn()) -> Result<Option<Frame>, WireError> {
        loop {
            if self.shared.len() >= LENGTH_BYTES {
                let length = check_length((&self.shared[..]).get_u32() as usize)?;
                if self.shared.len() >= LENGTH_BYTES + length {
                    self.shared.advance(LENGTH_BYTES);
                    let frame = self.shared.split_to(length).freeze();
                    // A large frame that happens to be complete still pins only the shared buffer.
                    return Frame::decode(frame).map(Some);
                }
                if length > SMALL_BYTES_MAX {
                    self.shared.advance(LENGTH_BYTES);
                    return Frame::decode(self.read_large(length, heard).await?).map(Some);
                }
            }
            if self.shared.capacity() - self.shared.len() < FREE_BYTES_MIN {
                self.shared.reserve(SHARED_BYTES);
            }
            if self.socket.read_buf(&mut self.shared).await? == 0 {
                return match self.shared.is_empty() {
                    true => Ok(None),
                    false => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                };
            }
            heard();
        }
    }

    async fn read_large(&mut self, length: usize, heard: &impl Fn()) -> Result<Bytes, WireError> {
        let mut frame = BytesMut::with_capacity(length.min(TRUST_BYTES.max(self.shared.len())));
        frame.extend_from_slice(&self.shared);
        self.shared.clear();
        while frame.len() < length {
            if frame.len() == frame.capacity() {
                let grown = (frame.len() * 2).min(length);
                frame.reserve(grown - frame.len());
            }
            let free = (frame.capacity() - frame.len()).min(length - frame.len());
            let read = self.socket.read_buf(&mut (&mut frame).limit(free)).await?;
            if read == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            heard();
        }
        Ok(frame.freeze())
    }
}
