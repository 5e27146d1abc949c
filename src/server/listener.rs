//! The listener for Kafka clients, and the end of all their connections.
//!
//! One task accepts and owns the tasks of all connections: when it ends, they end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tracing::{debug, error, info, warn};

use super::budget::Budget;
use super::connection::{Connection, serve};
use super::places::Places;
use super::{Dispatch, Options};
use crate::limits::{ACCEPT_RETRY_MS, DRAIN_MS_MAX};

/// Why the listener cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for clients on {address}: {source}")]
pub struct BindError {
    /// Where it was to listen.
    pub address: SocketAddr,
    /// What the system says, such as that the port is in use.
    pub source: io::Error,
}

/// Opens the listening socket. Clients may connect from now on; they are
/// served once [`Server::start`] has it.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { address, source })
}

/// A listener that is being served. Dropping it cuts all connections;
/// [`Server::stop`] lets their requests complete first.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
    budget: Budget,
}

impl Server {
    /// Begins to serve what connects to `listener`.
    pub fn start(
        listener: TcpListener,
        dispatch: Arc<dyn Dispatch>,
        options: Options,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let budget = Budget::of(options.in_flight_bytes_max.max(options.request_bytes_max));
        let shared = budget.clone();
        let accepting = tokio::spawn(accept(listener, dispatch, options, shared, stopped));
        info!(%address, "listening for clients");
        Ok(Self {
            address,
            stop,
            accepting,
            budget,
        })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its requests share.
    pub fn budget(&self) -> Budget {
        self.budget.clone()
    }

    /// Accepts and reads no more, completes and answers what has been read, for
    /// a bounded time, and closes all connections.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.accepting).await {
            error!(%error, "the client listener failed");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    dispatch: Arc<dyn Dispatch>,
    options: Options,
    budget: Budget,
    mut stop: watch::Receiver<bool>,
) {
    let places = Places::new(options.connections_per_address_max);
    let mut connections = JoinSet::new();
    let mut id = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                log_failure(ended);
                continue;
            }
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept a client's connection");
                tokio::time::sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                continue;
            }
        };
        if connections.len() >= options.connections_max {
            warn!(%peer, connections = connections.len(), "refusing a client: max.connections is reached");
            continue;
        }
        let Some(place) = places.take(peer.ip()) else {
            warn!(%peer, "refusing a client: its address has max.connections.per.ip");
            continue;
        };
        id += 1;
        let connection = Arc::new(Connection::new(id, peer));
        let (dispatch, budget, stop) = (dispatch.clone(), budget.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            match split(stream) {
                Ok(halves) => serve(halves, connection, dispatch, options, budget, stop).await,
                Err(error) => debug!(%peer, %error, "a client's connection failed"),
            }
        });
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            log_failure(ended);
        }
    };
    if tokio::time::timeout(Duration::from_millis(DRAIN_MS_MAX), drained)
        .await
        .is_err()
    {
        warn!(
            connections = connections.len(),
            "cutting connections whose requests do not complete"
        );
        connections.shutdown().await;
    }
}

fn split(
    stream: TcpStream,
) -> io::Result<(
    tokio::net::tcp::OwnedReadHalf,
    tokio::net::tcp::OwnedWriteHalf,
)> {
    stream.set_nodelay(true)?;
    Ok(stream.into_split())
}

/// A panic in a handler ends its connection only.
fn log_failure(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a connection's task failed");
    }
}
