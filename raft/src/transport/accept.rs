//! Accepts connections of peers and runs them.
//!
//! One task, which owns the tasks of all accepted connections. Nothing but a
//! card is read from a stranger, and only so many strangers may be waiting.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::dial::HANDSHAKE_TIMEOUT;
use super::handshake::{Card, HandshakeError, Identity, welcome};
use super::net::{TcpListener, TcpStream};
use super::{Shared, connection, lock};

/// Connections that may be in their handshake at once.
const STRANGERS_MAX: usize = 256;
/// Brokers that nobody configured and that may introduce themselves.
const PEERS_MAX: usize = 4096;
/// The same fault of the same host is logged again only after this time.
const LOG_AGAIN: Duration = Duration::from_secs(60);
const LOGGED_MAX: usize = 1024;

/// Faults logged lately, by host and reason.
type Logged = Mutex<HashMap<(IpAddr, String), Instant>>;

/// The acceptor's task.
pub(crate) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let logged = Arc::new(Logged::default());
    loop {
        let permit = strangers
            .clone()
            .acquire_owned()
            .await
            .expect("never closed");
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "peer connection can't be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, logged) = (shared.clone(), logged.clone());
        connections.spawn(async move {
            match shake(&shared, stream).await {
                Ok((stream, card)) => {
                    drop(permit);
                    admit(&shared, stream, card).await;
                }
                Err((card, error)) => log_fault(&logged, address, card, &error),
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

type Fault = (Option<Card>, HandshakeError);

async fn shake(shared: &Shared, mut stream: TcpStream) -> Result<(TcpStream, Card), Fault> {
    stream
        .set_nodelay(true)
        .map_err(|error| (None, error.into()))?;
    let taken = |identity: Identity| {
        let dead_after_ms = shared.config.dead_after.as_millis() as u64;
        let peer = shared.peer(identity.replica.broker);
        peer.is_some_and(|peer| peer.is_taken(identity, shared.now_ms(), dead_after_ms))
    };
    let greeting = welcome(&mut stream, shared.card(0), taken);
    let card = match timeout(HANDSHAKE_TIMEOUT, greeting).await {
        Ok(card) => card?,
        Err(_) => return Err((None, HandshakeError::TimedOut)),
    };
    Ok((stream, card))
}

async fn admit(shared: &Shared, stream: TcpStream, card: Card) {
    let broker = card.identity.replica.broker;
    if shared.peer(broker).is_none() && shared.peers.load().len() >= PEERS_MAX {
        return warn!(broker, "too many brokers have introduced themselves");
    }
    let peer = shared.peer_or_insert(broker);
    connection::run_incoming(shared, &peer, stream, card.identity, card.cluster_id).await;
}

fn log_fault(logged: &Logged, address: SocketAddr, card: Option<Card>, error: &HandshakeError) {
    let mut logged = lock(logged);
    let now = Instant::now();
    let key = (
        address.ip(),
        format!("{:?} {error}", card.map(|card| card.identity.replica)),
    );
    if logged.get(&key).is_some_and(|at| now - *at < LOG_AGAIN) {
        return;
    }
    logged.retain(|_, at| now - *at < LOG_AGAIN);
    if logged.len() < LOGGED_MAX {
        logged.insert(key, now);
    }
    match (card, error) {
        (Some(card), HandshakeError::RefusedHere(refusal)) => {
            let (peer, version) = (card.identity.replica, card.version);
            warn!(%address, %peer, version, reason = ?refusal, "peer is refused");
        }
        (_, HandshakeError::Magic) => warn!(%address, "connection is not from a drave peer"),
        _ => debug!(%address, %error, "connection to the peer port came to nothing"),
    }
}
