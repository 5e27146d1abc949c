//! The two tasks of a connection: one writes requests, one reads answers.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::{Arc, Weak};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

use super::error::ClientError;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 512 << 20;

/// A request on its way to the socket.
pub(super) struct Outgoing {
    pub(super) chunks: Vec<Bytes>,
    pub(super) correlation_id: i32,
    /// `None`: the broker sends no answer.
    pub(super) answer: Option<Answer>,
}

/// Where an answer goes.
pub(super) type Answer = oneshot::Sender<Result<Bytes, ClientError>>;

/// Who waits for answers, in order; `Err` once the connection is broken.
pub(super) struct Waiting(pub(super) Mutex<Result<VecDeque<(i32, Answer)>, ClientError>>);

impl Waiting {
    pub(super) fn fail(&self, error: ClientError) {
        let mut waiting = self.0.lock();
        if let Ok(queue) = &mut *waiting {
            for (_, answer) in queue.drain(..) {
                drop(answer.send(Err(error.clone())));
            }
            *waiting = Err(error);
        }
    }
}

pub(super) fn lost(address: &str, reason: impl ToString) -> ClientError {
    ClientError::Lost {
        address: address.to_owned(),
        reason: reason.to_string(),
    }
}

/// Writes requests in order until the queue ends.
pub(super) async fn write_requests(
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
    waiting: Arc<Waiting>,
    address: String,
) {
    while let Some(request) = queue.recv().await {
        if let Some(answer) = request.answer {
            match &mut *waiting.0.lock() {
                Ok(waiting) => waiting.push_back((request.correlation_id, answer)),
                Err(error) => drop(answer.send(Err(error.clone()))),
            }
        }
        if let Err(error) = write_vectored(&mut socket, request.chunks).await {
            waiting.fail(lost(&address, error));
            return;
        }
    }
}

async fn write_vectored(socket: &mut OwnedWriteHalf, chunks: Vec<Bytes>) -> std::io::Result<()> {
    let mut chunks = VecDeque::from(chunks);
    while !chunks.is_empty() {
        let slices: Vec<IoSlice<'_>> = chunks
            .iter()
            .take(64)
            .map(|chunk| IoSlice::new(chunk))
            .collect();
        let mut written = socket.write_vectored(&slices).await?;
        if written == 0 {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        while let Some(first) = chunks.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            chunks.pop_front();
        }
    }
    Ok(())
}

/// Hands each answer to the one who waits longest.
pub(super) async fn read_answers(
    mut socket: OwnedReadHalf,
    waiting: Weak<Waiting>,
    address: String,
) {
    loop {
        let answer = read_answer(&mut socket).await;
        let Some(waiting) = waiting.upgrade() else {
            return;
        };
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(error) => return waiting.fail(lost(&address, error)),
        };
        let correlation_id = i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let first = waiting.0.lock().as_mut().ok().and_then(VecDeque::pop_front);
        match first {
            Some((expected, answer)) if expected == correlation_id => {
                drop(answer.send(Ok(bytes)));
            }
            first => {
                let expected = first.map(|(expected, _)| expected);
                let reason = format!("answer {correlation_id} where {expected:?} was due");
                return waiting.fail(ClientError::Malformed { address, reason });
            }
        }
    }
}

async fn read_answer(socket: &mut OwnedReadHalf) -> std::io::Result<Bytes> {
    let length = match socket.read_u32().await {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            return Err(std::io::Error::other("the broker closed it"));
        }
        length => length? as usize,
    };
    if !(4..=ANSWER_BYTES_MAX).contains(&length) {
        return Err(std::io::Error::other(format!(
            "an answer of {length} bytes"
        )));
    }
    let mut bytes = BytesMut::with_capacity(length.min(1 << 20));
    while bytes.len() < length {
        let missing = length - bytes.len();
        bytes.reserve(missing);
        let read = socket.read_buf(&mut (&mut bytes).limit(missing)).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(bytes.freeze())
}
