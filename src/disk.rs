//! Room on the disk of the data directory, and who is refused when it gets scarce.
//!
//! One task measures the free space. Below the reserve, producers are refused
//! with an error that they retry; everything else goes on, above all what makes
//! room. Below a quarter of it, entries with records are not taken from other
//! brokers either, so that the store never meets a full disk, which would end
//! the process. What the store has in memory and will still write counts as
//! written, and so do batches accepted since the last look.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use drave_raft::RaftNode;
use drave_storage::{EngineOptions, Room, SharedStore};
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// The reserve unless the configuration says otherwise: this,
const RESERVE_BYTES: u64 = 1 << 30;
/// or this part of the disk, whichever is less.
const RESERVE_SHARE: u64 = 20;
/// Entries with records are taken from other brokers down to this part of the reserve.
const FLOOR_SHARE: u64 = 4;
/// How often the disk is looked at,
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// and how often when there is less than twice the reserve.
const LOOK_OFTEN: Duration = Duration::from_millis(100);
/// A batch is written to the log, and later to a file of its own.
const WRITTEN_TIMES: u64 = 2;

/// The disk that the data directory is on.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    broker: u32,
    total: AtomicU64,
    free: AtomicU64,
    reserve: u64,
    /// Bytes of batches accepted since the last look.
    accepted: AtomicU64,
    refusing: AtomicBool,
}

impl Disk {
    /// Looks at the disk once. `reserve` is kept free on it, by default 1 GiB or
    /// a twentieth of it.
    pub fn new(path: &Path, broker: u32, reserve: Option<u64>) -> io::Result<Arc<Disk>> {
        let Room { total, free } = Room::at(path)?;
        let usual = RESERVE_BYTES.min(total / RESERVE_SHARE);
        Ok(Arc::new(Disk {
            path: path.to_owned(),
            broker,
            total: AtomicU64::new(total),
            free: AtomicU64::new(free),
            reserve: reserve.unwrap_or(usual),
            accepted: AtomicU64::new(0),
            refusing: AtomicBool::new(false),
        }))
    }

    /// Looks again and again, until the task is aborted.
    pub fn watch(self: &Arc<Self>, raft: Arc<RaftNode>, store: SharedStore) -> JoinHandle<()> {
        let disk = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                let often = disk.room().free < disk.reserve.saturating_mul(2);
                tokio::time::sleep(if often { LOOK_OFTEN } else { LOOK_EVERY }).await;
                disk.look(&raft, &store).await;
            }
        })
    }

    async fn look(self: &Arc<Self>, raft: &RaftNode, store: &SharedStore) {
        let (disk, store) = (Arc::clone(self), store.clone());
        // What is accepted from here on is counted until the next look.
        let before = self.accepted.load(Ordering::Acquire);
        let measured = tokio::task::spawn_blocking(move || {
            let room = Room::at(&disk.path)?;
            let store = store.activity();
            let queued = store.queued_bytes as u64 * WRITTEN_TIMES;
            let coming = store.unflushed_bytes + queued + log_file_bytes();
            io::Result::Ok((room.total, room.free.saturating_sub(coming)))
        });
        match measured.await {
            Ok(Ok((total, free))) => {
                self.total.store(total, Ordering::Release);
                self.free.store(free, Ordering::Release);
                self.accepted.fetch_sub(before, Ordering::AcqRel);
            }
            Ok(Err(error)) => {
                warn!(path = %self.path.display(), %error, "can't tell how full the disk is")
            }
            Err(_) => return,
        }
        let (free, reserve) = (self.room().free, self.reserve);
        raft.set_room(free.saturating_sub(reserve / FLOOR_SHARE) / WRITTEN_TIMES);
        let refusing = free < reserve;
        if self.refusing.swap(refusing, Ordering::AcqRel) != refusing {
            match refusing {
                true => warn!(
                    free,
                    reserve, "the disk is nearly full: producers are refused until there is room"
                ),
                false => info!(
                    free,
                    reserve, "there is room on the disk again: producers are served"
                ),
            }
        }
    }

    /// What is kept free.
    pub fn reserve(&self) -> u64 {
        self.reserve
    }

    /// The room there is, less what the store is going to write.
    pub fn room(&self) -> Room {
        let accepted = self.accepted.load(Ordering::Acquire);
        let free = self.free.load(Ordering::Acquire);
        Room {
            total: self.total.load(Ordering::Acquire),
            free: free.saturating_sub(accepted.saturating_mul(WRITTEN_TIMES)),
        }
    }

    /// Accepts a batch of so many bytes, or says why not.
    pub fn accept(&self, bytes: usize) -> Result<(), String> {
        let (free, reserve) = (self.room().free, self.reserve);
        if free < reserve {
            let (broker, free, reserve) = (self.broker, mib(free), mib(reserve));
            return Err(format!(
                "the disk of broker {broker} has {free} free, less than the reserve of {reserve}: \
                 delete topics or records, or give it more room"
            ));
        }
        self.accepted.fetch_add(bytes as u64, Ordering::AcqRel);
        Ok(())
    }
}

/// The store takes the room for its next log file at once, an eighth more than it holds in memory.
fn log_file_bytes() -> u64 {
    EngineOptions::default().write_buffer_bytes as u64 / 8 * 9
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_refused_once_the_reserve_would_be_used() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path(), 3, Some(1_000)).expect("a disk");
        assert!(disk.room().total > 0);
        disk.free.store(1_500, Ordering::Release);
        assert_eq!(disk.accept(250), Ok(()));
        assert_eq!(disk.room().free, 1_000);
        assert_eq!(disk.accept(1), Ok(()));
        let refusal = disk.accept(1).expect_err("no room");
        assert!(
            refusal.starts_with("the disk of broker 3 has 0.0 MiB free, less than the reserve"),
            "{refusal}"
        );
        disk.free.store(10_000, Ordering::Release);
        assert_eq!(disk.accept(1), Ok(()));
    }

    #[test]
    fn the_usual_reserve_is_a_twentieth_of_a_small_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = Disk::new(folder.path(), 1, None).expect("a disk");
        assert_eq!(disk.reserve(), (1 << 30).min(disk.room().total / 20));
    }
}
