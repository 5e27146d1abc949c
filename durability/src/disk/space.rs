//! How full the disk is: pages used, and how many there may be.

use super::images::PAGE_BYTES;
use parking_lot::Mutex;

/// The pages of all files, against the capacity.
#[derive(Debug, Default)]
pub(super) struct Space(Mutex<Filling>);

#[derive(Clone, Copy, Debug, Default)]
struct Filling {
    used: u64,
    capacity: Option<u64>,
}

impl Filling {
    fn free(self) -> u64 {
        match self.capacity {
            Some(capacity) => capacity.saturating_sub(self.used),
            None => u64::MAX,
        }
    }
}

impl Space {
    /// Sets the capacity, or lifts it.
    pub(super) fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes.map(|bytes| bytes / PAGE_BYTES);
    }

    /// Takes as many of `wanted` pages as are free, and says how many those are.
    pub(super) fn take(&self, wanted: u64) -> u64 {
        let mut filling = self.0.lock();
        let granted = wanted.min(filling.free());
        filling.used += granted;
        granted
    }

    /// Takes pages whether they fit or not: those of files that are there already.
    pub(super) fn occupy(&self, pages: u64) {
        self.0.lock().used += pages;
    }

    /// Gives pages back.
    pub(super) fn give(&self, pages: u64) {
        let mut filling = self.0.lock();
        filling.used = filling
            .used
            .checked_sub(pages)
            .expect("pages are given back once");
    }

    /// Forgets what was used, for a disk that is read anew.
    pub(super) fn clear(&self) {
        self.0.lock().used = 0;
    }

    /// The capacity and the free pages, when there is a capacity.
    pub(super) fn limit(&self) -> Option<(u64, u64)> {
        let filling = *self.0.lock();
        Some((filling.capacity?, filling.free()))
    }
}
