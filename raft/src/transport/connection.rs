//! One established connection, in either direction.
//!
//! Runs in the dialer's task, or in the task of the accepted connection: it
//! reads there, and owns a writer task (and, when dialed, the timer of its
//! requests). The end of any of them ends the connection; what waits on it is
//! then resolved as unreachable, also when the task is aborted.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::warn;

use super::handshake::Identity;
use super::net::TcpStream;
use super::outbox::{OUTBOX_BYTES_MAX, Outbox};
use super::peer::Peer;
use super::pending::Pending;
use super::reader::FrameReader;
use super::wire::{Frame, FrameType, WireError};
use super::{Message, Shared, TransportError};

/// A connection dialed from here: requests out, replies in.
pub(crate) struct Outgoing {
    pub(crate) identity: Identity,
    pub(crate) cluster_id: Option<u128>,
    pub(crate) outbox: Outbox,
    pub(crate) pending: Pending,
}

/// A connection that the peer dialed: requests in, replies out.
pub(crate) struct Incoming {
    pub(crate) identity: Identity,
    pub(crate) cluster_id: Option<u128>,
    pub(crate) outbox: Arc<Outbox>,
}

impl Outgoing {
    pub(crate) fn close(&self) {
        self.outbox.close();
        self.pending.close();
    }
}

/// Answers one request; dropped unanswered, it tells the requester so.
pub struct ReplySender {
    /// `None` once answered, and for notifications.
    to: Option<(Arc<Outbox>, u64)>,
}

impl ReplySender {
    /// Queues the reply; without effect when the connection is gone or the
    /// request was a notification.
    pub fn send(mut self, message: Message) {
        let Some((outbox, id)) = self.to.take() else {
            return;
        };
        let control = message.payload.is_empty();
        let frame = Frame {
            frame_type: FrameType::Reply,
            id,
            message,
        };
        if outbox.push(frame, control) == Err(TransportError::Full) {
            warn!("reply exceeds what may wait for the peer, request is refused");
            refuse(&outbox, id);
        }
    }
}

impl Drop for ReplySender {
    fn drop(&mut self) {
        if let Some((outbox, id)) = self.to.take() {
            refuse(&outbox, id);
        }
    }
}

fn refuse(outbox: &Outbox, id: u64) {
    let frame = Frame {
        frame_type: FrameType::Refused,
        id,
        message: Message::default(),
    };
    if outbox.push(frame, true) == Err(TransportError::Full) {
        // The requester can't be told any more; it must not wait for this connection.
        outbox.close();
    }
}

/// Ends the connection with its task.
struct AttachedOutgoing<'a>(&'a Peer, Arc<Outgoing>);

impl Drop for AttachedOutgoing<'_> {
    fn drop(&mut self) {
        self.0.detach_outgoing(&self.1);
        self.1.close();
    }
}

struct AttachedIncoming<'a>(&'a Peer, Arc<Incoming>);

impl Drop for AttachedIncoming<'_> {
    fn drop(&mut self) {
        self.0.detach_incoming(&self.1);
        self.1.outbox.close();
    }
}

/// Runs a dialed connection until it ends.
pub(crate) async fn run_outgoing(
    shared: &Shared,
    peer: &Peer,
    stream: TcpStream,
    identity: Identity,
    cluster_id: Option<u128>,
) {
    let (read, write) = stream.into_split();
    let link = Arc::new(Outgoing {
        identity,
        cluster_id,
        outbox: Outbox::default(),
        pending: Pending::new(),
    });
    // The acceptor takes the connection up with the first heartbeat.
    link.outbox.beat(shared.heartbeat());
    let epoch = peer.attach_outgoing(&link, shared.now_ms());
    let attached = AttachedOutgoing(peer, link.clone());
    shared.recheck_cluster(peer);
    shared.look.notify_one();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let link = link.clone();
        async move { WireError::Io(link.outbox.write_to(write).await) }
    });
    tasks.spawn({
        let link = link.clone();
        async move {
            link.pending.run_timer().await;
            unreachable!("the timer runs until it is aborted")
        }
    });
    let heard = || peer.heard(epoch, shared.now_ms());
    let mut reader = FrameReader::new(read);
    let read_replies = async {
        while let Some(frame) = reader.next(&heard).await? {
            match frame.frame_type {
                FrameType::Reply => link.pending.resolve(frame.id, Ok(frame.message)),
                FrameType::Refused => {
                    link.pending.resolve(frame.id, Err(TransportError::Refused));
                }
                FrameType::Heartbeat => take_heartbeat(peer, identity, &frame)?,
                other => return Err(WireError::WrongSide(other)),
            }
        }
        Ok(())
    };
    let end = tokio::select! {
        end = read_replies => end,
        Some(Ok(error)) = tasks.join_next() => Err(error),
        () = link.outbox.closed() => Ok(()),
    };
    log_end(identity, end);
    drop(attached);
    shared.look.notify_one();
}

