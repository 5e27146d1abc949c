//! The record batch of magic 2: its 61-byte header, what a produced batch must
//! be, and the few bytes that the broker writes.
//!
//! ```text
//!  0 base offset        8 batch length     12 leader epoch   16 magic
//! 17 crc               21 attributes       23 last offset delta
//! 27 base timestamp    35 max timestamp    43 producer id    51 producer epoch
//! 53 base sequence     57 record count     61 records
//! ```
//! Invariant: the CRC covers byte 21 to the end, so base offset and leader
//! epoch are written into a batch on its way out without touching the rest.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::error::ResponseError;

/// Bytes before the first record.
pub const HEADER_BYTES: usize = 61;
/// The "no timestamp" timestamp.
pub const NO_TIMESTAMP: i64 = -1;

/// Bytes that `batch_length` does not count.
const LENGTH_OVERHEAD: usize = 12;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;
const COMPRESSION_MASK: i16 = 0b111;
const LOG_APPEND_TIME: i16 = 1 << 3;
const TRANSACTIONAL: i16 = 1 << 4;
const CONTROL: i16 = 1 << 5;
const ZSTD: i16 = 4;
/// Batches up to this size are copied when patched: one chunk instead of two.
const PATCH_COPY_BYTES_MAX: usize = 1024;

/// The header of a record batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; 0 in a produced batch.
    pub base_offset: i64,
    /// Bytes after this field.
    pub batch_length: i32,
    /// Epoch of the leader that appended it; meaningless in a produced batch.
    pub partition_leader_epoch: i32,
    /// The format: 2.
    pub magic: i8,
    /// CRC-32C of everything after this field.
    pub crc: u32,
    /// Compression, timestamp type, transactional, control.
    pub attributes: i16,
    /// Offset of the last record, from the base offset.
    pub last_offset_delta: i32,
    /// Time of the first record, in ms.
    pub base_timestamp: i64,
    /// Greatest time of any record, in ms.
    pub max_timestamp: i64,
    /// The idempotent producer, -1 for none.
    pub producer_id: i64,
    /// Its epoch.
    pub producer_epoch: i16,
    /// Its number for the first record.
    pub base_sequence: i32,
    /// The number of records.
    pub record_count: i32,
}

/// Why a batch is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Its bytes are not what was sent, or not a batch.
    #[error("corrupt record batch: {0}")]
    Corrupt(&'static str),
    /// It is a batch, but says what no producer may say.
    #[error("invalid record batch: {0}")]
    Invalid(&'static str),
    /// It is larger than the topic allows.
    #[error("the record batch of {bytes} bytes exceeds max.message.bytes of {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The topic's bound.
        bytes_max: usize,
    },
    /// Its compression is unknown, or not to be used with that version of Produce.
    #[error("unsupported compression type {0}")]
    UnsupportedCompression(i16),
    /// It claims to carry the broker's time.
    #[error("the timestamp type LogAppendTime is the broker's to set")]
    TimestampType,
    /// Its time is too far from the broker's.
    #[error("timestamp {timestamp} is out of the range that the topic accepts at {now}")]
    Timestamp {
        /// The batch's time, in ms.
        timestamp: i64,
        /// The broker's time, in ms.
        now: i64,
    },
}

