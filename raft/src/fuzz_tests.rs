//! Whatever a peer sends or the disk holds, the decoders of this crate come to a verdict.

#[path = "../../tests/corpus/mod.rs"]
mod corpus;

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use drave_storage::Entry;
use openraft::Membership;
use openraft::entry::RaftEntry;
use openraft::impls::EmptyNode;
use proptest::prelude::*;

use crate::entry::{LogEntry, TAG_MEMBERSHIP, decode_membership, encode_membership, entry_id};
use crate::state_machine::decode_checkpoint;
use crate::transport::handshake::{Card, Identity, PROTOCOL_VERSION};
use crate::transport::reader::FrameReader;
use crate::transport::wire::{Frame, FrameType, Heartbeat, check_length};
use crate::transport::{Message, wire as transport};
use crate::types::ReplicaId;
use crate::wire::{self, Append, RaftVote, kind};

const REPLICA: ReplicaId = ReplicaId {
    broker: 1,
    directory: 7,
};

/// Decodes a frame as the receivers do, in either direction. What is let pass
/// must be fit to be handed on; the verdict itself does not matter.
fn judge_frame(bytes: &[u8]) {
    let Ok(frame) = Frame::decode(Bytes::copy_from_slice(bytes)) else {
        return;
    };
    assert_eq!(frame.wire_bytes(), bytes.len() + transport::LENGTH_BYTES);
    frame.as_heartbeat().ok();
    if let Ok((_, append)) = wire::decode_append(&frame.message) {
        let next = append.prev_log_id.map_or(0, |id| id.index() + 1);
        for (next, entry) in (next..).zip(&append.entries) {
            assert_eq!(entry.stored().index, next, "entries without a hole");
            assert_eq!(
                entry.get_membership().is_some(),
                entry.stored().tag == TAG_MEMBERSHIP
            );
        }
    }
    wire::decode_entries_wanted(&frame.message).ok();
    if let Ok(entries) = wire::decode_entries(&frame.message, 5) {
        for (index, entry) in (5..).zip(&entries) {
            assert_eq!(entry.index, index, "entries without a hole");
        }
    }
    judge_headers(&frame.message.header);
}

fn judge_headers(header: &[u8]) {
    if let Ok(header) = wire::decode::<wire::VoteHeader>(header) {
        assert!(header.vote.term.checked_add(1).is_some());
    }
    wire::decode::<wire::VoteReply>(header).ok();
    wire::decode::<wire::TransferHeader>(header).ok();
    wire::decode::<wire::AppendReply>(header).ok();
    wire::decode::<wire::VoteRecord>(header).ok();
    wire::decode::<wire::Leads>(header).ok();
    wire::decode::<bool>(header).ok();
    if let Ok(header) = wire::decode::<wire::SnapshotHeader>(header) {
        decode_membership(&header.membership).ok();
    }
}

fn judge_persisted(bytes: &[u8]) {
    wire::decode_vote(bytes).ok();
    decode_membership(bytes).ok();
    decode_checkpoint(bytes).ok();
}

/// The bytes of a message in a frame, without the length in front.
fn framed(frame_type: FrameType, message: Message) -> Vec<u8> {
    let frame = Frame {
        frame_type,
        id: 9,
        message,
    };
    let mut bytes = BytesMut::new();
    frame.put_head(&mut bytes);
    bytes.extend_from_slice(&frame.message.header);
    for piece in &frame.message.payload {
        bytes.extend_from_slice(piece);
    }
    bytes[transport::LENGTH_BYTES..].to_vec()
}

fn membership() -> Bytes {
    let nodes = BTreeMap::from([(REPLICA, EmptyNode::new())]);
    let membership = Membership::new(vec![[REPLICA].into()], nodes);
    encode_membership(&membership.expect("one voter"))
}

fn append() -> Message {
    let entry = |index, tag, payload: Bytes| {
        LogEntry::from(Entry {
            index,
            term: 3,
            tag,
            stamp: 1_700_000_000_000,
            checksum: crc32c::crc32c(&payload),
            payload,
        })
    };
    let append = Append {
        vote: RaftVote::new_committed(3, REPLICA),
        prev_log_id: Some(entry_id(2, 4)),
        entries: vec![
            entry(5, 16, Bytes::from_static(b"records")),
            entry(6, TAG_MEMBERSHIP, membership()),
        ],
        leader_commit: Some(entry_id(2, 4)),
    };
    wire::encode_append(1024, REPLICA, append)
}

fn entries() -> [Entry; 2] {
    [5, 6].map(|index| {
        let payload = Bytes::from_static(b"records");
        Entry {
            index,
            term: 3,
            tag: 16,
            stamp: 1_700_000_000_000,
            checksum: crc32c::crc32c(&payload),
            payload,
        }
    })
}

