//! The kernel's side of the disk: FUSE's requests, passed to [`Core`]. There is
//! no cache between them: the kernel sends what is written to it at once, but
//! what is written through a shared mapping when it likes, or at msync.

use super::core::{Change, Core, Creation, Entry};
use super::images::PAGE_BYTES;
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};
use tracing::warn;

/// How long the kernel may rely on names and attributes: it makes all changes itself.
const TRUSTED: Duration = Duration::from_secs(1);

/// The longest write in one request.
const WRITE_BYTES_MAX: u32 = 1 << 20;

/// Requests that the kernel may have under way without anybody waiting, such as read-ahead.
const BACKGROUND_MAX: u16 = 64;

/// The generation of all nodes: no number is used twice.
const GENERATION: Generation = Generation(0);

/// What the kernel talks to.
#[derive(Debug)]
pub(super) struct Served {
    core: Arc<Core>,
    /// What was in the folders that are open, when they were opened or rewound.
    listings: Mutex<HashMap<u64, Arc<Vec<Entry>>>>,
    last_listing: AtomicU64,
}

impl Served {
    pub(super) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            listings: Mutex::default(),
            last_listing: AtomicU64::new(0),
        }
    }

    /// Syncs at the speed that is set, without keeping other requests waiting.
    fn sync(&self, reply: ReplyEmpty, sync: impl FnOnce(&Core) -> io::Result<()> + Send + 'static) {
        let delay = *self.core.control.sync_delay.lock();
        if delay.is_zero() {
            return done(reply, sync(&self.core));
        }
        let core = Arc::clone(&self.core);
        let slowly = move || {
            thread::sleep(delay);
            done(reply, sync(&core));
        };
        // Without a thread the reply is dropped, and the sync fails.
        if let Err(error) = thread::Builder::new()
            .name("slow-sync".into())
            .spawn(slowly)
        {
            warn!(%error, "a sync found no thread to wait in");
        }
    }
}

fn done(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn found(reply: ReplyEntry, result: io::Result<FileAttr>) {
    match result {
        Ok(attr) => reply.entry(&TRUSTED, &attr, GENERATION),
        Err(error) => reply.error(error.into()),
    }
}

fn described(reply: ReplyAttr, result: io::Result<FileAttr>) {
    match result {
        Ok(attr) => reply.attr(&TRUSTED, &attr),
        Err(error) => reply.error(error.into()),
    }
}

fn creation(request: &Request, mode: u32) -> Creation {
    let owner = (request.uid(), request.gid());
    Creation { mode, owner }
}

fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for Served {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ASYNC_DIO;
        let refused = |_| io::Error::other("FUSE refused its settings");
        let offered = config.capabilities() & wanted;
        config.add_capabilities(offered).map_err(|_| refused(0))?;
        config.set_max_write(WRITE_BYTES_MAX).map_err(refused)?;
        let background = config.set_max_background(BACKGROUND_MAX);
        background.map_err(|_| refused(0))?;
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        found(reply, self.core.lookup(parent.0, name));
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        described(reply, self.core.getattr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        accessed: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            mode,
            uid,
            gid,
            size,
            accessed: accessed.map(time),
            modified: modified.map(time),
        };
        described(reply, self.core.setattr(ino.0, change));
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.core.readlink(ino.0) {
            Ok(to) => reply.data(to.as_os_str().as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        if rustix::fs::FileType::from_raw_mode(mode) != rustix::fs::FileType::RegularFile {
            return reply.error(Errno::EPERM);
        }
        let new = creation(request, mode);
        found(reply, self.core.mknod(parent.0, name, new));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let new = creation(request, mode);
        found(reply, self.core.mkdir(parent.0, name, new));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.core.unlink(parent.0, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(reply, self.core.rmdir(parent.0, name));
    }

    fn symlink(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        found(reply, self.core.symlink(parent.0, name, target));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (newparent.0, newname));
        done(reply, self.core.rename(from, to, flags.is_empty()));
    }

    fn link(
        &self,
        _: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        found(reply, self.core.link(ino.0, newparent.0, newname));
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.core.open(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(error) => reply.error(error.into()),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let new = creation(request, mode);
        match self.core.create(parent.0, name, new) {
            Ok(attr) => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE;
                reply.created(&TRUSTED, &attr, GENERATION, FileHandle(0), flags);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.core.read(ino.0, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // For O_SYNC and O_DSYNC the kernel has a sync follow.
        match self.core.write(ino.0, offset, data) {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        done(reply, self.core.close(ino.0));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(reply, move |core| core.sync(ino.0));
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(reply, move |core| core.sync_folder(ino.0));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.core.entries(ino.0) {
            Ok(entries) => {
                let handle = self.last_listing.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, Arc::new(entries));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            match self.core.entries(ino.0) {
                Ok(entries) => {
                    let entries = Arc::new(entries);
                    self.listings.lock().insert(handle.0, entries);
                }
                Err(error) => return reply.error(error.into()),
            }
        }
        let Some(entries) = self.listings.lock().get(&handle.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        for ((id, kind, name), next) in entries.iter().zip(1..).skip(offset as usize) {
            if reply.add(INodeNo(*id), next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.listings.lock().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const FILES: u64 = 1 << 30;
        const NAME_BYTES_MAX: u32 = 255;
        let page = PAGE_BYTES as u32;
        match self.core.room() {
            Ok((pages, free)) => {
                reply.statfs(pages, free, free, FILES, FILES, page, NAME_BYTES_MAX, page);
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let mode = FallocateFlags::from_bits_retain(mode as u32);
        done(reply, self.core.fallocate(ino.0, mode, offset, length));
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: fuser::ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn access(&self, _: &Request, _: INodeNo, _: fuser::AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}
