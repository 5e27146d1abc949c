//! The bytes of one file: the backing file holds what a reader sees now, and
//! beside it is kept what it takes to go back to the last sync. Appended bytes
//! need nothing but the old size; an overwritten page is kept as it was.

use super::extents::Extents;
use super::images::{Before, Images, PAGE_BYTES, Page};
use super::space::Space;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What all files of a disk share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) images: Images,
    pub(super) space: std::sync::Arc<Space>,
}

/// The state of a file's bytes.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) durable_size: u64,
    /// What pages held at the last sync, where they hold something else now.
    /// Pages beyond the durable size are here only after a failed sync.
    pub(super) before: BTreeMap<u64, Before>,
    /// Pages of `before` that a failed sync left marked clean, so that no later
    /// sync writes them, unless they are written to again.
    pub(super) lost: BTreeSet<u64>,
    allocated: Extents,
}

/// The first page that begins at or after `offset`.
fn page_up(offset: u64) -> u64 {
    offset.div_ceil(PAGE_BYTES)
}

impl Content {
    /// A file that was there before: all of it is durable.
    pub(super) fn of(file: &File, space: &Space) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut allocated = Extents::default();
        let mut offset = 0;
        while offset < size {
            use rustix::fs::{SeekFrom, seek};
            let data = match seek(file, SeekFrom::Data(offset)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            offset = seek(file, SeekFrom::Hole(data))?;
            allocated.insert(data / PAGE_BYTES, page_up(offset));
        }
        space.occupy(allocated.pages());
        Ok(Self {
            size,
            durable_size: size,
            allocated,
            ..Self::default()
        })
    }

    /// Writes at `offset` as much of `data` as there is room for.
    pub(super) fn write(
        &mut self,
        file: &File,
        offset: u64,
        data: &[u8],
        shared: &Shared,
    ) -> io::Result<usize> {
        let whole = offset
            .checked_add(data.len() as u64)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or(Errno::FBIG)?;
        if data.is_empty() {
            return Ok(0);
        }
        let end = self.make_room(offset, whole, &shared.space)?;
        let data = &data[..(end - offset) as usize];
        self.touch(file, offset, end, &shared.images)?;
        file.write_all_at(data, offset)?;
        self.size = self.size.max(end);
        Ok(data.len())
    }

    /// Takes space for `offset..end` and says how far it reaches.
    fn make_room(&mut self, offset: u64, end: u64, space: &Space) -> io::Result<u64> {
        let (first, last) = (offset / PAGE_BYTES, page_up(end));
        let wanted = self.allocated.missing(first, last);
        let mut left = space.take(wanted);
        if left == wanted {
            self.allocated.insert(first, last);
            return Ok(end);
        }
        let mut reached = first;
        while reached < last {
            let missing = self.allocated.missing(reached, reached + 1);
            if missing > left {
                break;
            }
            left -= missing;
            reached += 1;
        }
        self.allocated.insert(first, reached);
        if reached == first {
            return Err(Errno::NOSPC.into());
        }
        Ok(end.min(reached * PAGE_BYTES))
    }

    fn give_up(&mut self, first: u64, last: u64, space: &Space) {
        let pages = self.allocated.pages();
        self.allocated.remove(first, last);
        space.give(pages - self.allocated.pages());
    }

    /// Gives all its space back: the file has no name any more.
    pub(super) fn give_up_all(&mut self, space: &Space) {
        self.give_up(0, u64::MAX, space);
    }

    /// Pages that have space.
    pub(super) fn pages(&self) -> u64 {
        self.allocated.pages()
    }

    /// Sets the size.
    pub(super) fn truncate(&mut self, file: &File, size: u64, shared: &Shared) -> io::Result<()> {
        if size < self.size {
            self.touch(file, size, self.size, &shared.images)?;
        }
        file.set_len(size)?;
        self.size = size;
        self.give_up(page_up(size), u64::MAX, &shared.space);
        Ok(())
    }