/// Runs an accepted connection until it ends.
pub(crate) async fn run_incoming(
    shared: &Shared,
    peer: &Peer,
    stream: TcpStream,
    identity: Identity,
    cluster_id: Option<u128>,
) {
    let (read, write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    // A hello may have waited in the backlog since long ago; this has not.
    let first = tokio::time::timeout(super::dial::HANDSHAKE_TIMEOUT, reader.next(&|| ()));
    let first = match first.await {
        Ok(Ok(Some(frame))) => take_heartbeat(peer, identity, &frame),
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => Err(error),
    };
    if first.is_err() {
        return log_end(identity, first);
    }
    let outbox = Arc::new(Outbox::default());
    let link = Arc::new(Incoming {
        identity,
        cluster_id,
        outbox: outbox.clone(),
    });
    let epoch = peer.attach_incoming(&link, shared.now_ms());
    let attached = AttachedIncoming(peer, link);
    shared.recheck_cluster(peer);
    shared.look.notify_one();
    let mut tasks = JoinSet::new();
    tasks.spawn({
        let outbox = outbox.clone();
        async move { WireError::Io(outbox.write_to(write).await) }
    });
    let heard = || peer.heard(epoch, shared.now_ms());
    let read_requests = async {
        while let Some(frame) = reader.next(&heard).await? {
            let to = match frame.frame_type {
                FrameType::Request => Some((outbox.clone(), frame.id)),
                FrameType::Notify => None,
                FrameType::Heartbeat => {
                    take_heartbeat(peer, identity, &frame)?;
                    continue;
                }
                other => return Err(WireError::WrongSide(other)),
            };
            shared
                .inbound
                .on_request(identity.replica, frame.message, ReplySender { to });
            // No more requests while half of what may wait are replies to earlier ones.
            outbox.room_for(OUTBOX_BYTES_MAX / 2).await;
        }
        Ok(())
    };
    let end = tokio::select! {
        end = read_requests => end,
        Some(Ok(error)) = tasks.join_next() => Err(error),
        () = outbox.closed() => Ok(()),
    };
    log_end(identity, end);
    drop(attached);
    shared.look.notify_one();
}

fn take_heartbeat(peer: &Peer, identity: Identity, frame: &Frame) -> Result<(), WireError> {
    if frame.frame_type != FrameType::Heartbeat {
        return Err(WireError::WrongSide(frame.frame_type));
    }
    let heartbeat = frame.as_heartbeat()?;
    if heartbeat.incarnation != identity.incarnation {
        let (said, expected) = (heartbeat.incarnation, identity.incarnation);
        return Err(WireError::Incarnation { said, expected });
    }
    peer.set_sync_age(heartbeat.sync_age_ms);
    Ok(())
}

fn log_end(identity: Identity, end: Result<(), WireError>) {
    match end {
        Ok(()) => tracing::debug!(peer = %identity.replica, "peer connection ended"),
        Err(WireError::Io(error)) => {
            tracing::debug!(peer = %identity.replica, %error, "peer connection failed");
        }
        Err(error) => {
            warn!(peer = %identity.replica, %error, "peer sent what is no frame, connection closed");
        }
    }
}