/// One frame of every kind.
fn good_frames() -> Vec<Vec<u8>> {
    let vote = wire::VoteRecord::from(&RaftVote::new(3, REPLICA));
    let last = Some(wire::id_record(&entry_id(2, 4)));
    let request = |kind, header| Message {
        kind,
        group: 1024,
        header,
        payload: vec![Bytes::from_static(b"payload")],
    };
    let votes = wire::VoteHeader {
        to: 7,
        vote,
        last,
        transfer: true,
    };
    let transfer = wire::TransferHeader {
        from: vote,
        to: REPLICA,
        last,
    };
    let snapshot = wire::SnapshotHeader {
        to: 7,
        vote,
        last,
        membership_at: last,
        membership: membership().to_vec(),
    };
    let leads = wire::Leads {
        groups: vec![(1024, 3), (1025, 4)],
    };
    let mut frames = vec![
        framed(FrameType::Request, append()),
        framed(
            FrameType::Request,
            request(kind::VOTE, wire::encode(&votes)),
        ),
        framed(
            FrameType::Request,
            request(kind::TRANSFER, wire::encode(&transfer)),
        ),
        framed(
            FrameType::Request,
            request(kind::SNAPSHOT, wire::encode(&snapshot)),
        ),
        framed(
            FrameType::Notify,
            request(kind::LEADS, wire::encode(&leads)),
        ),
        framed(
            FrameType::Reply,
            request(kind::APPEND, wire::encode(&wire::AppendReply::Stored(last))),
        ),
        framed(FrameType::Request, wire::encode_entries_wanted(9, 5, 300)),
        framed(FrameType::Reply, wire::encode_entries(9, &entries())),
    ];
    let heartbeat = Frame::heartbeat(Heartbeat {
        incarnation: 5,
        sync_age_ms: 258,
    });
    frames.push(framed(FrameType::Heartbeat, heartbeat.message));
    frames
}

/// A checkpoint: version, where its membership stands, the membership, the machine.
fn checkpoint() -> Vec<u8> {
    let at = Some(wire::id_record(&entry_id(2, 4)));
    wire::encode(&(1u8, at, membership().to_vec(), b"machine".to_vec())).to_vec()
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.build().expect("a runtime")
}

/// Reads frames until the bytes end or are none.
async fn read_all(bytes: &[u8]) -> usize {
    let mut reader = FrameReader::new(bytes);
    let mut frames = 0;
    while let Ok(Some(_)) = reader.next(&|| ()).await {
        frames += 1;
    }
    frames
}

#[test]
fn what_did_harm_once_does_none() {
    for (name, bytes) in corpus::known("peer_frame") {
        println!("{name}");
        judge_frame(&bytes);
        let frame = Frame::decode(bytes.into()).expect("a frame");
        let refused = match frame.message.kind {
            kind::APPEND => wire::decode_append(&frame.message).is_err(),
            _ => wire::decode::<wire::VoteHeader>(&frame.message.header).is_err(),
        };
        assert!(refused, "{name} is let pass");
    }
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    wire::decode_append(&append()).expect("our own append");
    let record = decode_checkpoint(&checkpoint()).map(|_| ());
    record.expect("our own checkpoint");
    let stream: Vec<u8> = good_frames()
        .iter()
        .flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat())
        .collect();
    let read = runtime().block_on(read_all(&stream));
    assert_eq!(read, good_frames().len());
}

#[test]
fn a_frame_that_is_only_announced_ends_the_reading() {
    let largest = (transport::FRAME_BYTES_MAX as u32).to_be_bytes();
    assert!(check_length(transport::FRAME_BYTES_MAX).is_ok());
    // 64 MiB are announced and never come: a thousand times, at once.
    for _ in 0..1_000 {
        assert_eq!(runtime().block_on(read_all(&largest)), 0);
    }
    assert_eq!(runtime().block_on(read_all(&[0xff; 64])), 0);
}

#[test]
fn a_count_that_is_only_claimed_sets_no_memory_aside() {
    // 2^62 groups that the sender leads, in nine bytes.
    let claim = [&[0xfd][..], &(1u64 << 62).to_le_bytes()].concat();
    for _ in 0..1_000 {
        assert!(wire::decode::<wire::Leads>(&claim).is_err());
        assert!(decode_membership(&[&[1][..], &claim].concat()).is_err());
        assert!(decode_checkpoint(&[&[1, 0][..], &claim].concat()).is_err());
    }
}

proptest! {
    #![proptest_config(corpus::config(3_000))]

    #[test]
    fn noise_is_judged_without_panic(bytes in corpus::noise(200)) {
        judge_frame(&bytes);
        judge_headers(&bytes);
        judge_persisted(&bytes);
        for kind in [kind::APPEND, kind::VOTE] {
            let message = Message { kind, group: 1, header: bytes.clone().into(), payload: Vec::new() };
            judge_frame(&framed(FrameType::Request, message));
        }
    }

    #[test]
    fn edited_messages_are_judged_without_panic(edits in corpus::edits()) {
        for good in good_frames() {
            judge_frame(&corpus::edited(&good, &edits));
        }
    }

    #[test]
    fn edited_records_are_judged_without_panic(edits in corpus::edits()) {
        let vote = wire::encode_vote(&RaftVote::new(3, REPLICA));
        for good in [&vote[..], &membership()[..], &checkpoint()[..]] {
            judge_persisted(&corpus::edited(good, &edits));
        }
    }

    #[test]
    fn edited_streams_and_cards_are_read_without_panic(edits in corpus::edits()) {
        let stream: Vec<u8> = good_frames()
            .iter()
            .flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat())
            .collect();
        let identity = Identity { replica: REPLICA, incarnation: 4 };
        let card = Card { version: PROTOCOL_VERSION, cluster_id: Some(1), identity, subject: 2 };
        let card = corpus::edited(&card.encode(), &edits);
        let runtime = runtime();
        runtime.block_on(read_all(&corpus::edited(&stream, &edits)));
        runtime.block_on(async { Card::read(&mut &card[..]).await.ok() });
    }
}
