//! Record batches (magic 2) made and read by hand, right ones and, for the tests of bad input, wrong ones.

use bytes::{Buf, BufMut};

/// Length of a batch's header.
pub const HEADER_BYTES: usize = 61;

/// What goes into a batch.
#[derive(Clone)]
pub struct Batch {
    /// Producer id; -1 for none.
    pub producer_id: i64,
    /// Producer epoch.
    pub producer_epoch: i16,
    /// Sequence number of the first record.
    pub base_sequence: i32,
    /// Attribute bits: compression, timestamp type, transactional, control.
    pub attributes: i16,
    /// Timestamp of the first record.
    pub base_timestamp: i64,
    /// Keys and values; each record is a millisecond later than the one before.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Batch {
    /// A batch without a producer id, as of now.
    pub fn of(records: &[(&str, &str)]) -> Batch {
        let records = records
            .iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .collect();
        Batch {
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            attributes: 0,
            base_timestamp: now_ms(),
            records,
        }
    }

    /// The same from an idempotent producer.
    pub fn by(mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) -> Batch {
        (self.producer_id, self.producer_epoch, self.base_sequence) =
            (producer_id, producer_epoch, base_sequence);
        self
    }

    /// The batch's bytes, with the right lengths and checksum.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (delta, (key, value)) in self.records.iter().enumerate() {
            let delta = delta as i64;
            let mut record = vec![0]; // attributes
            put_varint(&mut record, delta); // timestamp
            put_varint(&mut record, delta); // offset
            for bytes in [key, value] {
                put_varint(&mut record, bytes.len() as i64);
                record.extend_from_slice(bytes);
            }
            put_varint(&mut record, 0); // headers
            put_varint(&mut body, record.len() as i64);
            body.extend_from_slice(&record);
        }
        let count = self.records.len() as i32;
        let mut batch = Vec::with_capacity(HEADER_BYTES + body.len());
        batch.put_i64(0);
        batch.put_i32((HEADER_BYTES - 12 + body.len()) as i32);
        batch.put_i32(-1); // leader epoch
        batch.put_i8(2);
        batch.put_u32(0); // checksum, below
        batch.put_i16(self.attributes);
        batch.put_i32(count - 1);
        batch.put_i64(self.base_timestamp);
        batch.put_i64(self.base_timestamp + i64::from(count) - 1);
        batch.put_i64(self.producer_id);
        batch.put_i16(self.producer_epoch);
        batch.put_i32(self.base_sequence);
        batch.put_i32(count);
        batch.extend_from_slice(&body);
        seal(&mut batch);
        batch
    }
}

/// Puts the right checksum into a batch that was changed by hand.
pub fn seal(batch: &mut [u8]) {
    let checksum = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .expect("a clock after 1970")
        .as_millis() as i64
}

/// A record as it was read back.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp: i64,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// The header of a batch that was read back.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Offset of the first record.
    pub base_offset: i64,
    /// Leader epoch under which it was appended.
    pub leader_epoch: i32,
    /// Attribute bits.
    pub attributes: i16,
    /// Offset of the last record less that of the first.
    pub last_offset_delta: i32,
    /// Largest timestamp.
    pub max_timestamp: i64,
}

/// Splits fetched bytes into whole batches, checks each one's checksum, and leaves out an incomplete last one.
pub fn batches(mut bytes: &[u8]) -> Vec<(Header, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let length = 12 + (&bytes[8..]).get_i32() as usize;
        if bytes.len() < length {
            break;
        }
        let (batch, rest) = bytes.split_at(length);
        assert_eq!(batch[16], 2, "magic");
        assert_eq!(
            (&batch[17..]).get_u32(),
            crc32c::crc32c(&batch[21..]),
            "checksum of a batch that was read back"
        );
        let header = Header {
            base_offset: (&batch[0..]).get_i64(),
            leader_epoch: (&batch[12..]).get_i32(),
            attributes: (&batch[21..]).get_i16(),
            last_offset_delta: (&batch[23..]).get_i32(),
            max_timestamp: (&batch[35..]).get_i64(),
        };
        found.push((header, batch));
        bytes = rest;
    }
    found
}

/// The records in fetched bytes, which hold uncompressed batches.
pub fn records(bytes: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    for (header, batch) in batches(bytes) {
        assert_eq!(
            header.attributes & 7,
            0,
            "only uncompressed batches are read here"
        );
        let base_timestamp = (&batch[27..]).get_i64();
        let log_append_time = header.attributes & 8 != 0;
        let count = (&batch[57..]).get_i32();
        let mut body = &batch[HEADER_BYTES..];
        for _ in 0..count {
            get_varint(&mut body); // length
            body.advance(1); // attributes
            let timestamp = base_timestamp + get_varint(&mut body);
            let offset = header.base_offset + get_varint(&mut body);
            let mut field = || {
                let length = get_varint(&mut body).max(0) as usize;
                let bytes = body[..length].to_vec();
                body.advance(length);
                bytes
            };
            let (key, value) = (field(), field());
            for _ in 0..2 * get_varint(&mut body) {
                let length = get_varint(&mut body).max(0) as usize;
                body.advance(length);
            }
            let timestamp = if log_append_time {
                header.max_timestamp
            } else {
                timestamp
            };
            found.push(Record {
                offset,
                timestamp,
                key,
                value,
            });
        }
        assert!(body.is_empty(), "a batch holds just its records");
    }
    found
}

fn put_varint(into: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        into.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    into.push(rest as u8);
}

fn get_varint(from: &mut &[u8]) -> i64 {
    let (mut value, mut shift) = (0u64, 0);
    loop {
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return (value >> 1) as i64 ^ -((value & 1) as i64);
        }
    }
}
