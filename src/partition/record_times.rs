//! The times of single records inside a batch, for look-ups by time.
//!
//! The only place that unpacks what a producer compressed. It streams, so that
//! a batch that unpacks to gigabytes costs time up to a bound, and no memory.

use std::io::{self, BufRead, BufReader, Read};

/// Unpacked bytes that are looked at, at most.
const UNPACKED_BYTES_MAX: u64 = 256 << 20;
/// The largest block of snappy that is unpacked at once.
const SNAPPY_BLOCK_BYTES_MAX: usize = 64 << 20;
const SNAPPY_MAGIC: &[u8] = b"\x82SNAPPY\0";
const SNAPPY_HEADER_BYTES: usize = 16;
const HEADER_BYTES: usize = 61;
const LOG_APPEND_TIME: i16 = 1 << 3;

/// The offset delta and timestamp of the first record, at `delta_min` or later
/// in the batch, that is not earlier than `timestamp`. A batch that can't be
/// unpacked counts as one record: its first.
pub(super) fn first_at(batch: &[u8], timestamp: i64, delta_min: i64) -> Option<(i64, i64)> {
    let header = Header::of(batch)?;
    let delta_min = delta_min.max(0);
    if header.attributes & LOG_APPEND_TIME != 0 {
        return (header.timestamp_max >= timestamp).then_some((delta_min, header.timestamp_max));
    }
    match search(&header, &batch[HEADER_BYTES..], timestamp, delta_min) {
        Ok(found) => found,
        Err(_) => (header.timestamp_max >= timestamp).then_some((delta_min, header.timestamp_max)),
    }
}

struct Header {
    attributes: i16,
    timestamp_base: i64,
    timestamp_max: i64,
    records: i32,
}

impl Header {
    fn of(batch: &[u8]) -> Option<Header> {
        if batch.len() < HEADER_BYTES {
            return None;
        }
        Some(Header {
            attributes: i16::from_be_bytes(batch[21..23].try_into().ok()?),
            timestamp_base: i64::from_be_bytes(batch[27..35].try_into().ok()?),
            timestamp_max: i64::from_be_bytes(batch[35..43].try_into().ok()?),
            records: i32::from_be_bytes(batch[57..61].try_into().ok()?),
        })
    }
}

fn search(
    header: &Header,
    body: &[u8],
    timestamp: i64,
    delta_min: i64,
) -> io::Result<Option<(i64, i64)>> {
    let unpacked: Box<dyn Read + '_> = match header.attributes & 7 {
        0 => Box::new(body),
        1 => Box::new(flate2::read::MultiGzDecoder::new(body)),
        2 => Box::new(Snappy::new(body)),
        3 => Box::new(lz4::Decoder::new(body)?),
        4 => Box::new(zstd::stream::read::Decoder::with_buffer(body)?),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let mut records = BufReader::with_capacity(16 << 10, unpacked.take(UNPACKED_BYTES_MAX));
    for _ in 0..header.records {
        let mut left = Varints {
            from: &mut records,
            taken: 0,
        };
        let length = left.next()?;
        left.taken = 0;
        left.byte()?;
        let time = header.timestamp_base.wrapping_add(left.next()?);
        let delta = left.next()?;
        if time >= timestamp && delta >= delta_min {
            return Ok(Some((delta, time)));
        }
        let rest = u64::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(left.taken));
        skip(&mut records, rest.ok_or(io::ErrorKind::InvalidData)?)?;
    }
    Ok(None)
}

/// Reads Kafka's zigzag varints and counts their bytes.
struct Varints<'a, R> {
    from: &'a mut R,
    taken: u64,
}

impl<R: Read> Varints<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.from.read_exact(&mut byte)?;
        self.taken += 1;
        Ok(byte[0])
    }

    fn next(&mut self) -> io::Result<i64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn skip(from: &mut impl BufRead, mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let available = from.fill_buf()?.len();
        if available == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let step = available.min(usize::try_from(bytes).unwrap_or(usize::MAX));
        from.consume(step);
        bytes -= step as u64;
    }
    Ok(())
}

