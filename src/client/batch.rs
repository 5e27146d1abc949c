//! Record batches (magic 2) as a client makes and reads them.
//!
//! Records are encoded straight into the buffer that is sent; only the header
//! before them is filled in last.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::compression::{self as codec, Compressor, Decompressor};

/// Bytes of a batch before its records.
const HEADER_BYTES: usize = 61;
/// Where the part begins that the checksum covers.
const CHECKED_FROM: usize = 21;
/// Bits of a batch's attributes.
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// What a control record's key says of a transaction that was aborted.
const ABORT: i16 = 0;

/// How a batch's records are compressed; the number is Kafka's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Compression {
    /// Not at all.
    #[default]
    None = 0,
    /// DEFLATE.
    Gzip = 1,
    /// Snappy, in blocks.
    Snappy = 2,
    /// LZ4 frames.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

/// Collects the records of one batch.
pub struct BatchBuilder {
    buffer: BytesMut,
    records: i32,
    first_timestamp: i64,
    max_timestamp: i64,
    /// Bits besides those of the compression.
    attributes: i16,
}

impl BatchBuilder {
    /// A batch that expects so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(bytes.max(HEADER_BYTES));
        buffer.put_bytes(0, HEADER_BYTES);
        BatchBuilder {
            buffer,
            records: 0,
            first_timestamp: 0,
            max_timestamp: 0,
            attributes: 0,
        }
    }

    /// Says that the records are part of their producer's transaction.
    pub fn set_transactional(&mut self) {
        self.attributes |= TRANSACTIONAL;
    }

    /// Makes it a transaction's marker, which only brokers write.
    #[cfg(test)]
    pub(super) fn set_control(&mut self) {
        self.attributes |= CONTROL;
    }

    /// Bytes so far, uncompressed.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Records so far.
    pub fn records(&self) -> i32 {
        self.records
    }

    /// Most bytes a record can take up in a batch.
    pub fn record_bytes_max(key: Option<&[u8]>, value: Option<&[u8]>) -> usize {
        key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len) + 36
    }

    /// Appends a record.
    pub fn push(&mut self, timestamp: i64, key: Option<&[u8]>, value: Option<&[u8]>) {
        if self.records == 0 {
            self.first_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp);
        let timestamp_delta = timestamp - self.first_timestamp;
        let length = |bytes: Option<&[u8]>| bytes.map_or(-1, |bytes| bytes.len() as i64);
        let body = 1
            + varint_bytes(timestamp_delta)
            + varint_bytes(i64::from(self.records))
            + varint_bytes(length(key))
            + key.map_or(0, <[u8]>::len)
            + varint_bytes(length(value))
            + value.map_or(0, <[u8]>::len)
            + 1;
        let buffer = &mut self.buffer;
        buffer.reserve(body + 5);
        put_varint(buffer, body as i64);
        buffer.put_i8(0);
        put_varint(buffer, timestamp_delta);
        put_varint(buffer, i64::from(self.records));
        put_varint(buffer, length(key));
        buffer.put_slice(key.unwrap_or_default());
        put_varint(buffer, length(value));
        buffer.put_slice(value.unwrap_or_default());
        put_varint(buffer, 0);
        self.records += 1;
    }

    /// The finished batch. A producer without idempotence passes -1 three times.
    pub fn finish(
        mut self,
        compression: Compression,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
    ) -> anyhow::Result<Bytes> {
        if compression != Compression::None {
            let records = self.buffer.split_off(HEADER_BYTES);
            compress(compression, &mut self.buffer, &records)?;
        }
        let length = (self.buffer.len() - 12) as i32;
        let attributes = compression as i16 | self.attributes;
        let mut header = &mut self.buffer[..HEADER_BYTES];
        header.put_i64(0); // base offset
        header.put_i32(length);
        header.put_i32(-1); // partition leader epoch
        header.put_i8(2); // magic
        header.put_u32(0); // checksum, below
        header.put_i16(attributes);
        header.put_i32(self.records - 1);
        header.put_i64(self.first_timestamp);
        header.put_i64(self.max_timestamp);
        header.put_i64(producer_id);
        header.put_i16(producer_epoch);
        header.put_i32(base_sequence);
        header.put_i32(self.records);
        let checksum = crc32c::crc32c(&self.buffer[CHECKED_FROM..]);
        self.buffer[CHECKED_FROM - 4..CHECKED_FROM].copy_from_slice(&checksum.to_be_bytes());
        Ok(self.buffer.freeze())
    }
}

