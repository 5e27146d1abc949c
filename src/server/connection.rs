//! One client's connection: requests are read ahead, replies leave in order.
//!
//! Owned by one task, which runs two loops side by side. One reads frames into
//! a bounded queue; the other begins requests, awaits them in order and writes
//! the replies. Consecutive Produce requests are in flight together, since
//! their order is fixed when they begin; any other request begins only when
//! all before it are complete, as at Kafka.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tracing::{debug, warn};

use super::budget::{Budget, Charge};
use super::frame::{FrameError, FrameReader, LENGTH_BYTES};
use super::outgoing::Outgoing;
use super::{CloseConnection, Dispatch, Options, Outcome, Pending, Request, Served};
use crate::limits::{
    CONNECTION_REPLY_BYTES_MAX, CONNECTION_REQUESTS_BEGUN_MAX, CONNECTION_REQUESTS_QUEUED_MAX,
    WRITE_STALLED_MS_MAX,
};
use crate::protocol::header;

/// What is known of a client's connection; shared with the handlers of its requests.
#[derive(Debug)]
pub struct Connection {
    /// Unique among the connections of this process.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    client_id: OnceLock<String>,
    software: OnceLock<ClientSoftware>,
    unanswered: AtomicUsize,
}

/// What a client said of itself in ApiVersions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSoftware {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(id: u64, peer: SocketAddr) -> Self {
        Self {
            id,
            peer,
            client_id: OnceLock::new(),
            software: OnceLock::new(),
            unanswered: AtomicUsize::new(0),
        }
    }

    /// The client id of the first request that had one, else empty.
    pub fn client_id(&self) -> &str {
        self.client_id.get().map_or("", String::as_str)
    }

    /// What the client said of itself, if it did.
    pub fn software(&self) -> Option<&ClientSoftware> {
        self.software.get()
    }

    /// Keeps what the client says of itself; the first word stands.
    pub fn introduce(&self, software: ClientSoftware) {
        self.software.get_or_init(|| software);
    }
}

/// A request that has been read.
struct Received {
    request: Request,
    /// Its frame, with the length.
    bytes: usize,
    read_at: Instant,
    charge: Charge,
}

/// A request that has begun.
struct Begun {
    pending: Pending,
    is_produce: bool,
    api_key: i16,
    request_bytes: usize,
    read_at: Instant,
    /// Held until the request is complete.
    _charge: Charge,
}

