//! A disk that loses power: a FUSE file system over a folder that knows what is
//! durable. Bytes are durable once fsync, fdatasync or msync has returned, or
//! when they were written to a file opened with `O_SYNC` or `O_DSYNC`; names are
//! by [`NamesPolicy`]. [`Disk::power_cut`] takes everything else away.
//!
//! The folder always holds what a reader sees, so reads and writes cost little
//! more than a trip through the kernel; beside it is kept what it takes to go
//! back to the last sync (an image of each overwritten page, the size, the old
//! names), and a power cut goes back. Appended bytes need no image. The images
//! are in a file, so memory is bounded by the number of files and of pages that
//! are overwritten between two syncs (some 40 bytes each), not by their bytes.
//!
//! What it does not imitate: a sync makes the whole file durable, `O_SYNC` writes
//! too; sync(2) and syncfs(2) make nothing durable, as FUSE does not pass them on;
//! mode, owner and times are durable at once; there are no extended attributes.
//! When the process that has the disk is killed, the folder holds what a reader
//! saw, as if all of it had been synced.

#[cfg(target_os = "linux")]
mod content;
#[cfg(target_os = "linux")]
mod core;
#[cfg(target_os = "linux")]
mod extents;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod images;
#[cfg(target_os = "linux")]
mod mounted;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod revert;
#[cfg(target_os = "linux")]
mod serve;
#[cfg(target_os = "linux")]
mod space;
#[cfg(target_os = "linux")]
mod tree;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::Disk;
#[cfg(target_os = "linux")]
pub use mounted::Disk;

use serde::{Deserialize, Serialize};

/// When names (create, rename, link, unlink, mkdir, rmdir) are durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamesPolicy {
    /// At once and in order, as a journaling file system does at best. Bytes are
    /// not: a file that took another's name before it was synced has that name, and
    /// is empty.
    #[default]
    Durable,
    /// When the directory is synced: all that POSIX promises. A directory that
    /// moved to another parent is durable there when either parent is synced.
    LostUnlessSynced,
}

/// What a power cut leaves of bytes that were written and not synced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Torn {
    /// Nothing: every file is as it was at its last sync.
    #[default]
    No,
    /// Of pages of 4096 bytes a random half. A file reaches to the last of them that
    /// is left; it was shortened, or it was not, as a whole.
    Pages,
    /// Of sectors of 512 bytes a random half.
    Sectors,
}

impl Torn {
    #[cfg(target_os = "linux")]
    fn unit_bytes(self) -> Option<u64> {
        match self {
            Self::No => None,
            Self::Pages => Some(images::PAGE_BYTES),
            Self::Sectors => Some(512),
        }
    }
}

/// How a disk behaves; it can't be changed while it is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Where the chances of torn writes begin.
    pub seed: u64,
    /// What a power cut leaves of unsynced bytes.
    pub torn: Torn,
    /// When names are durable.
    pub names: NamesPolicy,
}

/// What a disk has done since it was mounted; power cuts don't reset it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Syncs of files and directories that succeeded.
    pub syncs: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes that a power cut would take now.
    pub bytes_not_durable: u64,
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// Files whose bytes are not what a reader saw before.
    pub files: u64,
    /// Bytes lost in them, in whole pages or sectors where they were overwritten.
    pub bytes: u64,
    /// Names that are gone, back, or that of another file again.
    pub names: u64,
}
