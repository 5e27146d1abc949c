//! Who is at the other end: the exchange that opens every connection.
//!
//! Runs in the dialer's or the accepted connection's task, under a time-out.
//! Both sides send one card of fixed size, the dialer first; big-endian:
//!
//! ```text
//! magic 8 | version u16 | flags u16 (1: cluster id known) | cluster id u128
//! broker u32 | directory u128 | incarnation u64 | subject u32
//! ```
//!
//! The subject is the broker that the dialer wants to reach, and in the answer
//! the verdict (0: welcome). Magic and version stay where they are in every
//! version, so that an unknown version can be refused in words.

use std::time::Duration;

use bytes::{Buf, BufMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::net::TcpStream;
use crate::types::ReplicaId;

/// The version spoken here; raised when frames or cards change.
pub(crate) const PROTOCOL_VERSION: u16 = 1;

const MAGIC: [u8; 8] = *b"dravpeer";
const PREFIX_BYTES: usize = 12;
const CARD_BYTES: usize = 60;
const FLAG_CLUSTER: u16 = 1;
/// How long a refused dialer may take to read the answer and leave.
const DRAIN: Duration = Duration::from_millis(300);

/// Which process of which replica: what liveness is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) replica: ReplicaId,
    pub(crate) incarnation: u64,
}

/// What one side says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) version: u16,
    pub(crate) cluster_id: Option<u128>,
    pub(crate) identity: Identity,
    pub(crate) subject: u32,
}

/// The acceptor's verdict. The tags are part of the wire format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub(crate) enum Refusal {
    #[error("the protocol version is not spoken there")]
    UnknownVersion = 1,
    #[error("the peer belongs to another cluster")]
    OtherCluster = 2,
    #[error("another broker listens at that address")]
    WrongBroker = 3,
    #[error("the peer has the same broker id")]
    OwnId = 4,
    #[error("another process with this broker id is connected already")]
    Duplicate = 5,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no drave peer: wrong magic")]
    Magic,
    #[error("refused by the peer: {0}")]
    RefusedByPeer(Refusal),
    #[error("refused by the peer with unknown code {0}")]
    RefusedWith(u32),
    #[error("{0}")]
    RefusedHere(Refusal),
    #[error("no handshake in time")]
    TimedOut,
}

impl Card {
    pub(crate) fn encode(&self) -> [u8; CARD_BYTES] {
        let mut card = [0; CARD_BYTES];
        let mut out = &mut card[..];
        out.put_slice(&MAGIC);
        out.put_u16(self.version);
        out.put_u16(if self.cluster_id.is_some() {
            FLAG_CLUSTER
        } else {
            0
        });
        out.put_u128(self.cluster_id.unwrap_or(0));
        out.put_u32(self.identity.replica.broker);
        out.put_u128(self.identity.replica.directory);
        out.put_u64(self.identity.incarnation);
        out.put_u32(self.subject);
        card
    }

    /// Reads a card of this version; of another version only the prefix, the
    /// rest is zero.
    pub(crate) async fn read(
        stream: &mut (impl AsyncRead + Unpin),
    ) -> Result<Card, HandshakeError> {
        let mut card = [0; CARD_BYTES];
        stream.read_exact(&mut card[..PREFIX_BYTES]).await?;
        if card[..MAGIC.len()] != MAGIC {
            return Err(HandshakeError::Magic);
        }
        if (&card[MAGIC.len()..]).get_u16() == PROTOCOL_VERSION {
            stream.read_exact(&mut card[PREFIX_BYTES..]).await?;
        }
        let mut bytes = &card[MAGIC.len()..];
        let version = bytes.get_u16();
        let flags = bytes.get_u16();
        let cluster_id = bytes.get_u128();
        let replica = ReplicaId {
            broker: bytes.get_u32(),
            directory: bytes.get_u128(),
        };
        let incarnation = bytes.get_u64();
        Ok(Card {
            version,
            cluster_id: (flags & FLAG_CLUSTER != 0).then_some(cluster_id),
            identity: Identity {
                replica,
                incarnation,
            },
            subject: bytes.get_u32(),
        })
    }

