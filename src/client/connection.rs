//! One connection to a broker: requests are pipelined, answers come in order.
//!
//! Owned by two tasks. The writer takes requests from a bounded queue, notes
//! who waits and writes; the reader hands each answer to the one who waits
//! longest. When either fails, everybody who waits learns it at once.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{
    Decodable, Encodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer,
};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::error::ClientError;
use super::socket::{Outgoing, Waiting, lost, read_answers, write_requests};

/// Requests that wait for the socket.
const REQUESTS_QUEUED_MAX: usize = 64;
/// Newest versions spoken here, where they are lower than the codec's: newer
/// ones name topics by id, or several groups or keys in one request, or are for
/// the second version of transactions, in which partitions are not added beforehand.
const VERSIONS_MAX: &[(i16, i16)] = &[
    (0, 11),
    (1, 12),
    (8, 8),
    (9, 7),
    (10, 3),
    (22, 4),
    (24, 3),
    (26, 4),
];

/// A connection to one broker; clones share it.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    address: String,
    client_id: StrBytes,
    correlation_id: AtomicI32,
    outgoing: mpsc::Sender<Outgoing>,
    waiting: Arc<Waiting>,
    versions: HashMap<i16, (i16, i16)>,
}

/// An answer that is on its way.
pub struct PendingReply<R> {
    answer: oneshot::Receiver<Result<Bytes, ClientError>>,
    /// Held so that the connection stays open until the answer is here.
    connection: Connection,
    version: i16,
    kind: std::marker::PhantomData<R>,
}

impl<R: Decodable + HeaderVersion> PendingReply<R> {
    /// Waits for it.
    pub async fn answer(self, timeout: Duration) -> Result<R, ClientError> {
        let address = self.connection.address();
        let answer = tokio::time::timeout(timeout, self.answer).await;
        let answer = answer.map_err(|_| {
            // Later answers would queue behind this one: start over.
            let error = ClientError::TimedOut(address.to_owned());
            self.connection.0.waiting.fail(error.clone());
            error
        })?;
        let mut bytes = answer.unwrap_or_else(|_| Err(self.connection.0.broken()))?;
        decode(&mut bytes, self.version).map_err(|reason| ClientError::Malformed {
            address: address.to_owned(),
            reason,
        })
    }
}

fn decode<R: Decodable + HeaderVersion>(bytes: &mut Bytes, version: i16) -> Result<R, String> {
    let explain = |error: anyhow::Error| format!("{error:#}");
    ResponseHeader::decode(bytes, R::header_version(version)).map_err(explain)?;
    R::decode(bytes, version).map_err(explain)
}

impl Connection {
    /// Connects to `HOST:PORT` and asks for the broker's versions.
    pub async fn connect(
        address: &str,
        client_id: &str,
        timeout: Duration,
    ) -> Result<Connection, ClientError> {
        match tokio::time::timeout(timeout, Self::establish(address, client_id, timeout)).await {
            Ok(connected) => connected,
            Err(_) => Err(unreachable(address, "no answer in time")),
        }
    }

    async fn establish(
        address: &str,
        client_id: &str,
        timeout: Duration,
    ) -> Result<Connection, ClientError> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address)
            .await
            .map_err(|error| unreachable(address, error))?
            .collect();
        let socket = TcpStream::connect(addresses.as_slice())
            .await
            .map_err(|error| unreachable(address, error))?;
        socket
            .set_nodelay(true)
            .map_err(|error| unreachable(address, error))?;
        let (read, write) = socket.into_split();
        let (outgoing, queue) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let waiting = Arc::new(Waiting(Mutex::new(Ok(VecDeque::new()))));
        tokio::spawn(write_requests(
            write,
            queue,
            waiting.clone(),
            address.to_owned(),
        ));
        tokio::spawn(read_answers(
            read,
            Arc::downgrade(&waiting),
            address.to_owned(),
        ));
        let mut inner = Inner {
            address: address.to_owned(),
            client_id: StrBytes::from_string(client_id.to_owned()),
            correlation_id: AtomicI32::new(0),
            outgoing,
            waiting,
            versions: HashMap::new(),
        };
        inner.versions = inner.ask_versions(timeout).await?;
        Ok(Connection(Arc::new(inner)))
    }

    /// Where it leads to.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Whether it has broken.
    pub fn is_lost(&self) -> bool {
        self.0.waiting.0.lock().is_err()
    }

    /// The newest version of a request that both sides speak.
    pub fn version<R: Request>(&self) -> Result<i16, ClientError> {
        let cap = VERSIONS_MAX.iter().find(|(key, _)| *key == R::KEY);
        let max = cap.map_or(R::VERSIONS.max, |(_, max)| (*max).min(R::VERSIONS.max));
        let (broker_min, broker_max) = self
            .0
            .versions
            .get(&R::KEY)
            .copied()
            .ok_or(ClientError::Unsupported(R::KEY))?;
        let version = max.min(broker_max);
        match version >= broker_min.max(R::VERSIONS.min) {
            true => Ok(version),
            false => Err(ClientError::Unsupported(R::KEY)),
        }
    }

    /// Sends a request and waits for its answer.
    pub async fn call<R: Request>(
        &self,
        request: &R,
        timeout: Duration,
    ) -> Result<R::Response, ClientError> {
        self.send(request).await?.answer(timeout).await
    }

    /// Queues a request; answers may be awaited later and in any order.
    pub async fn send<R: Request>(
        &self,
        request: &R,
    ) -> Result<PendingReply<R::Response>, ClientError> {
        let version = self.version::<R>()?;
        let correlation_id = self.next_correlation_id();
        let frame = self.0.frame(request, version, correlation_id)?;
        let answer = self.0.enqueue(vec![frame], correlation_id).await?;
        Ok(self.pending(answer, version))
    }

    /// The correlation id for a request that is encoded elsewhere.
    pub(super) fn next_correlation_id(&self) -> i32 {
        self.0.correlation_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The client id that such a request must carry.
    pub(super) fn client_id(&self) -> &str {
        self.0.client_id.as_str()
    }

    /// Queues a request that is encoded already, without its length prefix.
    pub(super) async fn send_encoded<R: Decodable + HeaderVersion>(
        &self,
        mut chunks: Vec<Bytes>,
        version: i16,
        correlation_id: i32,
    ) -> Result<PendingReply<R>, ClientError> {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        chunks.insert(0, Bytes::copy_from_slice(&(bytes as u32).to_be_bytes()));
        let answer = self.0.enqueue(chunks, correlation_id).await?;
        Ok(self.pending(answer, version))
    }

    /// The same for a request that gets no answer (`acks=0`).
    pub(super) async fn send_unanswered(&self, mut chunks: Vec<Bytes>) -> Result<(), ClientError> {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        chunks.insert(0, Bytes::copy_from_slice(&(bytes as u32).to_be_bytes()));
        let outgoing = Outgoing {
            chunks,
            correlation_id: 0,
            answer: None,
        };
        self.0
            .outgoing
            .send(outgoing)
            .await
            .map_err(|_| self.0.broken())
    }

    fn pending<R>(
        &self,
        answer: oneshot::Receiver<Result<Bytes, ClientError>>,
        version: i16,
    ) -> PendingReply<R> {
        let connection = self.clone();
        PendingReply {
            answer,
            connection,
            version,
            kind: std::marker::PhantomData,
        }
    }
}