impl BatchError {
    /// The error code that Kafka answers.
    pub fn code(&self) -> i16 {
        match self {
            Self::Corrupt(_) => ResponseError::CorruptMessage,
            Self::Invalid(_) => ResponseError::InvalidRecord,
            Self::TooLarge { .. } => ResponseError::MessageTooLarge,
            Self::UnsupportedCompression(_) => ResponseError::UnsupportedCompressionType,
            Self::TimestampType | Self::Timestamp { .. } => ResponseError::InvalidTimestamp,
        }
        .code()
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl BatchHeader {
    /// Reads the header that `bytes` begin with; `None` when they are too few.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..HEADER_BYTES)?;
        Some(Self {
            base_offset: i64::from_be_bytes(field(head, 0)),
            batch_length: i32::from_be_bytes(field(head, 8)),
            partition_leader_epoch: i32::from_be_bytes(field(head, 12)),
            magic: head[16] as i8,
            crc: u32::from_be_bytes(field(head, CRC_AT)),
            attributes: i16::from_be_bytes(field(head, ATTRIBUTES_AT)),
            last_offset_delta: i32::from_be_bytes(field(head, 23)),
            base_timestamp: i64::from_be_bytes(field(head, 27)),
            max_timestamp: i64::from_be_bytes(field(head, MAX_TIMESTAMP_AT)),
            producer_id: i64::from_be_bytes(field(head, 43)),
            producer_epoch: i16::from_be_bytes(field(head, 51)),
            base_sequence: i32::from_be_bytes(field(head, 53)),
            record_count: i32::from_be_bytes(field(head, 57)),
        })
    }

    /// Writes the header.
    pub fn write(&self, buffer: &mut BytesMut) {
        buffer.put_i64(self.base_offset);
        buffer.put_i32(self.batch_length);
        buffer.put_i32(self.partition_leader_epoch);
        buffer.put_i8(self.magic);
        buffer.put_u32(self.crc);
        buffer.put_i16(self.attributes);
        buffer.put_i32(self.last_offset_delta);
        buffer.put_i64(self.base_timestamp);
        buffer.put_i64(self.max_timestamp);
        buffer.put_i64(self.producer_id);
        buffer.put_i16(self.producer_epoch);
        buffer.put_i32(self.base_sequence);
        buffer.put_i32(self.record_count);
    }

    /// The size of the whole batch; `None` when the length cannot be one.
    pub fn size(&self) -> Option<usize> {
        let size = usize::try_from(self.batch_length)
            .ok()?
            .checked_add(LENGTH_OVERHEAD)?;
        (size >= HEADER_BYTES).then_some(size)
    }

    /// Kafka's number of the compression: 0 for none.
    pub fn compression(&self) -> i16 {
        self.attributes & COMPRESSION_MASK
    }

    /// Whether the broker's time stands in `max_timestamp` for all records.
    pub fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Whether it belongs to a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it marks a transaction's end instead of carrying records.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether an idempotent producer sent it.
    pub fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }

    /// The producer's number for the last record; sequences wrap to 0 after the greatest.
    pub fn last_sequence(&self) -> i32 {
        let last = i64::from(self.base_sequence) + i64::from(self.last_offset_delta);
        (last % (i64::from(i32::MAX) + 1)) as i32
    }

    /// Refuses times further from `now_ms` than the topic allows. The records'
    /// own times are not read: the header has the first and the greatest.
    pub fn check_timestamps(
        &self,
        now_ms: i64,
        before_ms_max: i64,
        after_ms_max: i64,
    ) -> Result<(), BatchError> {
        let refused = |timestamp| {
            Err(BatchError::Timestamp {
                timestamp,
                now: now_ms,
            })
        };
        if self.max_timestamp != NO_TIMESTAMP
            && self.max_timestamp.saturating_sub(now_ms) > after_ms_max
        {
            return refused(self.max_timestamp);
        }
        if self.base_timestamp != NO_TIMESTAMP
            && now_ms.saturating_sub(self.base_timestamp) > before_ms_max
        {
            return refused(self.base_timestamp);
        }
        Ok(())
    }
}

/// A batch that may be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducedBatch {
    /// Its header.
    pub header: BatchHeader,
    /// Whether some record has no key. Compressed records are not looked at: false.
    pub has_null_key: bool,
}

