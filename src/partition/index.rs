//! From a Kafka offset to the place of its entry in the Raft log.
//!
//! Raft's own entries and dead batches take no offset, so the two numberings
//! drift apart. A *position* says which offset an entry starts at; from there
//! a reader counts on over the live batches. The newest entries are all in
//! memory; behind them there is a point every [`POINT_BYTES`], of which the
//! recent ones are in memory too and all are in the group's key space.
//!
//! A dead batch is one that the machine refused or that was a duplicate: its
//! bytes are in the log and nobody may see them. That is rare; which batches
//! of an entry are dead is kept as a bitmap under the entry's index.
//!
//! Owned by the machine, read by everybody through [`super::view`]. Keys may be
//! queried before the store has them: an older point serves as well, and the
//! newest dead batches are in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::encoding::{Malformed, Reader, Writer};

/// Bytes of payload after which a point is made.
pub const POINT_BYTES: u64 = 64 * 1024;
/// Entries after which a point is made.
pub const POINT_ENTRIES: u32 = 256;
/// Newest entries whose positions are in memory.
pub const NEWEST_MAX: usize = 64;
/// Recent points in memory.
pub const POINTS_MAX: usize = 1024;
/// Entries with dead batches in memory.
pub const DEAD_MAX: usize = 4096;

const VALUE_VERSION: u8 = 1;
/// Prefix of the keys that find a point by offset.
pub const BY_OFFSET: &[u8] = b"o";
/// Prefix of the keys that find a point by timestamp.
pub const BY_TIMESTAMP: &[u8] = b"t";
/// Prefix of the keys that hold dead batches.
pub const DEAD: &[u8] = b"d";

/// Pairs for the group's key space.
pub type Keys = Vec<(Bytes, Option<Bytes>)>;

/// Where an entry starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its index in the Raft log.
    pub index: u64,
    /// The offset of its first live batch.
    pub base_offset: i64,
}

/// A position that also serves the search by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Where its entry starts.
    pub position: Position,
    /// The latest timestamp of all records before it, -1 if there is none.
    pub timestamp_before: i64,
}

impl Point {
    /// The two pairs that keep a point.
    fn keys(&self) -> [(Bytes, Option<Bytes>); 2] {
        let mut by_offset = Writer::default();
        by_offset.u8(VALUE_VERSION);
        by_offset.u64(self.position.index);
        by_offset.i64(self.timestamp_before);
        let mut by_timestamp = Writer::default();
        by_timestamp.u8(VALUE_VERSION);
        by_timestamp.u64(self.position.index);
        [
            (
                offset_key(self.position.base_offset),
                Some(by_offset.finish()),
            ),
            (
                timestamp_key(self.timestamp_before, self.position.base_offset),
                Some(by_timestamp.finish()),
            ),
        ]
    }
}

/// The key of the point at `base_offset`.
pub fn offset_key(base_offset: i64) -> Bytes {
    let mut key = Writer::default();
    key.bytes(BY_OFFSET);
    key.sorted_i64(base_offset);
    key.finish()
}

/// The key of the point at `base_offset` with `timestamp_before`.
pub fn timestamp_key(timestamp_before: i64, base_offset: i64) -> Bytes {
    let mut key = Writer::default();
    key.bytes(BY_TIMESTAMP);
    key.sorted_i64(timestamp_before);
    key.sorted_i64(base_offset);
    key.finish()
}

/// The key of the dead batches of an entry.
pub fn dead_key(index: u64) -> Bytes {
    let mut key = Writer::default();
    key.bytes(DEAD);
    key.u64(index);
    key.finish()
}

/// Reads a position back from a pair under [`offset_key`].
pub fn position_by_offset(key: &[u8], value: &[u8]) -> Result<Position, Malformed> {
    let mut key = Reader::of(key.strip_prefix(BY_OFFSET).ok_or(Malformed("offset key"))?);
    let base_offset = key.sorted_i64()?;
    key.finish()?;
    Ok(Position {
        index: index_of_value(value)?,
        base_offset,
    })
}

