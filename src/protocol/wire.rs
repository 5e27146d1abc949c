//! Kafka's primitive types: a checked [`Reader`] over one frame and a
//! [`Writer`] that gathers chunks.
//!
//! Invariants: a reader never allocates by a count or length that the bytes
//! that remain cannot hold; what it returns as `Bytes` are slices of the frame.
//! A writer passes large byte strings through uncopied.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::limits::{REQUEST_ELEMENTS_MAX, WRITE_COPY_BYTES_MAX};

/// Bytes that are not what the protocol says; the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The message ends before its fields do, or a count or length exceeds what remains.
    #[error("the message is shorter than its fields say")]
    Truncated,
    /// A null where the protocol has none, or a negative length.
    #[error("a length is negative or a required field is null")]
    Length,
    /// A variable-length integer of more than five bytes.
    #[error("a variable-length integer does not end")]
    VarInt,
    /// A string that is not UTF-8.
    #[error("a string is not valid UTF-8")]
    Utf8,
    /// More array elements than one request may have.
    #[error("the message has more than {REQUEST_ELEMENTS_MAX} array elements")]
    TooManyElements,
    /// A request that the guard has no table of.
    #[error("no table of the request's fields")]
    NoSchema,
}

/// A topic in a request or reply, named as that version of the API does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TopicRef {
    /// By name.
    Name(StrBytes),
    /// By the id that it was given at its creation.
    Id(Uuid),
}

/// Who leads a partition, sent along with an error that says that the asked broker does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CurrentLeader {
    /// The leader's broker id, -1 for unknown.
    pub leader_id: i32,
    /// Its epoch, -1 for unknown.
    pub leader_epoch: i32,
}

/// Where a broker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeEndpoint {
    /// The broker's id.
    pub node_id: i32,
    /// Its advertised host.
    pub host: String,
    /// Its advertised port.
    pub port: i32,
    /// Its rack.
    pub rack: Option<String>,
}

