//! What a record batch must be, shown with batches made by another encoder.

use kafka_protocol::indexmap::IndexMap;
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};
use proptest::prelude::*;

use super::*;

const LARGE: usize = 1 << 20;

fn records(values: &[&[u8]]) -> Vec<Record> {
    let record = |(index, value): (usize, &&[u8])| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: -1,
        producer_id: 7,
        producer_epoch: 1,
        timestamp_type: TimestampType::Creation,
        offset: index as i64,
        sequence: 100 + index as i32,
        timestamp: 1_700_000_000_000 + index as i64,
        key: (index % 2 == 0).then(|| Bytes::from_static(b"key")),
        value: Some(Bytes::copy_from_slice(value)),
        headers: IndexMap::from([("h".into(), Some(Bytes::from_static(b"v")))]),
    };
    values.iter().enumerate().map(record).collect()
}

fn encode(records: &[Record], compression: Compression) -> Bytes {
    let mut buffer = BytesMut::new();
    let options = RecordEncodeOptions {
        version: 2,
        compression,
    };
    RecordBatchEncoder::encode(&mut buffer, records, &options).unwrap();
    buffer.freeze()
}

fn batch() -> Bytes {
    encode(&records(&[b"one", b"two", b"three"]), Compression::None)
}

/// `bytes` put at `at`, and the CRC made true again.
fn resealed(batch: &Bytes, at: usize, bytes: &[u8]) -> Bytes {
    let mut changed = BytesMut::from(&batch[..]);
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&changed[ATTRIBUTES_AT..]);
    changed[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    changed.freeze()
}

fn refusal(records: &[u8]) -> i16 {
    validate(records, 9, LARGE).unwrap_err().code()
}

#[test]
fn the_header_has_these_golden_bytes() {
    let header = BatchHeader {
        base_offset: 0x0102030405060708,
        batch_length: 49,
        partition_leader_epoch: 0x11121314,
        magic: 2,
        crc: 0xa1a2a3a4,
        attributes: 0b0001_1001,
        last_offset_delta: 4,
        base_timestamp: 5,
        max_timestamp: 6,
        producer_id: 7,
        producer_epoch: 8,
        base_sequence: 9,
        record_count: 10,
    };
    let mut buffer = BytesMut::new();
    header.write(&mut buffer);
    let golden: [u8; HEADER_BYTES] = [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        0,
        0,
        0,
        49,
        0x11,
        0x12,
        0x13,
        0x14,
        2,
        0xa1,
        0xa2,
        0xa3,
        0xa4,
        0,
        0b0001_1001,
        0,
        0,
        0,
        4,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        5,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        6,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        7,
        0,
        8,
        0,
        0,
        0,
        9,
        0,
        0,
        0,
        10,
    ];
    assert_eq!(buffer[..], golden);
    assert_eq!(BatchHeader::parse(&golden), Some(header));
    assert!(header.is_log_append_time() && header.is_transactional() && !header.is_control());
    assert_eq!((header.compression(), header.size()), (1, Some(61)));
}

#[test]
fn batches_of_every_compression_are_accepted() {
    for compression in [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let bytes = encode(&records(&[b"one", b"two", b"three"]), compression);
        let produced = validate(&bytes, 9, LARGE).unwrap();
        assert_eq!(produced.header.record_count, 3);
        assert_eq!(produced.header.compression(), compression as i16);
        assert_eq!(
            (produced.header.producer_id, produced.header.base_sequence),
            (7, 100)
        );
        assert_eq!(produced.header.last_sequence(), 102);
    }
}

#[test]
fn a_missing_key_is_seen() {
    let mut all_keyed = records(&[b"one", b"two"]);
    assert!(
        validate(&encode(&all_keyed, Compression::None), 9, LARGE)
            .unwrap()
            .has_null_key
    );
    all_keyed[1].key = Some(Bytes::new());
    assert!(
        !validate(&encode(&all_keyed, Compression::None), 9, LARGE)
            .unwrap()
            .has_null_key
    );
}

