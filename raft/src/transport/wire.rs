//! The frame format between peers, version 1.
//!
//! Owned by the connections' reader and writer tasks; pure functions. Every
//! frame is, big-endian:
//!
//! ```text
//! length u32   of all that follows
//! type u8 | kind u8 | reserved u16 = 0 | header length u32 | group u64 | request id u64
//! header bytes | payload bytes
//! ```
//!
//! A heartbeat's header is `incarnation u64 | sync age u64 (ms)`. Tags are never
//! reused; a change of the layout raises [`super::handshake::PROTOCOL_VERSION`].

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Message;

/// Bytes of the length field.
pub(crate) const LENGTH_BYTES: usize = 4;
/// Bytes of the fixed head behind the length.
pub(crate) const HEAD_BYTES: usize = 24;
/// The largest frame, without its length field.
pub(crate) const FRAME_BYTES_MAX: usize = 64 << 20;

const HEARTBEAT_BYTES: usize = 16;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameType {
    /// Wants a reply with the same id.
    Request = 1,
    /// Answers a request.
    Reply = 2,
    /// Wants no reply.
    Notify = 3,
    /// The sender lives.
    Heartbeat = 4,
    /// The request was dropped unanswered.
    Refused = 5,
}

impl FrameType {
    fn from_tag(tag: u8) -> Option<FrameType> {
        Some(match tag {
            1 => FrameType::Request,
            2 => FrameType::Reply,
            3 => FrameType::Notify,
            4 => FrameType::Heartbeat,
            5 => FrameType::Refused,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) frame_type: FrameType,
    pub(crate) id: u64,
    pub(crate) message: Message,
}

/// What a heartbeat says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    pub(crate) incarnation: u64,
    pub(crate) sync_age_ms: u64,
}

/// Why bytes of a peer are not a frame.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error("frame of {0} bytes is shorter than its head")]
    TooShort(usize),
    #[error("frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("unknown frame type {0}")]
    UnknownType(u8),
    #[error("reserved bits are set")]
    Reserved,
    #[error("header of {header} bytes in a frame of {frame}")]
    Header { header: usize, frame: usize },
    #[error("heartbeat of {0} bytes")]
    Heartbeat(usize),
    #[error("frame type {0:?} is not for this side")]
    WrongSide(FrameType),
    #[error("heartbeat of incarnation {said}, but the handshake said {expected}")]
    Incarnation { said: u64, expected: u64 },
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl Frame {
    /// Bytes on the wire, with the length field.
    pub(crate) fn wire_bytes(&self) -> usize {
        let payload: usize = self.message.payload.iter().map(Bytes::len).sum();
        LENGTH_BYTES + HEAD_BYTES + self.message.header.len() + payload
    }

    pub(crate) fn heartbeat(heartbeat: Heartbeat) -> Frame {
        let mut header = BytesMut::with_capacity(HEARTBEAT_BYTES);
        header.put_u64(heartbeat.incarnation);
        header.put_u64(heartbeat.sync_age_ms);
        let message = Message {
            header: header.freeze(),
            ..Message::default()
        };
        Frame {
            frame_type: FrameType::Heartbeat,
            id: 0,
            message,
        }
    }

    /// Reads a heartbeat's header.
    pub(crate) fn as_heartbeat(&self) -> Result<Heartbeat, WireError> {
        let mut header = self.message.header.as_ref();
        if header.len() != HEARTBEAT_BYTES {
            return Err(WireError::Heartbeat(header.len()));
        }
        Ok(Heartbeat {
            incarnation: header.get_u64(),
            sync_age_ms: header.get_u64(),
        })
    }

    /// Writes the length and the fixed head; header and payload follow.
    pub(crate) fn put_head(&self, out: &mut BytesMut) {
        let length = self.wire_bytes() - LENGTH_BYTES;
        assert!(length <= FRAME_BYTES_MAX, "oversized frame was queued");
        out.put_u32(length as u32);
        out.put_u8(self.frame_type as u8);
        out.put_u8(self.message.kind);
        out.put_u16(0);
        out.put_u32(self.message.header.len() as u32);
        out.put_u64(self.message.group);
        out.put_u64(self.id);
    }

    /// Takes a frame apart, without its length field; slices, copies nothing.
    pub(crate) fn decode(mut bytes: Bytes) -> Result<Frame, WireError> {
        let length = bytes.len();
        if length < HEAD_BYTES {
            return Err(WireError::TooShort(length));
        }
        let mut head = bytes.split_to(HEAD_BYTES);
        let tag = head.get_u8();
        let frame_type = FrameType::from_tag(tag).ok_or(WireError::UnknownType(tag))?;
        let kind = head.get_u8();
        if head.get_u16() != 0 {
            return Err(WireError::Reserved);
        }
        let header_bytes = head.get_u32() as usize;
        let group = head.get_u64();
        let id = head.get_u64();
        if header_bytes > bytes.len() {
            return Err(WireError::Header {
                header: header_bytes,
                frame: length,
            });
        }
        let header = bytes.split_to(header_bytes);
        let payload = if bytes.is_empty() {
            Vec::new()
        } else {
            vec![bytes]
        };
        Ok(Frame {
            frame_type,
            id,
            message: Message {
                kind,
                group,
                header,
                payload,
            },
        })
    }
}

/// Checks a length field before anything is allocated for it.
pub(crate) fn check_length(length: usize) -> Result<usize, WireError> {
    match length {
        0..HEAD_BYTES => Err(WireError::TooShort(length)),
        HEAD_BYTES..=FRAME_BYTES_MAX => Ok(length),
        _ => Err(WireError::TooLong(length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(frame: &Frame) -> Vec<u8> {
        let mut out = BytesMut::new();
        frame.put_head(&mut out);
        out.extend_from_slice(&frame.message.header);
        for piece in &frame.message.payload {
            out.extend_from_slice(piece);
        }
        out.to_vec()
    }

    fn sample() -> Frame {
        let message = Message {
            kind: 0x21,
            group: 0x0102_0304_0506_0708,
            header: Bytes::from_static(b"head"),
            payload: vec![Bytes::from_static(b"pay"), Bytes::from_static(b"load")],
        };
        Frame {
            frame_type: FrameType::Request,
            id: 0x1112_1314_1516_1718,
            message,
        }
    }

    #[test]
    fn the_bytes_of_a_frame_are_those_of_version_1() {
        let golden = [
            &[0, 0, 0, 35, 1, 0x21, 0, 0, 0, 0, 0, 4][..],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
            b"headpayload",
        ]
        .concat();
        assert_eq!(encode(&sample()), golden);
        let heartbeat = Frame::heartbeat(Heartbeat {
            incarnation: 5,
            sync_age_ms: 258,
        });
        let golden = [
            &[0, 0, 0, 40, 4, 0, 0, 0, 0, 0, 0, 16][..],
            &[0; 16],
            &[0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1, 2],
        ]
        .concat();
        assert_eq!(encode(&heartbeat), golden);
        let tags = [
            FrameType::Request,
            FrameType::Reply,
            FrameType::Notify,
            FrameType::Heartbeat,
            FrameType::Refused,
        ];
        assert_eq!(tags.map(|tag| tag as u8), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_frame_survives_the_wire() {
        let bytes = Bytes::from(encode(&sample()));
        let back = Frame::decode(bytes.slice(LENGTH_BYTES..)).expect("decodes");
        assert_eq!(back.message.payload, vec![Bytes::from_static(b"payload")]);
        assert_eq!(back.message.header, sample().message.header);
        assert_eq!(
            (back.frame_type, back.id),
            (sample().frame_type, sample().id)
        );
        let heartbeat = Heartbeat {
            incarnation: 7,
            sync_age_ms: 9,
        };
        assert_eq!(
            Frame::heartbeat(heartbeat)
                .as_heartbeat()
                .expect("a heartbeat"),
            heartbeat
        );
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_refused_or_decoded_without_panic() {
        let good = encode(&sample());
        for cut in LENGTH_BYTES..LENGTH_BYTES + HEAD_BYTES + 4 {
            assert!(Frame::decode(Bytes::copy_from_slice(&good[LENGTH_BYTES..cut])).is_err());
        }
        for at in LENGTH_BYTES..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let decoded = Frame::decode(Bytes::copy_from_slice(&bad[LENGTH_BYTES..]));
            let must_fail = [4, 6, 7, 8, 9, 10, 11].contains(&at);
            assert_eq!(decoded.is_err(), must_fail, "byte {at}");
        }
        assert!(check_length(FRAME_BYTES_MAX + 1).is_err());
        assert!(check_length(HEAD_BYTES - 1).is_err());
        assert!(check_length(FRAME_BYTES_MAX).is_ok());
    }
}