    /// Allocates, punches holes or writes zeros, as fallocate(2) does.
    pub(super) fn allocate(
        &mut self,
        file: &File,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
        shared: &Shared,
    ) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(Errno::FBIG)?;
        let keep_size = mode.contains(FallocateFlags::KEEP_SIZE);
        let kind = mode - FallocateFlags::KEEP_SIZE;
        let punch = kind == FallocateFlags::PUNCH_HOLE && keep_size;
        if !(punch || kind.is_empty() || kind == FallocateFlags::ZERO_RANGE) {
            return Err(Errno::OPNOTSUPP.into());
        }
        if !kind.is_empty() && offset < self.size {
            self.touch(file, offset, end.min(self.size), &shared.images)?;
        }
        if punch {
            rustix::fs::fallocate(file, mode, offset, length)?;
            self.give_up(page_up(offset), end / PAGE_BYTES, &shared.space);
            return Ok(());
        }
        let (first, last) = (offset / PAGE_BYTES, page_up(end));
        let wanted = self.allocated.missing(first, last);
        let granted = shared.space.take(wanted);
        if granted < wanted {
            shared.space.give(granted);
            return Err(Errno::NOSPC.into());
        }
        if let Err(error) = rustix::fs::fallocate(file, mode, offset, length) {
            shared.space.give(granted);
            return Err(error.into());
        }
        self.allocated.insert(first, last);
        if !keep_size {
            self.size = self.size.max(end);
        }
        Ok(())
    }

    /// Keeps the pages of `start..end` as they are, before they change.
    fn touch(&mut self, file: &File, start: u64, end: u64, images: &Images) -> io::Result<()> {
        let (first, last) = (start / PAGE_BYTES, page_up(end));
        let marked: Vec<u64> = self.lost.range(first..last).copied().collect();
        for page in marked {
            self.lost.remove(&page);
        }
        for page in first..last.min(page_up(self.durable_size)) {
            self.keep(file, page, images)?;
        }
        Ok(())
    }

    /// Keeps a page as it was at the last sync, unless that is kept already.
    fn keep(&mut self, file: &File, page: u64, images: &Images) -> io::Result<()> {
        if self.before.contains_key(&page) {
            return Ok(());
        }
        let start = page * PAGE_BYTES;
        let length = self.durable_size.saturating_sub(start).min(PAGE_BYTES) as usize;
        let mut bytes: Page = [0; PAGE_BYTES as usize];
        read_to_end(file, &mut bytes[..length], start)?;
        self.before.insert(page, images.save(&bytes)?);
        Ok(())
    }

    /// Makes all that is written durable, except what a failed sync has lost.
    pub(super) fn sync(&mut self, images: &Images) -> io::Result<()> {
        self.lost.split_off(&page_up(self.size));
        let kept = (self.size % PAGE_BYTES) as usize;
        if let Some(last) = self.before.get_mut(&(self.size / PAGE_BYTES))
            && self.lost.contains(&(self.size / PAGE_BYTES))
        {
            // What was there beyond the new size is gone for good.
            let mut bytes = images.load(last)?;
            bytes[kept..].fill(0);
            images.release(std::mem::replace(last, images.save(&bytes)?));
        }
        let lost = &self.lost;
        for (_, before) in self.before.extract_if(.., |page, _| !lost.contains(page)) {
            images.release(before);
        }
        self.durable_size = self.size;
        Ok(())
    }

    /// A sync that fails: as in Linux nothing becomes durable, and the pages
    /// that should have are marked clean, so that the next sync passes them over.
    pub(super) fn fail_sync(&mut self, file: &File, images: &Images) -> io::Result<()> {
        if self.size > self.durable_size {
            for page in self.durable_size / PAGE_BYTES..page_up(self.size) {
                self.keep(file, page, images)?;
            }
        }
        self.lost.extend(self.before.keys());
        Ok(())
    }

    /// Forgets the way back: the file is gone.
    pub(super) fn forget(&mut self, images: &Images) {
        self.lost.clear();
        for (_, before) in std::mem::take(&mut self.before) {
            images.release(before);
        }
    }

    /// True when a power cut would change nothing.
    pub(super) fn is_durable(&self) -> bool {
        self.before.is_empty() && self.size == self.durable_size
    }

    /// Bytes that a power cut would take: whole pages, and what was appended.
    pub(super) fn bytes_not_durable(&self) -> u64 {
        let overwritten = self.before.range(..page_up(self.durable_size)).count() as u64;
        overwritten * PAGE_BYTES + self.size.saturating_sub(self.durable_size)
    }
}

/// Fills `bytes` from `offset`; what is beyond the file's end stays as it is.
pub(super) fn read_to_end(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