#[test]
fn bad_batches_are_refused_with_kafkas_codes() {
    let (corrupt, invalid) = (
        ResponseError::CorruptMessage.code(),
        ResponseError::InvalidRecord.code(),
    );
    let good = batch();
    assert_eq!(refusal(&[]), invalid);
    assert_eq!(refusal(&good[..30]), invalid);
    assert_eq!(refusal(&good[..good.len() - 1]), invalid, "truncated");
    assert_eq!(
        refusal(&[&good[..], b"rest"].concat()),
        corrupt,
        "bytes after it"
    );
    assert_eq!(
        refusal(&[&good[..], &good[..]].concat()),
        invalid,
        "two batches"
    );
    let mut flipped = good.to_vec();
    flipped[70] ^= 1;
    assert_eq!(refusal(&flipped), corrupt, "wrong CRC");
    for (magic, code) in [(0, invalid), (1, invalid), (3, corrupt)] {
        assert_eq!(
            refusal(&resealed(&good, 16, &[magic])),
            code,
            "magic {magic}"
        );
    }
    assert_eq!(
        refusal(&resealed(&good, 8, &(-1i32).to_be_bytes())),
        corrupt,
        "negative length"
    );
    assert_eq!(
        refusal(&resealed(&good, 0, &5i64.to_be_bytes())),
        invalid,
        "base offset"
    );
    assert_eq!(
        refusal(&resealed(&good, 23, &3i32.to_be_bytes())),
        invalid,
        "last offset delta"
    );
    assert_eq!(
        refusal(&resealed(&good, 57, &2i32.to_be_bytes())),
        invalid,
        "record count"
    );
    let claims_four = resealed(
        &resealed(&good, 57, &4i32.to_be_bytes()),
        23,
        &3i32.to_be_bytes(),
    );
    assert_eq!(refusal(&claims_four), invalid, "fewer records than counted");
    assert_eq!(
        refusal(&resealed(&good, 21, &CONTROL.to_be_bytes())),
        invalid,
        "control batch"
    );
    assert_eq!(
        refusal(&resealed(&good, 53, &(-1i32).to_be_bytes())),
        invalid,
        "sequence"
    );
    let broker_time = resealed(&good, 21, &LOG_APPEND_TIME.to_be_bytes());
    assert_eq!(
        refusal(&broker_time),
        ResponseError::InvalidTimestamp.code()
    );
    let unknown = ResponseError::UnsupportedCompressionType.code();
    assert_eq!(refusal(&resealed(&good, 21, &5i16.to_be_bytes())), unknown);
    let zstd = encode(&records(&[b"one"]), Compression::Zstd);
    assert_eq!(validate(&zstd, 6, LARGE).unwrap_err().code(), unknown);
    let bytes_max = good.len() - 1;
    assert_eq!(
        validate(&good, 9, bytes_max),
        Err(BatchError::TooLarge {
            bytes: good.len(),
            bytes_max
        })
    );
}

#[test]
fn offset_deltas_that_do_not_count_up_are_refused() {
    let mut gap = records(&[b"one", b"two"]);
    gap[1].offset = 5;
    gap[1].sequence = 105;
    let bytes = encode(&gap, Compression::None);
    let bytes = resealed(&bytes, 23, &1i32.to_be_bytes());
    assert_eq!(
        validate(&bytes, 9, LARGE),
        Err(BatchError::Invalid("offset deltas do not count up from 0"))
    );
}

#[test]
fn a_patched_batch_keeps_its_crc_and_its_records() {
    for value_bytes in [10, 5000] {
        let value = vec![b'x'; value_bytes];
        let stored = encode(&records(&[&value]), Compression::None);
        let mut chunks = Vec::new();
        push_patched(&stored, 4242, 9, &mut chunks);
        let patched = Bytes::from(chunks.concat());
        let header = BatchHeader::parse(&patched).unwrap();
        assert_eq!(
            (header.base_offset, header.partition_leader_epoch),
            (4242, 9)
        );
        let mut read = RecordBatchDecoder::decode(&mut patched.clone()).unwrap();
        let record = read.records.pop().unwrap();
        assert_eq!(
            (record.offset, record.value),
            (4242, Some(Bytes::from(value)))
        );
        if value_bytes > PATCH_COPY_BYTES_MAX {
            assert_eq!(
                chunks[1].as_ptr(),
                stored[16..].as_ptr(),
                "the records are not copied"
            );
        }
    }
}

#[test]
fn log_append_time_replaces_the_greatest_time_and_seals_anew() {
    let patched = with_log_append_time(&batch(), 1_800_000_000_000);
    let header = BatchHeader::parse(&patched).unwrap();
    assert!(header.is_log_append_time());
    assert_eq!(header.max_timestamp, 1_800_000_000_000);
    assert_eq!(crc32c::crc32c(&patched[ATTRIBUTES_AT..]), header.crc);
    assert_eq!(
        RecordBatchDecoder::decode(&mut patched.clone())
            .unwrap()
            .records
            .len(),
        3
    );
}

#[test]
fn times_too_far_from_now_are_refused() {
    let header = validate(&batch(), 9, LARGE).unwrap().header;
    let now = header.max_timestamp;
    assert_eq!(header.check_timestamps(now, 10, 10), Ok(()));
    assert!(header.check_timestamps(now - 11, i64::MAX, 10).is_err());
    assert!(header.check_timestamps(now + 11, 10, 10).is_err());
    assert_eq!(header.check_timestamps(now + 1000, i64::MAX, 0), Ok(()));
}

#[test]
fn a_payload_falls_into_the_batches_it_was_made_of() {
    let (one, two) = (batch(), encode(&records(&[b"x"]), Compression::Lz4));
    let payload = Bytes::from([&one[..], &two[..]].concat());
    let mut batches = Batches::of(&payload);
    let counts: Vec<i32> = batches
        .by_ref()
        .map(|batch| batch.header.record_count)
        .collect();
    assert_eq!(counts, [3, 1]);
    assert!(batches.rest().is_empty());
}

#[test]
fn sequences_wrap_to_zero() {
    let mut header = validate(&batch(), 9, LARGE).unwrap().header;
    header.base_sequence = i32::MAX - 1;
    assert_eq!(header.last_sequence(), 0);
}

proptest! {
    #[test]
    fn hostile_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(validate(&bytes, 9, LARGE).is_err());
    }

    #[test]
    fn resealed_mutations_never_panic(at in ATTRIBUTES_AT..100usize, byte: u8) {
        let good = batch();
        let at = at.min(good.len() - 1);
        // Whatever the verdict, reaching one is the claim.
        let verdict = validate(&resealed(&good, at, &[byte]), 9, LARGE);
        if let Ok(produced) = verdict {
            prop_assert_eq!(produced.header.record_count, 3);
        }
    }
}
