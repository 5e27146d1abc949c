//! Reading committed records from an offset on.
//!
//! What is in the tail cache is served without waiting and without a copy: a
//! chunk with the patched 16 bytes of a batch's header, then a slice of the
//! entry as it was received. Batches that are smaller than a chunk is worth
//! are copied together. Older records come from the store, on a blocking thread.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::{BufMut, Bytes, BytesMut};
use drave_raft::Group;
use drave_storage::{Entry, SharedStore, StorageError};

use super::batches::{Batch, Batches, PATCHED_BYTES};
use super::command;
use super::encoding::Malformed;
use super::index::{self, DeadBatches, DeadRange, Position};
use super::view::PartitionView;

/// Batches up to this size are copied next to each other: cheaper than a chunk each.
pub const COPIED_BYTES_MAX: usize = 1024;
/// The least that is asked of the store at once.
const READ_BYTES_MIN: usize = 64 * 1024;
/// Dead batches are looked up for at most this many entries at once.
const DEAD_SCAN_MAX: usize = 4096;

/// Where a partition's log is.
pub trait LogSource {
    /// See [`drave_storage::LogStore::read_tail`].
    fn tail(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>>;

    /// See [`drave_storage::LogStore::read`]. Blocks.
    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, StorageError>;

    /// See [`drave_storage::LogStore::get_at_or_before`]. Blocks.
    fn key_at_or_before(
        &self,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError>;

    /// See [`drave_storage::LogStore::scan`]. Blocks.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError>;
}

/// The log of a replica that is open on this node.
#[derive(Clone)]
pub struct ReplicaLog {
    /// Its group.
    pub group: Group,
    /// The store that holds its index.
    pub store: SharedStore,
}

impl LogSource for ReplicaLog {
    fn tail(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        self.group.read_tail(from, to, bytes_max)
    }

    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        self.group.read_blocking(from, to, bytes_max)
    }

    fn key_at_or_before(
        &self,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.store.get_at_or_before(self.group.id(), prefix, key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.store.scan(self.group.id(), from, to, count_max)
    }
}

/// Why records can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The partition's index is damaged.
    #[error("a partition's index: {0}")]
    Index(#[from] Malformed),
    /// The offset is not in the log, which goes from the first to the second.
    #[error("offset {wanted} is not within {start}..={end}")]
    OutOfRange {
        /// The offset asked for.
        wanted: i64,
        /// The first offset that can be read.
        start: i64,
        /// The high watermark.
        end: i64,
    },
    /// The broker is stopping.
    #[error("the broker is stopping")]
    Stopping,
}

/// What is wanted of a partition.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// From the batch that holds this offset.
    pub offset: i64,
    /// At most this many bytes.
    pub bytes_max: usize,
    /// But one batch, however large.
    pub at_least_one: bool,
}

/// Records that were read: whole batches, ready for the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The batches, in chunks.
    pub chunks: Vec<Bytes>,
    /// Bytes of all chunks.
    pub bytes: usize,
}

/// What a read from memory came to.
#[derive(Debug)]
pub enum TailRead {
    /// It was served.
    Records(Records),
    /// It has to be read by [`read_stored`].
    Stored,
}

/// Reads from memory only; never waits.
pub fn read_tail(
    view: &PartitionView,
    log: &impl LogSource,
    wanted: Wanted,
) -> Result<TailRead, ReadError> {
    let start = view.start(wanted.offset);
    check_range(view, wanted.offset, start.high_watermark)?;
    if wanted.offset == start.high_watermark {
        return Ok(TailRead::Records(Records::default()));
    }
    let Some(position) = start.position else {
        return Ok(TailRead::Stored);
    };
    let DeadRange::Known(dead) = view.dead(position.index, start.applied_end) else {
        return Ok(TailRead::Stored);
    };
    let mut collector = Collector::new(wanted, position, dead);
    while collector.next_index < start.applied_end {
        let bytes_max = collector.bytes_left().max(READ_BYTES_MIN);
        match log.tail(collector.next_index, start.applied_end, bytes_max) {
            Some(entries) if !entries.is_empty() => {
                if collector.take(&entries).is_break() {
                    break;
                }
            }
            _ if collector.began() => break,
            _ => return Ok(TailRead::Stored),
        }
    }
    Ok(TailRead::Records(collector.finish()))
}