/// Reads the fields of one message.
pub struct Reader<'a> {
    frame: &'a Bytes,
    at: usize,
    end: usize,
    flexible: bool,
    elements: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `frame`. Flexible: compact lengths and tagged fields.
    pub fn new(frame: &'a Bytes, flexible: bool) -> Self {
        Self {
            frame,
            at: 0,
            end: frame.len(),
            flexible,
            elements: 0,
        }
    }

    /// Whether what follows has compact lengths and tagged fields.
    pub fn flexible(&mut self, flexible: bool) {
        self.flexible = flexible;
    }

    /// The number of bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.end - self.at
    }

    /// The position in the frame.
    pub fn position(&self) -> usize {
        self.at
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.frame[self.at..self.end]
            .first_chunk::<N>()
            .ok_or(Malformed::Truncated)?;
        self.at += N;
        Ok(*bytes)
    }

    /// Steps over `count` bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), Malformed> {
        if count > self.remaining() {
            return Err(Malformed::Truncated);
        }
        self.at += count;
        Ok(())
    }

    /// A signed byte.
    pub fn i8(&mut self) -> Result<i8, Malformed> {
        Ok(i8::from_be_bytes(self.take()?))
    }

    /// A signed 16-bit integer.
    pub fn i16(&mut self) -> Result<i16, Malformed> {
        Ok(i16::from_be_bytes(self.take()?))
    }

    /// A signed 32-bit integer.
    pub fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.take()?))
    }

    /// A signed 64-bit integer.
    pub fn i64(&mut self) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.take()?))
    }

    /// A UUID.
    pub fn uuid(&mut self) -> Result<Uuid, Malformed> {
        Ok(Uuid::from_bytes(self.take()?))
    }

    /// A variable-length unsigned integer.
    pub fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.take()?;
            value |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::VarInt)
    }

    /// A length or count: `None` for null.
    fn length(&mut self, short: bool) -> Result<Option<usize>, Malformed> {
        let length = if self.flexible {
            i64::from(self.unsigned_varint()?) - 1
        } else if short {
            i64::from(self.i16()?)
        } else {
            i64::from(self.i32()?)
        };
        match length {
            -1 => Ok(None),
            length => {
                let length = usize::try_from(length).map_err(|_| Malformed::Length)?;
                if length > self.remaining() {
                    Err(Malformed::Truncated)
                } else {
                    Ok(Some(length))
                }
            }
        }
    }

    fn slice(&mut self, length: usize) -> Bytes {
        let slice = self.frame.slice(self.at..self.at + length);
        self.at += length;
        slice
    }

    /// A byte string that may be null: a slice of the frame.
    pub fn nullable_bytes(&mut self) -> Result<Option<Bytes>, Malformed> {
        Ok(self.length(false)?.map(|length| self.slice(length)))
    }

    /// A string that may be null: a slice of the frame.
    pub fn nullable_string(&mut self) -> Result<Option<StrBytes>, Malformed> {
        match self.length(true)? {
            None => Ok(None),
            Some(length) => {
                let text = StrBytes::from_utf8(self.slice(length)).map_err(|_| Malformed::Utf8)?;
                Ok(Some(text))
            }
        }
    }

    /// A string.
    pub fn string(&mut self) -> Result<StrBytes, Malformed> {
        self.nullable_string()?.ok_or(Malformed::Length)
    }

    /// A topic by its id or its name.
    pub fn topic(&mut self, by_id: bool) -> Result<TopicRef, Malformed> {
        Ok(if by_id {
            TopicRef::Id(self.uuid()?)
        } else {
            TopicRef::Name(self.string()?)
        })
    }

    /// A string that may be null, looked at but not kept.
    pub fn skip_string(&mut self) -> Result<(), Malformed> {
        if let Some(length) = self.length(true)? {
            std::str::from_utf8(&self.frame[self.at..self.at + length])
                .map_err(|_| Malformed::Utf8)?;
            self.at += length;
        }
        Ok(())
    }

    /// A byte string that may be null, stepped over.
    pub fn skip_bytes(&mut self) -> Result<(), Malformed> {
        let length = self.length(false)?.unwrap_or(0);
        self.skip(length)
    }

    /// Counts array elements and tagged fields against the bound for one message.
    pub fn count_elements(&mut self, count: usize) -> Result<(), Malformed> {
        self.elements = self.elements.saturating_add(count);
        if self.elements > REQUEST_ELEMENTS_MAX {
            return Err(Malformed::TooManyElements);
        }
        Ok(())
    }

    /// The count of an array that may be null, checked against what remains.
    pub fn nullable_count(&mut self) -> Result<Option<usize>, Malformed> {
        let count = self.length(false)?;
        self.count_elements(count.unwrap_or(0))?;
        Ok(count)
    }

    /// An array that may be null.
    pub fn nullable_array<T>(
        &mut self,
        mut element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<Vec<T>>, Malformed> {
        let Some(count) = self.nullable_count()? else {
            return Ok(None);
        };
        // Grows as elements are read: a count alone allocates next to nothing.
        let mut elements = Vec::with_capacity(count.min(16));
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(Some(elements))
    }

    /// An array.
    pub fn array<T>(
        &mut self,
        element: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        self.nullable_array(element)?.ok_or(Malformed::Length)
    }

    /// The tagged fields that end every structure of a flexible message; what
    /// `field` leaves unread of one is skipped.
    pub fn tags(
        &mut self,
        mut field: impl FnMut(u32, &mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.flexible {
            return Ok(());
        }
        let count = self.unsigned_varint()? as usize;
        if count > self.remaining() {
            return Err(Malformed::Truncated);
        }
        self.count_elements(count)?;
        for _ in 0..count {
            let tag = self.unsigned_varint()?;
            let size = self.unsigned_varint()? as usize;
            if size > self.remaining() {
                return Err(Malformed::Truncated);
            }
            let outer_end = std::mem::replace(&mut self.end, self.at + size);
            field(tag, self)?;
            self.at = self.end;
            self.end = outer_end;
        }
        Ok(())
    }

    /// Steps over the tagged fields of a structure.
    pub fn skip_tags(&mut self) -> Result<(), Malformed> {
        self.tags(|_, _| Ok(()))
    }

    /// The content of a CurrentLeader field.
    pub fn current_leader(&mut self) -> Result<CurrentLeader, Malformed> {
        let leader_id = self.i32()?;
        let leader_epoch = self.i32()?;
        self.skip_tags()?;
        Ok(CurrentLeader {
            leader_id,
            leader_epoch,
        })
    }

    /// The content of a NodeEndpoints field.
    pub fn node_endpoints(&mut self) -> Result<Vec<NodeEndpoint>, Malformed> {
        self.array(|reader| {
            let node_id = reader.i32()?;
            let host = reader.string()?.to_string();
            let port = reader.i32()?;
            let rack = reader.nullable_string()?.map(|rack| rack.to_string());
            reader.skip_tags()?;
            Ok(NodeEndpoint {
                node_id,
                host,
                port,
                rack,
            })
        })
    }
}

/// Writes the fields of one message into chunks.
#[derive(Debug, Default)]
pub struct Writer {
    chunks: Vec<Bytes>,
    buffer: BytesMut,
    flexible: bool,
}

impl Writer {
    /// An empty message.
    pub fn new() -> Self {
        Self {
            chunks: Vec::new(),
            buffer: BytesMut::with_capacity(256),
            flexible: false,
        }
    }

    /// Whether what follows has compact lengths and tagged fields.
    pub fn flexible(&mut self, flexible: bool) {
        self.flexible = flexible;
    }

    /// The message, to be written chunk by chunk.
    pub fn into_chunks(mut self) -> Vec<Bytes> {
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.freeze());
        }
        self.chunks
    }

    /// The buffer that later fields go to, for encoders that write for themselves.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// A signed byte.
    pub fn i8(&mut self, value: i8) {
        self.buffer.put_i8(value);
    }

    /// A signed 16-bit integer.
    pub fn i16(&mut self, value: i16) {
        self.buffer.put_i16(value);
    }

    /// A signed 32-bit integer.
    pub fn i32(&mut self, value: i32) {
        self.buffer.put_i32(value);
    }

    /// A signed 64-bit integer.
    pub fn i64(&mut self, value: i64) {
        self.buffer.put_i64(value);
    }

    /// A variable-length unsigned integer.
    pub fn unsigned_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.buffer.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
    }

    fn length(&mut self, length: Option<usize>, short: bool) {
        let length = length.map_or(-1, |length| i32::try_from(length).unwrap_or(i32::MAX));
        if self.flexible {
            self.unsigned_varint((length + 1) as u32);
        } else if short {
            self.buffer.put_i16(length as i16);
        } else {
            self.buffer.put_i32(length);
        }
    }

    /// A string that may be null, cut at the protocol's longest.
    pub fn nullable_string(&mut self, value: Option<&str>) {
        let value = value.map(|text| &text[..text.floor_char_boundary(i16::MAX as usize)]);
        self.length(value.map(str::len), true);
        self.buffer.put_slice(value.unwrap_or_default().as_bytes());
    }

    /// A string.
    pub fn string(&mut self, value: &str) {
        self.nullable_string(Some(value));
    }

    /// A topic by its id or its name.
    ///
    /// # Panics
    /// When it is not named as the version wants it.
    pub fn topic(&mut self, topic: &TopicRef, by_id: bool) {
        match topic {
            TopicRef::Id(id) if by_id => self.buffer.put_slice(id.as_bytes()),
            TopicRef::Name(name) if !by_id => self.string(name),
            other => panic!("{other:?} in a message that names topics otherwise"),
        }
    }

    /// A byte string given in chunks, which are passed through uncopied unless they are small.
    pub fn nullable_bytes(&mut self, value: Option<&[Bytes]>) {
        self.length(
            value.map(|chunks| chunks.iter().map(Bytes::len).sum()),
            false,
        );
        for chunk in value.unwrap_or_default() {
            self.chunk(chunk);
        }
    }

    fn chunk(&mut self, chunk: &Bytes) {
        if chunk.len() <= WRITE_COPY_BYTES_MAX {
            self.buffer.put_slice(chunk);
            return;
        }
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.split().freeze());
        }
        self.chunks.push(chunk.clone());
    }

    /// An array that may be null.
    pub fn nullable_array<T>(
        &mut self,
        elements: Option<&[T]>,
        mut element: impl FnMut(&mut Self, &T),
    ) {
        self.length(elements.map(<[T]>::len), false);
        for value in elements.unwrap_or_default() {
            element(self, value);
        }
    }

    /// An array.
    pub fn array<T>(&mut self, elements: &[T], element: impl FnMut(&mut Self, &T)) {
        self.nullable_array(Some(elements), element);
    }

    /// The end of a structure that has no tagged fields.
    pub fn no_tags(&mut self) {
        self.tag_count(0);
    }

    /// The number of tagged fields that follow.
    pub fn tag_count(&mut self, count: usize) {
        if self.flexible {
            self.unsigned_varint(count as u32);
        }
    }

    /// The head of a tagged field whose content takes `bytes`.
    pub fn tag_header(&mut self, tag: u32, bytes: usize) {
        self.unsigned_varint(tag);
        self.unsigned_varint(bytes as u32);
    }

    /// A CurrentLeader field.
    pub fn current_leader_tag(&mut self, tag: u32, leader: &CurrentLeader) {
        self.tag_header(tag, 4 + 4 + 1);
        self.i32(leader.leader_id);
        self.i32(leader.leader_epoch);
        self.no_tags();
    }

    /// The end of a structure that has a NodeEndpoints field, left out when empty.
    pub fn node_endpoints_tag(&mut self, tag: u32, endpoints: &[NodeEndpoint]) {
        if endpoints.is_empty() {
            return self.no_tags();
        }
        let mut content = Writer::new();
        content.flexible(true);
        content.array(endpoints, |writer, endpoint| {
            writer.i32(endpoint.node_id);
            writer.string(&endpoint.host);
            writer.i32(endpoint.port);
            writer.nullable_string(endpoint.rack.as_deref());
            writer.no_tags();
        });
        self.tag_count(1);
        self.tag_header(tag, content.buffer.len());
        self.buffer.put_slice(&content.buffer);
    }
}
