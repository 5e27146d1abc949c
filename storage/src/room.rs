//! Room on a file system.

use std::io;
use std::path::Path;

/// Bytes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub total: u64,
    /// What can still be written.
    pub free: u64,
}

impl Room {
    /// Of the file system that a path is on.
    pub fn at(path: &Path) -> io::Result<Room> {
        let found = rustix::fs::statvfs(path)?;
        Ok(Room {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }
}