/// Checks what a client wants appended to one partition: exactly one whole
/// batch, of magic 2, with a true CRC, whose counts add up. The records of a
/// compressed batch are taken as they are: unpacking each batch only to check
/// it would cost more than everything else that the broker does to it.
pub fn validate(
    records: &[u8],
    produce_version: i16,
    max_message_bytes: usize,
) -> Result<ProducedBatch, BatchError> {
    if records.is_empty() {
        return Err(BatchError::Invalid("a partition without a record batch"));
    }
    // The magic lies at the same place in all formats.
    match records.get(16) {
        None => return Err(BatchError::Invalid("shorter than a header")),
        Some(2) => {}
        Some(0 | 1) => return Err(BatchError::Invalid("magic 0 and 1 are not accepted")),
        Some(_) => return Err(BatchError::Corrupt("unknown magic")),
    }
    let header = BatchHeader::parse(records).ok_or(BatchError::Invalid("shorter than a header"))?;
    let size = header
        .size()
        .ok_or(BatchError::Corrupt("a batch length below the header's"))?;
    if size > max_message_bytes {
        return Err(BatchError::TooLarge {
            bytes: size,
            bytes_max: max_message_bytes,
        });
    }
    if size > records.len() {
        return Err(BatchError::Invalid("a batch length beyond the bytes sent"));
    }
    if size < records.len() {
        let next = BatchHeader::parse(&records[size..]).is_some_and(|next| next.magic == 2);
        return Err(if next {
            BatchError::Invalid("more than one record batch for a partition")
        } else {
            BatchError::Corrupt("bytes after the record batch")
        });
    }
    if crc32c::crc32c(&records[ATTRIBUTES_AT..]) != header.crc {
        return Err(BatchError::Corrupt("wrong CRC"));
    }
    check_header(&header, produce_version)?;
    let has_null_key = match header.compression() {
        0 => walk_records(&records[HEADER_BYTES..], header.record_count)?,
        _ => false,
    };
    Ok(ProducedBatch {
        header,
        has_null_key,
    })
}

fn check_header(header: &BatchHeader, produce_version: i16) -> Result<(), BatchError> {
    let compression = header.compression();
    if compression > ZSTD || (compression == ZSTD && produce_version < 7) {
        return Err(BatchError::UnsupportedCompression(compression));
    }
    let invalid = |condition: bool, what| {
        if condition {
            Err(BatchError::Invalid(what))
        } else {
            Ok(())
        }
    };
    invalid(header.base_offset != 0, "a base offset other than 0")?;
    invalid(header.record_count <= 0, "no records")?;
    invalid(
        i64::from(header.last_offset_delta) != i64::from(header.record_count) - 1,
        "the last offset delta does not fit the record count",
    )?;
    invalid(header.is_control(), "clients may not write control batches")?;
    invalid(
        header.is_idempotent() && header.base_sequence < 0,
        "a producer id without a sequence",
    )?;
    invalid(
        header.is_idempotent() && header.producer_epoch < 0,
        "a producer id without an epoch",
    )?;
    invalid(
        header.is_transactional() && !header.is_idempotent(),
        "transactional without a producer id",
    )?;
    if header.is_log_append_time() {
        Err(BatchError::TimestampType)
    } else {
        Ok(())
    }
}

/// Checks that uncompressed records are `count`, with offset deltas 0, 1, 2 …,
/// and fill their bytes exactly. True when some record has no key.
fn walk_records(mut records: &[u8], count: i32) -> Result<bool, BatchError> {
    let mut has_null_key = false;
    for expected in 0..count {
        let (record, rest) =
            split_record(records).ok_or(BatchError::Invalid("a record ends early"))?;
        let (offset_delta, null_key) =
            walk_record(record).ok_or(BatchError::Invalid("a record's fields do not fill it"))?;
        if offset_delta != i64::from(expected) {
            return Err(BatchError::Invalid("offset deltas do not count up from 0"));
        }
        has_null_key |= null_key;
        records = rest;
    }
    if !records.is_empty() {
        return Err(BatchError::Invalid("bytes after the last record"));
    }
    Ok(has_null_key)
}