    fn clashes_with(&self, other: &Card) -> bool {
        matches!((self.cluster_id, other.cluster_id), (Some(a), Some(b)) if a != b)
    }
}

/// The dialer's part: says hello to `local.subject` and reads the verdict.
pub(crate) async fn greet(stream: &mut TcpStream, local: Card) -> Result<Card, HandshakeError> {
    stream.write_all(&local.encode()).await?;
    let answer = Card::read(stream).await?;
    if answer.version != PROTOCOL_VERSION {
        return Err(HandshakeError::RefusedHere(Refusal::UnknownVersion));
    }
    match answer.subject {
        0 => {}
        1 => return Err(HandshakeError::RefusedByPeer(Refusal::UnknownVersion)),
        2 => return Err(HandshakeError::RefusedByPeer(Refusal::OtherCluster)),
        3 => return Err(HandshakeError::RefusedByPeer(Refusal::WrongBroker)),
        4 => return Err(HandshakeError::RefusedByPeer(Refusal::OwnId)),
        5 => return Err(HandshakeError::RefusedByPeer(Refusal::Duplicate)),
        code => return Err(HandshakeError::RefusedWith(code)),
    }
    if answer.clashes_with(&local) {
        return Err(HandshakeError::RefusedHere(Refusal::OtherCluster));
    }
    if answer.identity.replica.broker != local.subject {
        return Err(HandshakeError::RefusedHere(Refusal::WrongBroker));
    }
    Ok(answer)
}

/// The acceptor's part: reads the hello, judges it, and answers. `taken` tells
/// whether another process with the same broker id is connected.
pub(crate) async fn welcome(
    stream: &mut TcpStream,
    local: Card,
    taken: impl FnOnce(Identity) -> bool,
) -> Result<Card, (Option<Card>, HandshakeError)> {
    let hello = Card::read(stream).await.map_err(|error| (None, error))?;
    let refusal = if hello.version != PROTOCOL_VERSION {
        Some(Refusal::UnknownVersion)
    } else if hello.clashes_with(&local) {
        Some(Refusal::OtherCluster)
    } else if hello.subject != local.identity.replica.broker {
        Some(Refusal::WrongBroker)
    } else if hello.identity.replica.broker == local.identity.replica.broker {
        Some(Refusal::OwnId)
    } else if taken(hello.identity) {
        Some(Refusal::Duplicate)
    } else {
        None
    };
    let answer = Card {
        subject: refusal.map_or(0, |refusal| refusal as u32),
        ..local
    };
    let fault = |error| (Some(hello), HandshakeError::Io(error));
    stream.write_all(&answer.encode()).await.map_err(fault)?;
    let Some(refusal) = refusal else {
        return Ok(hello);
    };
    // Unread bytes would turn the close into a reset, which can overtake the answer.
    stream.shutdown().await.map_err(fault)?;
    let drain = async {
        let mut rest = [0; 512];
        while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    };
    // Whether the dialer is slow or quick to leave changes nothing.
    tokio::time::timeout(DRAIN, drain).await.ok();
    Err((Some(hello), HandshakeError::RefusedHere(refusal)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_card_are_those_of_version_1() {
        let replica = ReplicaId {
            broker: 2,
            directory: 3,
        };
        let card = Card {
            version: PROTOCOL_VERSION,
            cluster_id: Some(1),
            identity: Identity {
                replica,
                incarnation: 4,
            },
            subject: 5,
        };
        let mut golden = b"dravpeer".to_vec();
        golden.extend([0, 1, 0, 1]);
        for (bytes, value) in [(16, 1), (4, 2), (16, 3), (8, 4), (4, 5)] {
            golden.extend(std::iter::repeat_n(0, bytes - 1));
            golden.push(value);
        }
        assert_eq!(card.encode().to_vec(), golden);
        let refusals = [
            Refusal::UnknownVersion,
            Refusal::OtherCluster,
            Refusal::WrongBroker,
            Refusal::OwnId,
            Refusal::Duplicate,
        ];
        assert_eq!(refusals.map(|refusal| refusal as u32), [1, 2, 3, 4, 5]);
    }
}