fn compress(compression: Compression, to: &mut BytesMut, records: &[u8]) -> anyhow::Result<()> {
    macro_rules! with {
        ($codec:ty) => {
            <$codec as Compressor<BytesMut>>::compress(to, |buffer| {
                buffer.put_slice(records);
                Ok(())
            })
        };
    }
    match compression {
        Compression::None => with!(codec::None),
        Compression::Gzip => with!(codec::Gzip),
        Compression::Snappy => with!(codec::Snappy),
        Compression::Lz4 => with!(codec::Lz4),
        Compression::Zstd => with!(codec::Zstd),
    }
}

/// A batch as it was fetched.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Offset of its first record.
    pub base_offset: i64,
    /// Offset of its last record.
    pub last_offset: i64,
    /// Its records' number, as its header says.
    pub record_count: i32,
    /// Who wrote it; -1: a producer without idempotence.
    pub producer_id: i64,
    attributes: i16,
    first_timestamp: i64,
    max_timestamp: i64,
    records: Bytes,
}

impl Batch {
    /// Whether it holds a transaction's marker instead of records.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Whether it is part of a transaction; its markers are too.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether it is the marker of a transaction that was aborted.
    pub fn is_abort_marker(&self) -> bool {
        // The key: a version, and what the marker says.
        let says = |record: &Record| match record.key.as_deref() {
            Some([_, _, high, low, ..]) => Some(i16::from_be_bytes([*high, *low])),
            _ => None,
        };
        let of = |records: Vec<Record>| records.first().and_then(says);
        self.is_control() && records(self).ok().and_then(of) == Some(ABORT)
    }
}

/// A record as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Milliseconds since 1970.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its headers, in order.
    pub headers: Vec<(String, Option<Bytes>)>,
}

/// The whole batches in what a fetch returned; a last one that was cut off is left out.
pub fn batches(mut bytes: Bytes) -> anyhow::Result<Vec<Batch>> {
    let mut batches = Vec::new();
    while bytes.len() >= HEADER_BYTES {
        let length = 12 + i32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize;
        if bytes.len() < length {
            break;
        }
        anyhow::ensure!(length >= HEADER_BYTES, "a batch of {length} bytes");
        let mut batch = bytes.split_to(length);
        anyhow::ensure!(batch[16] == 2, "a batch of magic {}", batch[16]);
        let checksum = crc32c::crc32c(&batch[CHECKED_FROM..]);
        let base_offset = batch.get_i64();
        batch.advance(9);
        anyhow::ensure!(
            batch.get_u32() == checksum,
            "checksum of the batch at {base_offset}"
        );
        let attributes = batch.get_i16();
        let last_offset = base_offset + i64::from(batch.get_i32());
        let first_timestamp = batch.get_i64();
        let max_timestamp = batch.get_i64();
        let producer_id = batch.get_i64();
        batch.advance(6);
        let record_count = batch.get_i32();
        batches.push(Batch {
            base_offset,
            last_offset,
            record_count,
            producer_id,
            attributes,
            first_timestamp,
            max_timestamp,
            records: batch,
        });
    }
    Ok(batches)
}

/// The records of a batch.
pub fn records(batch: &Batch) -> anyhow::Result<Vec<Record>> {
    let mut compressed = batch.records.clone();
    let mut bytes = match batch.attributes & 7 {
        0 => compressed,
        1 => <codec::Gzip as Decompressor<Bytes>>::decompress(&mut compressed, take_all)?,
        2 => <codec::Snappy as Decompressor<Bytes>>::decompress(&mut compressed, take_all)?,
        3 => <codec::Lz4 as Decompressor<Bytes>>::decompress(&mut compressed, take_all)?,
        4 => <codec::Zstd as Decompressor<Bytes>>::decompress(&mut compressed, take_all)?,
        kind => anyhow::bail!("unknown compression {kind}"),
    };
    let mut records = Vec::new();
    for _ in 0..batch.record_count {
        let length = get_varint(&mut bytes)?;
        let mut record = take(&mut bytes, length)?;
        anyhow::ensure!(!record.is_empty(), "an empty record");
        record.advance(1);
        let timestamp_delta = get_varint(&mut record)?;
        let offset_delta = get_varint(&mut record)?;
        let key = get_bytes(&mut record)?;
        let value = get_bytes(&mut record)?;
        let mut headers = Vec::new();
        for _ in 0..get_varint(&mut record)? {
            let name = get_bytes(&mut record)?.unwrap_or_default();
            headers.push((
                String::from_utf8_lossy(&name).into_owned(),
                get_bytes(&mut record)?,
            ));
        }
        // With LogAppendTime the batch's own time holds for all its records.
        let timestamp = match batch.attributes & 8 {
            0 => batch.first_timestamp + timestamp_delta,
            _ => batch.max_timestamp,
        };
        records.push(Record {
            offset: batch.base_offset + offset_delta,
            timestamp,
            key,
            value,
            headers,
        });
    }
    Ok(records)
}

