//! Big-endian reading and writing for what a partition persists: checkpoints
//! and index keys.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes that don't hold what they should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unreadable {0}")]
pub struct Malformed(pub &'static str);

/// Writes fields one after the other.
#[derive(Debug, Default)]
pub struct Writer(BytesMut);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.put_u8(value);
    }

    /// Two bytes.
    pub fn i16(&mut self, value: i16) {
        self.0.put_i16(value);
    }

    /// Four bytes.
    pub fn i32(&mut self, value: i32) {
        self.0.put_i32(value);
    }

    /// Eight bytes.
    pub fn i64(&mut self, value: i64) {
        self.0.put_i64(value);
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.put_u64(value);
    }

    /// A signed number whose encodings sort like the numbers.
    pub fn sorted_i64(&mut self, value: i64) {
        self.0.put_u64((value as u64) ^ (1 << 63));
    }

    /// How many of something follow.
    pub fn count(&mut self, count: usize) {
        self.0.put_u32(count as u32);
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.put_slice(bytes);
    }

    /// What was written.
    pub fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Reads what [`Writer`] wrote.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// From the start of `bytes`.
    pub fn of(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("end"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// Two bytes.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// See [`Writer::sorted_i64`].
    pub fn sorted_i64(&mut self) -> Result<i64, Malformed> {
        Ok((self.u64()? ^ (1 << 63)) as i64)
    }

    /// How many of something follow. Whoever reads them ends at the end of the bytes.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        Ok(u32::from_be_bytes(self.array()?) as usize)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed("trailing bytes"))
        }
    }
}
