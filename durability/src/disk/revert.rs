//! What a power cut does to the bytes of one file: back to the last sync, or,
//! where writes may be torn, to a mixture of then and now.

use super::Torn;
use super::content::{Content, read_to_end};
use super::images::{Before, Images, PAGE_BYTES};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

impl Content {
    /// Puts the file into the state that the power cut leaves, and says how many
    /// bytes of the last sync's state were put back or cut off.
    pub(super) fn revert(
        &self,
        file: &File,
        images: &Images,
        torn: Torn,
        chance: &mut StdRng,
    ) -> io::Result<u64> {
        let mut revert = Revert {
            content: self,
            file,
            size: self.durable_size,
            bytes: 0,
        };
        match torn.unit_bytes() {
            None => revert.go_back(images)?,
            Some(unit) => revert.mix(images, unit, chance)?,
        }
        file.set_len(revert.size)?;
        Ok(revert.bytes)
    }
}

struct Revert<'a> {
    content: &'a Content,
    file: &'a File,
    /// The size that is left.
    size: u64,
    /// Bytes that are not what they were before the cut.
    bytes: u64,
}

impl Revert<'_> {
    fn go_back(&mut self, images: &Images) -> io::Result<()> {
        for (page, before) in &self.content.before {
            self.put_back(*page, before, images)?;
        }
        self.bytes += self.content.size.saturating_sub(self.size);
        Ok(())
    }

    fn put_back(&mut self, page: u64, before: &Before, images: &Images) -> io::Result<()> {
        let start = page * PAGE_BYTES;
        let length = self.size.saturating_sub(start).min(PAGE_BYTES);
        let bytes = images.load(before)?;
        self.file.write_all_at(&bytes[..length as usize], start)?;
        self.bytes += length;
        Ok(())
    }

    /// Each unit that was changed since the sync is either the new one or the
    /// old one, by chance. Units that a failed sync has lost are old ones.
    fn mix(&mut self, images: &Images, unit: u64, chance: &mut StdRng) -> io::Result<()> {
        let (now, then) = (self.content.size, self.content.durable_size);
        let shortened = now < then;
        if shortened && chance.random::<bool>() {
            self.size = now;
        }
        let mut reached = 0;
        for (page, before) in &self.content.before {
            let start = page * PAGE_BYTES;
            let cut_off = shortened && self.size == then && start + PAGE_BYTES > now;
            let only_old = cut_off || self.content.lost.contains(page);
            let mut mixed = images.load(before)?;
            let mut new = [0; PAGE_BYTES as usize];
            read_to_end(self.file, &mut new, start)?;
            let units = mixed
                .chunks_exact_mut(unit as usize)
                .zip(new.chunks_exact(unit as usize));
            for ((old, new), end) in units.zip(1..) {
                if !only_old && chance.random::<bool>() {
                    old.copy_from_slice(new);
                    reached = reached.max(start + end * unit);
                } else {
                    self.bytes += unit;
                }
            }
            self.file.write_all_at(&mixed, start)?;
        }
        if !shortened {
            let appended = self.lose_appended(unit, chance)?;
            self.size = reached.max(appended).min(now).max(then);
        }
        Ok(())
    }

    /// Zeros, by chance, units that were appended since the sync; says where the
    /// last that is left ends.
    fn lose_appended(&mut self, unit: u64, chance: &mut StdRng) -> io::Result<u64> {
        let (now, then) = (self.content.size, self.content.durable_size);
        let mut reached = 0;
        let mut gone = then..then;
        let mut start = then / unit * unit;
        while start < now {
            let end = start + unit;
            if !self.content.before.contains_key(&(start / PAGE_BYTES)) {
                if chance.random::<bool>() {
                    reached = end;
                } else {
                    if gone.end != start {
                        self.zero(gone.start, gone.end)?;
                        gone.start = start.max(then);
                    }
                    gone.end = end;
                    self.bytes += end.min(now) - start.max(then);
                }
            }
            start = end;
        }
        self.zero(gone.start, gone.end)?;
        Ok(reached)
    }

    fn zero(&self, start: u64, end: u64) -> io::Result<()> {
        if start >= end {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file, punch, start, end - start) {
            Err(Errno::OPNOTSUPP) => {}
            done => return Ok(done?),
        }
        let zeros = [0; PAGE_BYTES as usize];
        let mut offset = start;
        while offset < end {
            let length = (end - offset).min(PAGE_BYTES);
            self.file.write_all_at(&zeros[..length as usize], offset)?;
            offset += length;
        }
        Ok(())
    }
}
