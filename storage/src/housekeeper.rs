//! Work that may wait: the durable watermark and freeing the space of dropped groups
//! and purged entries.
//!
//! The watermark is the newest RocksDB sequence number known to be synced, in
//! a small file of its own. A recovery that ends below it has lost synced data
//! (point-in-time recovery stops at the first damaged record without a word),
//! and such a replica must not vote.
//!
//! One thread owns both. It sleeps until told of something, then gathers for a
//! second before it acts; an idle engine never wakes it.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use rocksdb::DB;

use crate::log::GroupId;
use crate::manifest::{self, Manifest};
use crate::space::{self, Dropped, Purged};
use crate::watermark::{self, Watermark};
use crate::writer::{AbortOnPanic, fatal};

const GATHER: Duration = Duration::from_secs(1);
const POISONED: &str = "the housekeeper ends the process when it panics";

#[derive(Default)]
struct Due {
    synced: Option<u64>,
    dropped: Dropped,
    purged: Purged,
    closing: bool,
}

impl Due {
    fn anything(&self) -> bool {
        self.closing || self.synced.is_some() || self.dropped.is_due() || self.purged.is_due()
    }
}

/// The mailbox of the housekeeping thread.
pub(crate) struct Housekeeper {
    due: Mutex<Due>,
    wake: Condvar,
    watermark: PathBuf,
    /// The manifest as last looked at.
    manifest: Mutex<Manifest>,
}

impl Housekeeper {
    pub(crate) fn new(watermark: PathBuf) -> Housekeeper {
        Housekeeper {
            due: Mutex::default(),
            wake: Condvar::new(),
            watermark,
            manifest: Mutex::default(),
        }
    }

    /// Writes down what is known to be on disk.
    pub(crate) fn mark(&self, db: &DB, sequence: u64) -> io::Result<()> {
        let mut manifest = self.manifest.lock().expect(POISONED);
        match manifest::follow(db.path(), *manifest) {
            Ok(now) => *manifest = now,
            // Another one takes its place at this moment: it counts the next time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mark = Watermark {
            sequence,
            manifest: *manifest,
        };
        watermark::write(&self.watermark, mark)
    }

    /// Everything up to `sequence` is synced.
    pub(crate) fn synced(&self, sequence: u64) {
        let mut due = self.due.lock().expect(POISONED);
        let first = due.synced.replace(sequence).is_none();
        if first {
            self.wake.notify_one();
        }
    }

    /// The space of a dropped group is to be freed.
    pub(crate) fn dropped(&self, group: GroupId, bytes: u64) {
        let mut due = self.due.lock().expect(POISONED);
        due.dropped.add(group, bytes);
        if due.dropped.is_due() {
            self.wake.notify_one();
        }
    }

    /// The space of a log's entries up to `index` is to be freed.
    pub(crate) fn purged(&self, group: GroupId, index: u64, bytes: u64) {
        let mut due = self.due.lock().expect(POISONED);
        due.purged.add(group, index, bytes);
        if due.purged.is_due() {
            self.wake.notify_one();
        }
    }

    pub(crate) fn close(&self) {
        self.due.lock().expect(POISONED).closing = true;
        self.wake.notify_one();
    }

    /// The body of the thread.
    pub(crate) fn run(&self, db: &DB) {
        let _guard = AbortOnPanic;
        loop {
            let due = self.gather();
            if let Some(sequence) = due.synced
                && let Err(error) = self.mark(db, sequence)
            {
                // All that is lost at a close is the sharpness of the check.
                if due.closing {
                    tracing::warn!(%error, "can't write the watermark at close");
                } else {
                    fatal("writing the watermark", &error);
                }
            }
            if due.closing {
                return;
            }
            space::free_purged(db, &due.purged);
            if let Err(error) = space::free(db, &due.dropped) {
                fatal("freeing the space of dropped groups", &error);
            }
        }
    }

    fn gather(&self) -> Due {
        let mut due = self.due.lock().expect(POISONED);
        while !due.anything() {
            due = self.wake.wait(due).expect(POISONED);
        }
        let until = Instant::now() + GATHER;
        while !due.closing && !due.purged.is_urgent() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            due = self.wake.wait_timeout(due, left).expect(POISONED).0;
        }
        Due {
            synced: due.synced.take(),
            dropped: due.dropped.take_due(),
            purged: due.purged.take_due(),
            closing: due.closing,
        }
    }
}

/// Replaces a small file so that a crash leaves the old or the new one, whole.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("new");
    let mut file = fs::File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    sync_directory(parent)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    fs::File::open(path)?.sync_all()
}