/// The [`timestamp_key`] of the point that a pair under [`offset_key`] keeps.
pub fn timestamp_key_of(key: &[u8], value: &[u8]) -> Result<Bytes, Malformed> {
    let position = position_by_offset(key, value)?;
    let mut value = Reader::of(value);
    value.u8()?;
    value.u64()?;
    Ok(timestamp_key(value.i64()?, position.base_offset))
}

/// Reads a position back from a pair under [`timestamp_key`].
pub fn position_by_timestamp(key: &[u8], value: &[u8]) -> Result<Position, Malformed> {
    let mut key = Reader::of(
        key.strip_prefix(BY_TIMESTAMP)
            .ok_or(Malformed("timestamp key"))?,
    );
    key.sorted_i64()?;
    let base_offset = key.sorted_i64()?;
    key.finish()?;
    Ok(Position {
        index: index_of_value(value)?,
        base_offset,
    })
}

fn index_of_value(value: &[u8]) -> Result<u64, Malformed> {
    let mut value = Reader::of(value);
    if value.u8()? != VALUE_VERSION {
        return Err(Malformed("version of an index point"));
    }
    value.u64()
}

/// Reads dead batches back from a pair under [`dead_key`].
pub fn dead_of_pair(key: &[u8], value: &[u8]) -> Result<(u64, DeadBatches), Malformed> {
    let mut key = Reader::of(
        key.strip_prefix(DEAD)
            .ok_or(Malformed("dead batches key"))?,
    );
    let index = key.u64()?;
    let mut value = Reader::of(value);
    if value.u8()? != VALUE_VERSION {
        return Err(Malformed("version of dead batches"));
    }
    Ok((
        index,
        DeadBatches {
            bits: value.rest().into(),
        },
    ))
}

/// Which batches of one entry are dead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadBatches {
    bits: Arc<[u8]>,
}

impl DeadBatches {
    /// From the places of the dead batches in their entry.
    pub fn of(places: &[usize]) -> DeadBatches {
        let last = places.iter().max().map_or(0, |last| last / 8 + 1);
        let mut bits = vec![0u8; last];
        for place in places {
            bits[place / 8] |= 1 << (place % 8);
        }
        DeadBatches { bits: bits.into() }
    }

    /// Whether the batch at `place` in its entry is dead.
    pub fn contains(&self, place: usize) -> bool {
        self.bits
            .get(place / 8)
            .is_some_and(|byte| byte & (1 << (place % 8)) != 0)
    }

    fn value(&self) -> Bytes {
        let mut value = Writer::default();
        value.u8(VALUE_VERSION);
        value.bytes(&self.bits);
        value.finish()
    }
}

/// The dead batches that a reader of some entries has to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeadRange {
    /// All of them.
    Known(BTreeMap<u64, DeadBatches>),
    /// Some are in the store only.
    Stored,
}

/// The index in memory.
#[derive(Clone, Debug, Default)]
pub struct OffsetIndex {
    newest: VecDeque<Position>,
    points: VecDeque<Point>,
    bytes_since_point: u64,
    entries_since_point: u32,
    has_point: bool,
    dead: BTreeMap<u64, DeadBatches>,
    /// Dead batches of entries from here on are all in `dead`.
    dead_from: u64,
    /// The last entry before `dead_from` that has dead batches.
    dead_stored_last: Option<u64>,
}

impl OffsetIndex {
    /// Adds an entry that has live batches.
    pub fn add(
        &mut self,
        position: Position,
        timestamp_before: i64,
        payload_bytes: u64,
        keys: &mut Keys,
    ) {
        if !self.has_point
            || self.bytes_since_point >= POINT_BYTES
            || self.entries_since_point >= POINT_ENTRIES
        {
            self.add_point(position, timestamp_before, keys);
            (
                self.has_point,
                self.bytes_since_point,
                self.entries_since_point,
            ) = (true, 0, 0);
        }
        self.step_over(payload_bytes);
        if self.newest.len() == NEWEST_MAX {
            self.newest.pop_front();
        }
        self.newest.push_back(position);
    }

