//! Whatever a producer sends as a record batch is judged without panic, and
//! what is let pass can be walked and counted by everything behind it.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::header;
use super::record_batch::{
    BatchHeader, Batches, HEADER_BYTES, push_patched, validate, with_log_append_time,
};
use crate::corpus::{config, edited, edits, noise};
use crate::partition::batches;

const MESSAGE_BYTES_MAX: usize = 1 << 20;
const CRC_AT: usize = 17;

/// Three records without a key, as a producer sends them.
fn good() -> Vec<u8> {
    // Length, attributes, timestamp and offset deltas, null key, value, no headers.
    let record = |offset: u8| [14, 0, 2, offset * 2, 1, 2, b'v', 0];
    let records: Vec<u8> = (0..3).flat_map(record).collect();
    let header = BatchHeader {
        base_offset: 0,
        batch_length: (HEADER_BYTES - 12 + records.len()) as i32,
        partition_leader_epoch: -1,
        magic: 2,
        crc: 0,
        attributes: 0,
        last_offset_delta: 2,
        base_timestamp: 1_700_000_000_000,
        max_timestamp: 1_700_000_000_001,
        producer_id: 7,
        producer_epoch: 1,
        base_sequence: 5,
        record_count: 3,
    };
    let mut batch = BytesMut::new();
    header.write(&mut batch);
    batch.extend_from_slice(&records);
    sealed(batch.to_vec())
}

/// With the length and the checksum made true, so that what follows is looked at.
fn sealed(mut batch: Vec<u8>) -> Vec<u8> {
    if batch.len() >= HEADER_BYTES {
        let length = (batch.len() - 12) as u32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&batch[CRC_AT + 4..]);
        batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    }
    batch
}

/// Judges a batch and uses one that is let pass as the broker would.
fn judge(records: &[u8]) -> bool {
    walk(records);
    let Ok(produced) = validate(records, 9, MESSAGE_BYTES_MAX) else {
        return false;
    };
    let header = produced.header;
    assert!(header.last_offset() >= 0 && header.record_count > 0);
    header.last_sequence();
    header
        .check_timestamps(1_700_000_000_000, i64::MAX, 3_600_000)
        .ok();
    let stamped = with_log_append_time(records, i64::MAX);
    let mut chunks = Vec::new();
    push_patched(&stamped, i64::MAX, i32::MAX, &mut chunks);
    let length: usize = chunks.iter().map(Bytes::len).sum();
    assert_eq!(length, records.len());
    let walked: i64 = batches::Batches::of(records)
        .map(|batch| batch.offset_count())
        .sum();
    assert_eq!(walked, i64::from(header.record_count));
    true
}

/// Walks what lies in the log, as the machine and the readers do.
fn walk(payload: &[u8]) {
    for batch in batches::Batches::of(payload) {
        assert!(batch.offset_count() > 0);
        batch.sequence_last();
        batch.timestamp_max();
    }
    let mut all = Batches::of(&Bytes::copy_from_slice(payload));
    for batch in all.by_ref() {
        batch.header.last_sequence();
        batch.header.last_offset();
    }
    assert!(all.rest().len() <= payload.len());
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    assert!(judge(&good()));
}

#[test]
fn counts_and_lengths_that_are_only_claimed_are_refused() {
    let good = good();
    for at in [8, 23, 57] {
        for claim in [i32::MAX, i32::MIN, -1, 0] {
            let mut batch = good.clone();
            batch[at..at + 4].copy_from_slice(&claim.to_be_bytes());
            let crc = crc32c::crc32c(&batch[CRC_AT + 4..]);
            batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
            assert!(!judge(&batch), "{claim} at {at}");
        }
    }
}

proptest! {
    #![proptest_config(config(5_000))]

    #[test]
    fn batches_of_noise_are_judged_without_panic(bytes in noise(200)) {
        judge(&bytes);
        judge(&sealed([&good()[..HEADER_BYTES], &bytes].concat()));
    }

    #[test]
    fn edited_batches_are_judged_without_panic(edits in edits()) {
        let batch = edited(&good(), &edits);
        judge(&batch);
        judge(&sealed(batch));
    }

    #[test]
    fn headers_of_noise_are_judged_without_panic(bytes in noise(60)) {
        header::decode(&Bytes::from(bytes)).ok();
    }
}