/// Snappy as Kafka's clients frame it, or one bare block.
struct Snappy<'a> {
    packed: &'a [u8],
    framed: bool,
    block: Vec<u8>,
    at: usize,
}

impl<'a> Snappy<'a> {
    fn new(packed: &'a [u8]) -> Snappy<'a> {
        let framed = packed.starts_with(SNAPPY_MAGIC) && packed.len() >= SNAPPY_HEADER_BYTES;
        let packed = if framed {
            &packed[SNAPPY_HEADER_BYTES..]
        } else {
            packed
        };
        Snappy {
            packed,
            framed,
            block: Vec::new(),
            at: 0,
        }
    }

    fn next_block(&mut self) -> io::Result<()> {
        let block = if self.framed {
            let (length, rest) = self
                .packed
                .split_first_chunk::<4>()
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            let length = u32::from_be_bytes(*length) as usize;
            let (block, rest) = rest
                .split_at_checked(length)
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            self.packed = rest;
            block
        } else {
            std::mem::take(&mut self.packed)
        };
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        if snap::raw::decompress_len(block).map_err(invalid)? > SNAPPY_BLOCK_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.block = snap::raw::Decoder::new()
            .decompress_vec(block)
            .map_err(invalid)?;
        self.at = 0;
        Ok(())
    }
}

impl Read for Snappy<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.block.len() {
            if self.packed.is_empty() {
                return Ok(0);
            }
            self.next_block()?;
        }
        let step = into.len().min(self.block.len() - self.at);
        into[..step].copy_from_slice(&self.block[self.at..self.at + step]);
        self.at += step;
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use kafka_protocol::records::{
        Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
    };

    use super::*;

    fn batch(compression: Compression) -> BytesMut {
        let record = |(offset, timestamp)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 0,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset,
            // Counts on, or the encoder would begin another batch.
            sequence: offset as i32 - 1,
            timestamp,
            key: None,
            value: Some(Bytes::from(vec![b'v'; 3_000])),
            headers: Default::default(),
        };
        let records: Vec<Record> = [100, 300, 200, 400]
            .into_iter()
            .enumerate()
            .map(|(at, time)| record((at as i64, time)))
            .collect();
        let mut encoded = BytesMut::new();
        let options = RecordEncodeOptions {
            version: 2,
            compression,
        };
        RecordBatchEncoder::encode(&mut encoded, records.iter(), &options).expect("encoded");
        encoded
    }

    #[test]
    fn the_first_record_not_earlier_is_found_in_every_compression() {
        for compression in [
            Compression::None,
            Compression::Gzip,
            Compression::Snappy,
            Compression::Lz4,
            Compression::Zstd,
        ] {
            let batch = batch(compression);
            let at = |timestamp, delta| first_at(&batch, timestamp, delta);
            assert_eq!(at(0, 0), Some((0, 100)), "{compression:?}");
            assert_eq!(at(101, 0), Some((1, 300)), "{compression:?}");
            assert_eq!(at(301, 0), Some((3, 400)), "{compression:?}");
            assert_eq!(at(101, 2), Some((2, 200)), "{compression:?}");
            assert_eq!(at(401, 0), None, "{compression:?}");
        }
    }

    #[test]
    fn with_the_brokers_time_every_record_has_the_batches_time() {
        let mut batch = batch(Compression::Gzip);
        batch[22] |= 1 << 3;
        assert_eq!(first_at(&batch, 350, 0), Some((0, 400)));
        assert_eq!(first_at(&batch, 350, 2), Some((2, 400)));
        assert_eq!(first_at(&batch, 401, 0), None);
    }

    #[test]
    fn what_cannot_be_unpacked_counts_as_its_first_record() {
        let mut batch = batch(Compression::Zstd);
        batch.truncate(70);
        assert_eq!(first_at(&batch, 350, 0), Some((0, 400)));
        assert_eq!(first_at(&batch, 401, 0), None);
    }
}
