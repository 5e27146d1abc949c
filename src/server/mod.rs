//! Client sockets: the listener, and connections that read requests ahead and
//! reply in order.
//!
//! What a request means is behind [`Dispatch`]; nothing here knows the broker.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::protocol::StrBytes;

use crate::config::Config;

pub mod budget;
pub mod connection;
pub mod frame;
pub mod listener;
mod outgoing;
pub mod pace;
mod places;

pub use budget::Budget;
pub use connection::{ClientSoftware, Connection};
pub use listener::{BindError, Server, bind};
pub use pace::Pace;

/// The fields of a request's header that the broker acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader {
    /// Which API.
    pub api_key: i16,
    /// Which version of it.
    pub api_version: i16,
    /// Sent back with the reply.
    pub correlation_id: i32,
    /// What the client calls itself.
    pub client_id: Option<StrBytes>,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its header.
    pub header: RequestHeader,
    /// Its body: a slice of the frame, uncopied.
    pub body: Bytes,
}

/// One reply: everything that follows the four-byte length (header with the
/// correlation id, body), in chunks.
#[derive(Debug, Clone, Default)]
pub struct Response {
    /// Written one after the other.
    pub chunks: Vec<Bytes>,
}

/// The connection cannot go on; it is closed with one log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseConnection {
    /// Why, for the log.
    pub reason: String,
}

impl CloseConnection {
    /// For the reason given.
    pub fn because(reason: impl fmt::Display) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// What a request comes to: a reply, no reply (acks=0), or the connection's end.
pub type Outcome = Result<Option<Response>, CloseConnection>;

/// A request under way.
pub type Pending = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What requests mean.
pub trait Dispatch: Send + Sync + 'static {
    /// Begins a request. Everything that fixes the order of appends happens
    /// before this returns.
    fn dispatch(&self, connection: &Arc<Connection>, request: Request) -> Pending;

    /// Hears of every request that is complete. Nobody needs to listen.
    fn served(&self, _served: &Served) {}
}

/// What a connection measured of a request that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Which API.
    pub api_key: i16,
    /// Bytes of the request, with its length.
    pub request_bytes: usize,
    /// Bytes of the reply, with its length; 0 if there is none.
    pub response_bytes: usize,
    /// From the request read to its reply ready to be sent.
    pub took: Duration,
}

/// What an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The largest request frame.
    pub request_bytes_max: usize,
    /// Bytes of all requests that are being read or not yet answered.
    pub in_flight_bytes_max: usize,
    /// Connections at the same time.
    pub connections_max: usize,
    /// Connections of one client address at the same time.
    pub connections_per_address_max: usize,
    /// A connection is closed after so long without a request.
    pub idle: Duration,
    /// How slowly a request may arrive.
    pub pace: Pace,
}

impl Options {
    /// As configured.
    pub fn of(config: &Config) -> Self {
        Self {
            request_bytes_max: config.socket_request_max_bytes.min(i32::MAX as u32) as usize,
            in_flight_bytes_max: usize::try_from(config.request_bytes_in_flight_max)
                .unwrap_or(usize::MAX)
                .min(tokio::sync::Semaphore::MAX_PERMITS),
            connections_max: config.max_connections as usize,
            connections_per_address_max: config.max_connections_per_ip as usize,
            idle: Duration::from_millis(config.connections_max_idle_ms),
            pace: Pace::default(),
        }
    }
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
