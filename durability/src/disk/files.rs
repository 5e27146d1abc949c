//! One file of the disk: its bytes, and the backing file while somebody has it open.

use super::content::{Content, Shared};
use super::space::Space;
use parking_lot::Mutex;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// A file, whatever its names are.
#[derive(Debug)]
pub(super) struct FileNode {
    content: Mutex<Content>,
    /// The backing file, open for as long as somebody has this file open.
    open: Mutex<Option<Arc<File>>>,
}

/// Opens a backing file for all that can be done to it.
fn open(path: &Path) -> io::Result<Arc<File>> {
    Ok(Arc::new(File::options().read(true).write(true).open(path)?))
}

impl FileNode {
    /// A file that was there before.
    pub(super) fn existing(path: &Path, space: &Space) -> io::Result<Self> {
        let content = Content::of(&*open(path)?, space)?;
        Ok(Self {
            content: Mutex::new(content),
            open: Mutex::default(),
        })
    }

    /// A new and empty file.
    pub(super) fn empty() -> Self {
        Self {
            content: Mutex::default(),
            open: Mutex::default(),
        }
    }

    /// Keeps the backing file open from now on.
    pub(super) fn hold(&self, path: &Path) -> io::Result<()> {
        let mut held = self.open.lock();
        if held.is_none() {
            *held = Some(open(path)?);
        }
        Ok(())
    }

    /// Lets go of the backing file.
    pub(super) fn let_go(&self) {
        *self.open.lock() = None;
    }

    /// The backing file of a file that somebody has open.
    pub(super) fn held(&self) -> io::Result<Arc<File>> {
        Ok(self.open.lock().clone().ok_or(Errno::BADF)?)
    }

    /// The backing file, opened for the moment when nobody has it open.
    pub(super) fn backing(&self, path: &Path) -> io::Result<Arc<File>> {
        match self.open.lock().clone() {
            Some(file) => Ok(file),
            None => open(path),
        }
    }

    /// Works on the bytes, alone.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Content) -> T) -> T {
        work(&mut self.content.lock())
    }

    /// Forgets all that is known of the bytes, and gives their space back.
    pub(super) fn remove(&self, shared: &Shared) {
        let mut content = self.content.lock();
        content.forget(&shared.images);
        content.give_up_all(&shared.space);
    }
}