    /// Adds a point to begin reading at.
    pub fn add_point(&mut self, position: Position, timestamp_before: i64, keys: &mut Keys) {
        let point = Point {
            position,
            timestamp_before,
        };
        keys.extend(point.keys());
        if self.points.len() == POINTS_MAX {
            self.points.pop_front();
        }
        self.points.push_back(point);
    }

    /// Counts an entry without live batches, which a reader has to step over.
    pub fn step_over(&mut self, payload_bytes: u64) {
        self.bytes_since_point += payload_bytes;
        self.entries_since_point = self.entries_since_point.saturating_add(1);
    }

    /// Adds the dead batches of an entry.
    pub fn add_dead(&mut self, index: u64, dead: DeadBatches, keys: &mut Keys) {
        keys.push((dead_key(index), Some(dead.value())));
        self.dead.insert(index, dead);
        if self.dead.len() > DEAD_MAX
            && let Some((oldest, _)) = self.dead.pop_first()
        {
            self.dead_from = oldest + 1;
            self.dead_stored_last = Some(oldest);
        }
    }

    /// The last position known in memory at or before `offset`.
    pub fn position(&self, offset: i64) -> Option<Position> {
        let newest = self
            .newest
            .partition_point(|position| position.base_offset <= offset);
        if newest > 0 {
            return Some(self.newest[newest - 1]);
        }
        let points = self
            .points
            .partition_point(|point| point.position.base_offset <= offset);
        points
            .checked_sub(1)
            .map(|place| self.points[place].position)
    }

    /// The last position known in memory before which no record is as late as `timestamp`.
    pub fn position_by_time(&self, timestamp: i64) -> Option<Position> {
        let points = self
            .points
            .partition_point(|point| point.timestamp_before < timestamp);
        points
            .checked_sub(1)
            .map(|place| self.points[place].position)
    }

    /// The dead batches of the entries `from..to`.
    pub fn dead(&self, from: u64, to: u64) -> DeadRange {
        if from < self.dead_from && self.dead_stored_last.is_some_and(|last| last >= from) {
            return DeadRange::Stored;
        }
        DeadRange::Known(self.dead_in_memory(from, to))
    }

    /// Those dead batches of the entries `from..to` that are in memory.
    pub fn dead_in_memory(&self, from: u64, to: u64) -> BTreeMap<u64, DeadBatches> {
        if self.dead.is_empty() || from >= to {
            return BTreeMap::new();
        }
        self.dead
            .range(from..to)
            .map(|(at, dead)| (*at, dead.clone()))
            .collect()
    }

    /// Writes what can't be found again into a checkpoint.
    pub fn encode(&self, writer: &mut Writer) {
        writer.u8(u8::from(self.has_point));
        writer.u64(self.bytes_since_point);
        writer.count(self.entries_since_point as usize);
        let dead_last = self.dead.last_key_value().map(|(index, _)| *index);
        writer.u64(
            dead_last
                .or(self.dead_stored_last)
                .map_or(0, |index| index + 1),
        );
    }

    /// Reads a checkpoint whose last entry is at `index`.
    pub fn decode(index: u64, reader: &mut Reader<'_>) -> Result<OffsetIndex, Malformed> {
        Ok(OffsetIndex {
            has_point: reader.u8()? != 0,
            bytes_since_point: reader.u64()?,
            entries_since_point: reader.count()? as u32,
            dead_stored_last: reader.u64()?.checked_sub(1),
            dead_from: index + 1,
            ..OffsetIndex::default()
        })
    }
}
