//! The record batches inside an entry's payload, one after the other.
//!
//! Reads the few fields that offsets and producers need, in place. What is
//! here was validated when it was received; a payload that can't be walked is
//! a fault, and ends the walk rather than the process.

/// Bytes of a batch's header.
pub const HEADER_BYTES: usize = 61;
/// Bytes at the start of a batch that lie outside its checksum and its length:
/// base offset, length, and after these the leader epoch.
pub const PATCHED_BYTES: usize = 16;
const LENGTH_AT: usize = 8;
const PREFIX_BYTES: usize = 12;

/// One batch of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Where it starts in the payload.
    pub start: usize,
    /// The whole batch.
    pub bytes: &'a [u8],
}

impl Batch<'_> {
    fn i16_at(&self, at: usize) -> i16 {
        let mut field = [0; 2];
        field.copy_from_slice(&self.bytes[at..at + 2]);
        i16::from_be_bytes(field)
    }

    fn i32_at(&self, at: usize) -> i32 {
        let mut field = [0; 4];
        field.copy_from_slice(&self.bytes[at..at + 4]);
        i32::from_be_bytes(field)
    }

    fn i64_at(&self, at: usize) -> i64 {
        let mut field = [0; 8];
        field.copy_from_slice(&self.bytes[at..at + 8]);
        i64::from_be_bytes(field)
    }

    /// How many offsets it takes.
    pub fn offset_count(&self) -> i64 {
        i64::from(self.i32_at(23)) + 1
    }

    /// The latest timestamp of its records; -1 if they have none.
    pub fn timestamp_max(&self) -> i64 {
        self.i64_at(35)
    }

    /// Its producer's id, -1 if the producer is not idempotent.
    pub fn producer_id(&self) -> i64 {
        self.i64_at(43)
    }

    /// Its producer's epoch.
    pub fn producer_epoch(&self) -> i16 {
        self.i16_at(51)
    }

    /// The sequence number of its first record.
    pub fn sequence_first(&self) -> i32 {
        self.i32_at(53)
    }

    /// The sequence number of its last record; after the highest comes 0.
    pub fn sequence_last(&self) -> i32 {
        let delta = i64::from(self.i32_at(23));
        let last = (i64::from(self.sequence_first()) + delta) & i64::from(i32::MAX);
        last as i32
    }
}

/// Walks the batches of a payload.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Batches<'a> {
    /// From the payload's start.
    pub fn of(payload: &'a [u8]) -> Batches<'a> {
        Batches { payload, at: 0 }
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Batch<'a>;

    fn next(&mut self) -> Option<Batch<'a>> {
        let rest = self.payload.get(self.at..)?;
        if rest.len() < HEADER_BYTES {
            return None;
        }
        let mut length = [0; 4];
        length.copy_from_slice(&rest[LENGTH_AT..PREFIX_BYTES]);
        let size = usize::try_from(i32::from_be_bytes(length)).ok()? + PREFIX_BYTES;
        if size < HEADER_BYTES || size > rest.len() {
            return None;
        }
        let batch = Batch {
            start: self.at,
            bytes: &rest[..size],
        };
        if batch.offset_count() < 1 {
            return None;
        }
        self.at += size;
        Some(batch)
    }
}