/// Reads from memory or disk. Blocks.
pub fn read_stored(
    view: &PartitionView,
    log: &impl LogSource,
    wanted: Wanted,
) -> Result<Records, ReadError> {
    let start = view.start(wanted.offset);
    check_range(view, wanted.offset, start.high_watermark)?;
    if wanted.offset == start.high_watermark {
        return Ok(Records::default());
    }
    let position = position(view, log, wanted.offset)?;
    let mut collector = Collector::new(wanted, position, BTreeMap::new());
    while collector.next_index < start.applied_end {
        let bytes_max = collector.bytes_left().max(READ_BYTES_MIN);
        let entries = match log.entries(collector.next_index, start.applied_end, bytes_max) {
            Ok(entries) => entries,
            // What comes before a damaged entry is served.
            Err(StorageError::Corrupt { .. }) if collector.began() => break,
            Err(error) => return Err(error.into()),
        };
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            break;
        };
        if first.index != collector.next_index {
            break;
        }
        collector.dead = dead_batches(view, log, first.index, last.index + 1)?;
        if collector.take(&entries).is_break() {
            break;
        }
    }
    Ok(collector.finish())
}

/// Where a log without points starts.
const FIRST: Position = Position {
    index: 0,
    base_offset: 0,
};

fn check_range(view: &PartitionView, wanted: i64, end: i64) -> Result<(), ReadError> {
    let start = view.log_start_offset();
    if wanted < start || wanted > end {
        return Err(ReadError::OutOfRange { wanted, start, end });
    }
    Ok(())
}

/// A position at or before `offset` that is in the log if the offset is. May block.
pub fn position(
    view: &PartitionView,
    log: &impl LogSource,
    offset: i64,
) -> Result<Position, ReadError> {
    match view.start(offset).position {
        Some(position) => Ok(position),
        None => Ok(stored_position(log, offset)?.unwrap_or(FIRST)),
    }
}

fn stored_position(log: &impl LogSource, offset: i64) -> Result<Option<Position>, ReadError> {
    match log.key_at_or_before(index::BY_OFFSET, &index::offset_key(offset))? {
        Some((key, value)) => Ok(Some(index::position_by_offset(&key, &value)?)),
        None => Ok(None),
    }
}

/// The dead batches of the entries `from..to`, from memory or disk.
fn dead_batches(
    view: &PartitionView,
    log: &impl LogSource,
    from: u64,
    to: u64,
) -> Result<BTreeMap<u64, DeadBatches>, ReadError> {
    if let DeadRange::Known(dead) = view.dead(from, to) {
        return Ok(dead);
    }
    let mut dead = BTreeMap::new();
    let (mut key, end) = (index::dead_key(from), index::dead_key(to));
    loop {
        let pairs = log.scan(&key, &end, DEAD_SCAN_MAX)?;
        for (key, value) in &pairs {
            let (at, batches) = index::dead_of_pair(key, value)?;
            dead.insert(at, batches);
        }
        match dead.last_key_value() {
            Some((last, _)) if pairs.len() == DEAD_SCAN_MAX => key = index::dead_key(last + 1),
            _ => break,
        }
    }
    // The newest may be in memory only.
    dead.extend(view.read().index.dead_in_memory(from, to));
    Ok(dead)
}

/// A live batch on its way out of the log.
pub struct LiveBatch<'a> {
    /// The entry it is in.
    pub entry: &'a Entry,
    /// Its bytes, as they are stored.
    pub batch: Batch<'a>,
    /// The offset of its first record.
    pub base_offset: i64,
}