fn split_record(records: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut rest = records;
    let length = usize::try_from(varint(&mut rest)?).ok()?;
    rest.split_at_checked(length)
}

/// The offset delta, and whether the key is null; `None` when the fields don't fit.
fn walk_record(mut record: &[u8]) -> Option<(i64, bool)> {
    let fields = &mut record;
    skip(fields, 1)?; // attributes
    varint(fields)?; // timestamp delta
    let offset_delta = varint(fields)?;
    let null_key = skip_nullable(fields)?;
    skip_nullable(fields)?; // value
    for _ in 0..u32::try_from(varint(fields)?).ok()? {
        if skip_nullable(fields)? {
            return None; // a header has a name
        }
        skip_nullable(fields)?;
    }
    record.is_empty().then_some((offset_delta, null_key))
}

fn skip(bytes: &mut &[u8], count: usize) -> Option<()> {
    *bytes = bytes.get(count..)?;
    Some(())
}

/// Steps over a byte string; true when it was null.
fn skip_nullable(bytes: &mut &[u8]) -> Option<bool> {
    match varint(bytes)? {
        -1 => Some(true),
        length => skip(bytes, usize::try_from(length).ok()?).map(|()| false),
    }
}

/// A zigzag-coded integer of up to 64 bits.
fn varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    None
}

/// A batch within a payload.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Its header, as stored: base offset and leader epoch are not yet patched.
    pub header: BatchHeader,
    /// All its bytes: a slice of the payload.
    pub bytes: Bytes,
}

/// The batches that a stored payload is made of. It was validated before it
/// was stored, so the iteration ends at the payload's end; at bytes that are no
/// batch it yields `None` early, and [`Batches::rest`] is not empty.
#[derive(Debug, Clone)]
pub struct Batches {
    rest: Bytes,
}

impl Batches {
    /// Over a payload.
    pub fn of(payload: &Bytes) -> Self {
        Self {
            rest: payload.clone(),
        }
    }

    /// What has not been iterated yet.
    pub fn rest(&self) -> &Bytes {
        &self.rest
    }
}

impl Iterator for Batches {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let header = BatchHeader::parse(&self.rest)?;
        let size = header.size().filter(|size| *size <= self.rest.len())?;
        Some(Batch {
            header,
            bytes: self.rest.split_to(size),
        })
    }
}

/// Appends to `chunks` the batch as a client is to see it, with its offset and
/// leader epoch. All but the first 16 bytes of a batch that is not small is a
/// slice of what was given.
pub fn push_patched(batch: &Bytes, base_offset: i64, leader_epoch: i32, chunks: &mut Vec<Bytes>) {
    let head_bytes = if batch.len() <= PATCH_COPY_BYTES_MAX {
        batch.len()
    } else {
        16
    };
    let mut head = BytesMut::with_capacity(head_bytes);
    head.put_i64(base_offset);
    head.put_slice(&batch[8..12]);
    head.put_i32(leader_epoch);
    head.put_slice(&batch[16..head_bytes]);
    chunks.push(head.freeze());
    if head_bytes < batch.len() {
        chunks.push(batch.slice(head_bytes..));
    }
}

/// The batch with the broker's time for all its records, and a new CRC.
pub fn with_log_append_time(batch: &[u8], timestamp_ms: i64) -> Bytes {
    let mut patched = BytesMut::from(batch);
    let attributes = i16::from_be_bytes(field(batch, ATTRIBUTES_AT)) | LOG_APPEND_TIME;
    patched[ATTRIBUTES_AT..ATTRIBUTES_AT + 2].copy_from_slice(&attributes.to_be_bytes());
    patched[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&timestamp_ms.to_be_bytes());
    let crc = crc32c::crc32c(&patched[ATTRIBUTES_AT..]);
    patched[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
    patched.freeze()
}

#[cfg(test)]
#[path = "record_batch_tests.rs"]
mod tests;