fn take_all(bytes: &mut Bytes) -> anyhow::Result<Bytes> {
    Ok(std::mem::take(bytes))
}

fn take(bytes: &mut Bytes, length: i64) -> anyhow::Result<Bytes> {
    match usize::try_from(length) {
        Ok(length) if length <= bytes.len() => Ok(bytes.split_to(length)),
        _ => anyhow::bail!("a field of {length} bytes where {} are left", bytes.len()),
    }
}

fn get_bytes(bytes: &mut Bytes) -> anyhow::Result<Option<Bytes>> {
    match get_varint(bytes)? {
        -1 => Ok(None),
        length => take(bytes, length).map(Some),
    }
}

fn get_varint(bytes: &mut Bytes) -> anyhow::Result<i64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        anyhow::ensure!(bytes.has_remaining(), "a number is cut off");
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
        }
    }
    anyhow::bail!("a number of more than ten bytes")
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint_bytes(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

fn put_varint(buffer: &mut BytesMut, value: i64) {
    let mut value = zigzag(value);
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    use kafka_protocol::records::RecordBatchDecoder;

    use super::*;

    const ALL: [Compression; 5] = [
        Compression::None,
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ];

    fn built(compression: Compression) -> Bytes {
        let mut builder = BatchBuilder::with_capacity(0);
        for number in 0..300i64 {
            let value = vec![number as u8; number as usize * 7];
            let key = (number % 3 != 0).then(|| number.to_string());
            builder.push(
                1_000_000 - number,
                key.as_deref().map(str::as_bytes),
                Some(&value),
            );
        }
        builder.push(5, None, None);
        builder.finish(compression, 7, 1, 42).unwrap()
    }

    #[test]
    fn another_decoder_reads_the_batches_made_here() {
        for compression in ALL {
            let set = RecordBatchDecoder::decode(&mut built(compression)).unwrap();
            assert_eq!(set.records.len(), 301);
            let record = &set.records[299];
            assert_eq!((record.offset, record.timestamp), (299, 1_000_000 - 299));
            assert_eq!((record.producer_id, record.sequence), (7, 42 + 299));
            assert_eq!(record.key.as_deref(), Some("299".as_bytes()));
            assert_eq!(record.value.as_ref().unwrap().len(), 299 * 7);
            assert_eq!(set.records[300].value, None);
        }
    }

    #[test]
    fn a_batch_reads_back_as_it_was_made_and_a_cut_off_one_is_left_out() {
        for compression in ALL {
            let whole = built(compression);
            let mut fetched = BytesMut::from(&whole[..]);
            fetched.put_slice(&whole[..whole.len() - 1]);
            let read = batches(fetched.freeze()).unwrap();
            assert_eq!(read.len(), 1);
            assert_eq!((read[0].base_offset, read[0].last_offset), (0, 300));
            let records = records(&read[0]).unwrap();
            assert_eq!(records.len(), 301);
            assert_eq!(records[7].value.as_deref(), Some(&[7u8; 49][..]));
            assert_eq!(records[3].key, None);
            assert_eq!(records[300].timestamp, 5);
        }
    }

    #[test]
    fn another_decoder_sees_that_a_batch_is_part_of_a_transaction() {
        for transactional in [false, true] {
            let mut builder = BatchBuilder::with_capacity(0);
            builder.push(0, None, Some(b"record"));
            if transactional {
                builder.set_transactional();
            }
            let mut batch = builder.finish(Compression::Zstd, 7, 1, 42).unwrap();
            assert_eq!(
                batches(batch.clone()).unwrap()[0].is_transactional(),
                transactional
            );
            let set = RecordBatchDecoder::decode(&mut batch).unwrap();
            assert_eq!(set.records[0].transactional, transactional);
            assert!(!set.records[0].control);
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut bytes = BytesMut::from(&built(Compression::None)[..]);
        bytes[100] ^= 1;
        assert!(batches(bytes.freeze()).is_err());
    }
}