/// Visits the live batches of `entries`, which start at `base_offset`, and
/// moves that on over those visited.
fn visit<'a>(
    entries: &'a [Entry],
    dead: &BTreeMap<u64, DeadBatches>,
    base_offset: &mut i64,
    mut visitor: impl FnMut(LiveBatch<'a>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for entry in entries {
        if !command::is_append(entry.tag) {
            continue;
        }
        let dead = dead.get(&entry.index);
        for (place, batch) in Batches::of(&entry.payload).enumerate() {
            if dead.is_some_and(|dead| dead.contains(place)) {
                continue;
            }
            visitor(LiveBatch {
                entry,
                batch,
                base_offset: *base_offset,
            })?;
            *base_offset += batch.offset_count();
        }
    }
    ControlFlow::Continue(())
}

/// Visits the live batches from `position` to the end of what is applied,
/// until the visitor breaks. Blocks.
pub fn scan_from(
    view: &PartitionView,
    log: &impl LogSource,
    position: Position,
    mut visitor: impl FnMut(LiveBatch<'_>) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let applied_end = view.read().applied_end;
    let (mut next_index, mut base_offset) = (position.index, position.base_offset);
    while next_index < applied_end {
        let entries = log.entries(next_index, applied_end, 4 * READ_BYTES_MIN)?;
        let Some(last) = entries.last() else { break };
        let dead = dead_batches(view, log, next_index, last.index + 1)?;
        if visit(&entries, &dead, &mut base_offset, &mut visitor).is_break() {
            break;
        }
        next_index = last.index + 1;
    }
    Ok(())
}

/// Gathers the batches that were wanted.
struct Collector {
    wanted: Wanted,
    next_index: u64,
    base_offset: i64,
    dead: BTreeMap<u64, DeadBatches>,
    heads: BytesMut,
    records: Records,
}

impl Collector {
    fn new(wanted: Wanted, position: Position, dead: BTreeMap<u64, DeadBatches>) -> Collector {
        Collector {
            wanted,
            next_index: position.index,
            base_offset: position.base_offset,
            dead,
            heads: BytesMut::new(),
            records: Records::default(),
        }
    }

    fn bytes_left(&self) -> usize {
        self.wanted.bytes_max.saturating_sub(self.records.bytes)
    }

    fn began(&self) -> bool {
        self.records.bytes > 0
    }

    fn take(&mut self, entries: &[Entry]) -> ControlFlow<()> {
        let (mut base_offset, wanted) = (self.base_offset, self.wanted);
        let (heads, records) = (&mut self.heads, &mut self.records);
        let flow = visit(entries, &self.dead, &mut base_offset, |live| {
            if live.base_offset + live.batch.offset_count() <= wanted.offset {
                return ControlFlow::Continue(());
            }
            let bytes = live.batch.bytes.len();
            let first = records.bytes == 0 && wanted.at_least_one;
            if !first && records.bytes + bytes > wanted.bytes_max {
                return ControlFlow::Break(());
            }
            push_patched(&live, heads, records);
            if records.bytes >= wanted.bytes_max {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        self.base_offset = base_offset;
        if let Some(last) = entries.last() {
            self.next_index = last.index + 1;
        }
        flow
    }

    fn finish(mut self) -> Records {
        if !self.heads.is_empty() {
            self.records.chunks.push(self.heads.freeze());
        }
        self.records
    }
}

/// Adds a batch with its offset and leader epoch.
fn push_patched(live: &LiveBatch<'_>, heads: &mut BytesMut, records: &mut Records) {
    let bytes = live.batch.bytes;
    records.bytes += bytes.len();
    heads.reserve(
        PATCHED_BYTES
            + if bytes.len() <= COPIED_BYTES_MAX {
                bytes.len()
            } else {
                0
            },
    );
    heads.put_i64(live.base_offset);
    heads.put_slice(&bytes[8..12]);
    heads.put_i32(i32::try_from(live.entry.term).unwrap_or(i32::MAX));
    if bytes.len() <= COPIED_BYTES_MAX {
        heads.put_slice(&bytes[PATCHED_BYTES..]);
        return;
    }
    records.chunks.push(heads.split().freeze());
    let start = live.batch.start;
    records.chunks.push(
        live.entry
            .payload
            .slice(start + PATCHED_BYTES..start + bytes.len()),
    );
}