/// Serves one client until it leaves, errs, or `stop` turns true; then what has
/// been read is completed and answered.
pub(super) async fn serve<R, W>(
    (reader, writer): (R, W),
    connection: Arc<Connection>,
    dispatch: Arc<dyn Dispatch>,
    options: Options,
    budget: Budget,
    mut stop: watch::Receiver<bool>,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (queue, received) = mpsc::channel(CONNECTION_REQUESTS_QUEUED_MAX);
    let frames = FrameReader::new(reader, budget, options.request_bytes_max, options.pace);
    let reading = {
        let connection = connection.clone();
        async move {
            tokio::select! {
                end = read(frames, &connection, queue, options.idle) => log_end(&connection, &end),
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    };
    let mut worker = Worker {
        connection: connection.clone(),
        dispatch,
        writer,
        received,
        received_all: false,
        parked: None,
        begun: VecDeque::new(),
        outgoing: Outgoing::default(),
    };
    let end = {
        let mut working = pin!(worker.run());
        tokio::select! {
            end = &mut working => end,
            () = reading => working.await,
        }
    };
    match end {
        Ok(()) => {}
        Err(End::Refused(close)) => {
            warn!(peer = %connection.peer, reason = close.reason, "closing a client's connection");
        }
        Err(End::Write(error)) => {
            debug!(peer = %connection.peer, %error, "a client's connection failed")
        }
    }
    if let Err(error) = worker.writer.shutdown().await {
        debug!(peer = %connection.peer, %error, "a client's connection was gone before its end");
    }
}

/// Why no more is read from a client.
enum ReadEnd {
    Frame(FrameError),
    Header(header::HeaderError),
    /// The other loop has ended.
    Unheard,
}

fn log_end(connection: &Connection, end: &ReadEnd) {
    let peer = connection.peer;
    match end {
        ReadEnd::Unheard | ReadEnd::Frame(FrameError::Closed) => {}
        ReadEnd::Frame(error @ (FrameError::Io(_) | FrameError::Idle)) => {
            debug!(%peer, reason = %error, "closing a client's connection");
        }
        ReadEnd::Frame(error) => warn!(%peer, reason = %error, "closing a client's connection"),
        ReadEnd::Header(error) => warn!(%peer, reason = %error, "closing a client's connection"),
    }
}

async fn read<R: AsyncRead + Unpin>(
    mut frames: FrameReader<R>,
    connection: &Connection,
    queue: mpsc::Sender<Received>,
    idle: Duration,
) -> ReadEnd {
    loop {
        let frame = match frames.next(idle).await {
            Ok(frame) => frame,
            // Waiting for a reply is not idleness.
            Err(FrameError::Idle) if connection.unanswered.load(Ordering::Relaxed) > 0 => continue,
            Err(error) => return ReadEnd::Frame(error),
        };
        let request = match header::decode(&frame.bytes) {
            Ok(request) => request,
            Err(error) => return ReadEnd::Header(error),
        };
        if let Some(client_id) = &request.header.client_id {
            connection.client_id.get_or_init(|| client_id.to_string());
        }
        connection.unanswered.fetch_add(1, Ordering::Relaxed);
        if queue
            .send(Received {
                request,
                bytes: LENGTH_BYTES + frame.bytes.len(),
                read_at: Instant::now(),
                charge: frame.charge,
            })
            .await
            .is_err()
        {
            return ReadEnd::Unheard;
        }
    }
}

/// Why a connection ends before its client has left.
enum End {
    Refused(CloseConnection),
    Write(io::Error),
}

/// Begins requests, awaits them in order, writes the replies.
struct Worker<W> {
    connection: Arc<Connection>,
    dispatch: Arc<dyn Dispatch>,
    writer: W,
    received: mpsc::Receiver<Received>,
    received_all: bool,
    /// Read, and waiting for those before it to be complete.
    parked: Option<Received>,
    /// In the order of their replies.
    begun: VecDeque<Begun>,
    outgoing: Outgoing,
}

enum Event {
    Completed(Outcome),
    Written(io::Result<usize>),
    Received(Option<Received>),
}

impl<W: AsyncWrite + Unpin> Worker<W> {
    async fn run(&mut self) -> Result<(), End> {
        loop {
            self.begin_parked();
            if self.received_all
                && self.parked.is_none()
                && self.begun.is_empty()
                && self.outgoing.is_empty()
            {
                return Ok(());
            }
            match self.event().await {
                Event::Completed(outcome) => {
                    self.connection.unanswered.fetch_sub(1, Ordering::Relaxed);
                    let waiting = self.outgoing.bytes();
                    let close = match outcome {
                        Ok(Some(response)) => {
                            self.outgoing.push(response);
                            None
                        }
                        Ok(None) => None,
                        Err(close) => Some(close),
                    };
                    if let Some(begun) = self.begun.pop_front() {
                        self.dispatch.served(&Served {
                            api_key: begun.api_key,
                            request_bytes: begun.request_bytes,
                            response_bytes: self.outgoing.bytes() - waiting,
                            took: begun.read_at.elapsed(),
                        });
                    }
                    if let Some(close) = close {
                        self.flush().await.map_err(End::Write)?;
                        return Err(End::Refused(close));
                    }
                }
                Event::Written(written) => {
                    self.outgoing.advance(written.map_err(End::Write)?);
                }
                Event::Received(Some(received)) => self.parked = Some(received),
                Event::Received(None) => self.received_all = true,
            }
        }
    }

    /// The replies that are ready are gathered first, so that one write takes them all.
    async fn event(&mut self) -> Event {
        let begun = &mut self.begun;
        let may_receive = self.parked.is_none()
            && !self.received_all
            && self.outgoing.bytes() <= CONNECTION_REPLY_BYTES_MAX;
        tokio::select! {
            biased;
            outcome = poll_fn(|context| begun[0].pending.as_mut().poll(context)), if !begun.is_empty() =>
                Event::Completed(outcome),
            written = write(&mut self.writer, &self.outgoing), if !self.outgoing.is_empty() =>
                Event::Written(written),
            received = self.received.recv(), if may_receive => Event::Received(received),
        }
    }

    fn begin_parked(&mut self) {
        let Some(received) = self.parked.take_if(|received| {
            let is_produce = received.request.header.api_key == ApiKey::Produce as i16;
            let produces = is_produce && self.begun.iter().all(|begun| begun.is_produce);
            self.begun.is_empty() || (produces && self.begun.len() < CONNECTION_REQUESTS_BEGUN_MAX)
        }) else {
            return;
        };
        let Received {
            request,
            bytes: request_bytes,
            read_at,
            charge,
        } = received;
        let api_key = request.header.api_key;
        let is_produce = api_key == ApiKey::Produce as i16;
        let pending = self.dispatch.dispatch(&self.connection, request);
        self.begun.push_back(Begun {
            pending,
            is_produce,
            api_key,
            request_bytes,
            read_at,
            _charge: charge,
        });
    }

    async fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            let written = write(&mut self.writer, &self.outgoing).await?;
            self.outgoing.advance(written);
        }
        Ok(())
    }
}

/// Writes some of what waits; an error when the client reads nothing for too long.
async fn write<W: AsyncWrite + Unpin>(writer: &mut W, outgoing: &Outgoing) -> io::Result<usize> {
    let stalled = Duration::from_millis(WRITE_STALLED_MS_MAX);
    match tokio::time::timeout(stalled, outgoing.write_to(writer)).await {
        Ok(written) => written,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client reads nothing",
        )),
    }
}
