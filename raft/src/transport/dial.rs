//! Dials one peer, again and again, and runs the connection.
//!
//! One task per peer with a known address. Two refused dials in a row, 50 ms
//! apart, after the connections have ended mean that the peer's process is gone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::handshake::{Card, HandshakeError, Refusal, greet};
use super::net::TcpStream;
use super::peer::Peer;
use super::{Shared, connection};

/// For a connection to open and both sides to have said hello.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A connection that lasted this long is dialed again without a pause.
const LASTING: Duration = Duration::from_millis(500);
/// The same failure is logged again only after this time.
const LOG_AGAIN: Duration = Duration::from_secs(60);

/// The dialer's task.
pub(crate) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut pause = PAUSE_MIN;
    let mut logged: Option<(String, Instant)> = None;
    loop {
        match dial(&shared, &peer).await {
            Ok((stream, card)) => {
                logged = None;
                peer.foreign.store(false, Ordering::Release);
                info!(peer = %card.identity.replica, "connected to peer");
                let since = Instant::now();
                let (identity, cluster_id) = (card.identity, card.cluster_id);
                connection::run_outgoing(&shared, &peer, stream, identity, cluster_id).await;
                if since.elapsed() >= LASTING {
                    pause = PAUSE_MIN;
                    continue;
                }
            }
            Err(error) => {
                if matches!(&error, HandshakeError::Io(io) if is_refusal(io)) {
                    peer.refused.fetch_add(1, Ordering::AcqRel);
                    shared.look.notify_one();
                }
                if let HandshakeError::RefusedByPeer(Refusal::OtherCluster)
                | HandshakeError::RefusedHere(Refusal::OtherCluster) = &error
                {
                    peer.foreign.store(true, Ordering::Release);
                }
                let reason = error.to_string();
                let again = logged
                    .as_ref()
                    .is_none_or(|(last, at)| *last != reason || at.elapsed() >= LOG_AGAIN);
                if again {
                    log_failure(peer.broker, &error);
                    logged = Some((reason, Instant::now()));
                }
            }
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
            () = peer.redial.notified() => pause = PAUSE_MIN,
        }
    }
}

async fn dial(shared: &Shared, peer: &Peer) -> Result<(TcpStream, Card), HandshakeError> {
    let Some(address) = peer.address() else {
        return Err(io::Error::from(io::ErrorKind::AddrNotAvailable).into());
    };
    let shake = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let card = greet(&mut stream, shared.card(peer.broker)).await?;
        Ok((stream, card))
    };
    timeout(HANDSHAKE_TIMEOUT, shake)
        .await
        .unwrap_or(Err(HandshakeError::TimedOut))
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn log_failure(broker: u32, error: &HandshakeError) {
    match error {
        HandshakeError::Io(_) | HandshakeError::TimedOut => {
            info!(broker, %error, "peer can't be reached");
        }
        _ => warn!(broker, %error, "handshake with peer failed"),
    }
}
