//! What pages held before they were changed, kept in a nameless file beside the
//! data: the memory that unsynced changes need is an entry of a map for each
//! page, however much was overwritten, and the space is given back at the sync.

use parking_lot::Mutex;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The unit in which changes are remembered, and lost.
pub(super) const PAGE_BYTES: u64 = 4096;

/// One page of bytes.
pub(super) type Page = [u8; PAGE_BYTES as usize];

/// Slots worth shortening the file for, once nothing is kept in it.
const SLOTS_KEPT: u64 = 1024;

/// What a page held at the last sync.
#[derive(Debug)]
pub(super) enum Before {
    /// Nothing but zeros.
    Zeros,
    /// The bytes in this slot.
    Slot(u64),
}

/// The file of slots; each holds a page.
#[derive(Debug)]
pub(super) struct Images {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    used_to: u64,
    free: Vec<u64>,
}

impl Images {
    /// Makes the file in `folder`.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let path = folder.join("images");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        std::fs::remove_file(&path)?;
        let slots = Mutex::default();
        Ok(Self { file, slots })
    }

    /// Keeps a page.
    pub(super) fn save(&self, page: &Page) -> io::Result<Before> {
        if page.iter().all(|byte| *byte == 0) {
            return Ok(Before::Zeros);
        }
        let slot = {
            let mut slots = self.slots.lock();
            slots.free.pop().unwrap_or_else(|| {
                slots.used_to += 1;
                slots.used_to - 1
            })
        };
        if let Err(error) = self.file.write_all_at(page, slot * PAGE_BYTES) {
            self.release(Before::Slot(slot));
            return Err(error);
        }
        Ok(Before::Slot(slot))
    }

    /// Gives the bytes of a page back.
    pub(super) fn load(&self, before: &Before) -> io::Result<Page> {
        let mut page = [0; PAGE_BYTES as usize];
        if let Before::Slot(slot) = before {
            self.file.read_exact_at(&mut page, slot * PAGE_BYTES)?;
        }
        Ok(page)
    }

    /// Forgets a page.
    pub(super) fn release(&self, before: Before) {
        let Before::Slot(slot) = before else {
            return;
        };
        let mut slots = self.slots.lock();
        slots.free.push(slot);
        let idle = slots.free.len() as u64 == slots.used_to;
        // Only the room is at stake: when the file can't be shortened it is used as it is.
        if idle && slots.used_to > SLOTS_KEPT && self.file.set_len(0).is_ok() {
            *slots = Slots::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_the_file_shrinks() {
        let folder = tempfile::tempdir().expect("a folder");
        let images = Images::create(folder.path()).expect("a file");
        let page = |number: u64| [(number % 250) as u8 + 1; PAGE_BYTES as usize];
        for _ in 0..2 {
            let kept: Vec<Before> = (0..SLOTS_KEPT + 1)
                .map(|number| images.save(&page(number)).expect("saved"))
                .collect();
            for (number, before) in (0..).zip(&kept) {
                assert_eq!(images.load(before).expect("loaded"), page(number));
            }
            let bytes = images.file.metadata().expect("a size").len();
            assert_eq!(bytes, (SLOTS_KEPT + 1) * PAGE_BYTES);
            kept.into_iter().for_each(|before| images.release(before));
            assert_eq!(images.file.metadata().expect("a size").len(), 0);
        }
        let zeros = images.save(&[0; PAGE_BYTES as usize]).expect("saved");
        assert!(matches!(zeros, Before::Zeros));
    }
}
