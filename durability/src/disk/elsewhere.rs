//! The disk on systems that have no FUSE as Linux has it: it can't be mounted.

use super::{Loss, Options, Stats};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

/// A disk that loses power. It works on Linux only: elsewhere there is none.
#[derive(Debug)]
pub struct Disk(Infallible);

impl Disk {
    /// Says that this system can't do it.
    pub fn mount(_backing: &Path, _at: &Path, _options: Options) -> io::Result<Self> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a disk that loses power needs FUSE on Linux, which this system does not have",
        ))
    }

    /// Drops what is not durable.
    pub fn power_cut(&self) -> io::Result<Loss> {
        match self.0 {}
    }

    /// Mounts again what the power cut has left.
    pub fn power_on(&self) -> io::Result<()> {
        match self.0 {}
    }

    /// Makes everything durable.
    pub fn settle(&self) -> io::Result<()> {
        match self.0 {}
    }

    /// Makes every sync take longer.
    pub fn set_sync_delay(&self, _delay: Duration) {
        match self.0 {}
    }

    /// Makes every sync fail.
    pub fn fail_syncs(&self, _fail: bool) {
        match self.0 {}
    }

    /// Limits the space of the disk.
    pub fn set_capacity(&self, _bytes: Option<u64>) {
        match self.0 {}
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        match self.0 {}
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        match self.0 {}
    }
}