impl Inner {
    fn frame<R: Encodable + Request>(
        &self,
        request: &R,
        version: i16,
        correlation_id: i32,
    ) -> Result<Bytes, ClientError> {
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(correlation_id)
            .with_client_id(Some(self.client_id.clone()));
        let mut frame = BytesMut::new();
        frame.put_u32(0);
        encode_request_header_into_buffer(&mut frame, &header)
            .and_then(|()| request.encode(&mut frame, version))
            .map_err(|error| ClientError::Malformed {
                address: self.address.clone(),
                reason: format!("request can't be encoded: {error:#}"),
            })?;
        let bytes = frame.len() as u32 - 4;
        frame[..4].copy_from_slice(&bytes.to_be_bytes());
        Ok(frame.freeze())
    }

    async fn enqueue(
        &self,
        chunks: Vec<Bytes>,
        correlation_id: i32,
    ) -> Result<oneshot::Receiver<Result<Bytes, ClientError>>, ClientError> {
        let (answer, receiver) = oneshot::channel();
        let outgoing = Outgoing {
            chunks,
            correlation_id,
            answer: Some(answer),
        };
        self.outgoing
            .send(outgoing)
            .await
            .map_err(|_| self.broken())?;
        Ok(receiver)
    }

    fn broken(&self) -> ClientError {
        match &*self.waiting.0.lock() {
            Err(error) => error.clone(),
            Ok(_) => lost(&self.address, "closed"),
        }
    }

    /// Asks with version 3, and with version 0 a broker that is older.
    async fn ask_versions(
        &self,
        timeout: Duration,
    ) -> Result<HashMap<i16, (i16, i16)>, ClientError> {
        for version in [3, 0] {
            let request = ApiVersionsRequest::default()
                .with_client_software_name(StrBytes::from_static_str("drave"))
                .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
            let correlation_id = self.correlation_id.fetch_add(1, Ordering::Relaxed);
            let frame = self.frame(&request, version, correlation_id)?;
            let answer = self.enqueue(vec![frame], correlation_id).await?;
            let answer = tokio::time::timeout(timeout, answer).await;
            let mut bytes = match answer {
                Err(_) => return Err(unreachable(&self.address, "no answer in time")),
                Ok(answer) => answer.unwrap_or_else(|_| Err(self.broken()))?,
            };
            // A broker that does not know the version answers in version 0.
            let refused = bytes.len() >= 6 && bytes[4..6] == 35i16.to_be_bytes();
            let decoded =
                decode::<ApiVersionsResponse>(&mut bytes, if refused { 0 } else { version });
            let answer = decoded.map_err(|reason| ClientError::Malformed {
                address: self.address.clone(),
                reason,
            })?;
            if answer.error_code == 0 {
                let keys = answer.api_keys.iter();
                return Ok(keys
                    .map(|key| (key.api_key, (key.min_version, key.max_version)))
                    .collect());
            }
        }
        Err(ClientError::Unsupported(ApiVersionsRequest::KEY))
    }
}

fn unreachable(address: &str, reason: impl ToString) -> ClientError {
    ClientError::Unreachable {
        address: address.to_owned(),
        reason: reason.to_string(),
    }
}
