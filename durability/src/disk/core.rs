//! The disk between two power cuts: every operation of the file system, in terms
//! of the nodes of its tree. Any thread may call it; none gets anywhere once the
//! power is off, and a cut waits for the operations that are under way.

use super::content::{Shared, read_to_end};
use super::files::FileNode;
use super::images::{Images, PAGE_BYTES};
use super::space::Space;
use super::tree::{Folder, Kind, ROOT, Tree, make_hidden, remove_hidden};
use super::{Loss, Options};
use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rand::rngs::StdRng;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// What is set from outside and counted, across power cuts.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) sync_delay: Mutex<Duration>,
    pub(super) fail_syncs: AtomicBool,
    pub(super) syncs: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) space: Arc<Space>,
}

/// Who asks for something new, and which mode it shall have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Creation {
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
}

/// What a change of attributes sets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Change {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) accessed: Option<SystemTime>,
    pub(super) modified: Option<SystemTime>,
}

/// An entry of a folder.
pub(super) type Entry = (u64, FileType, OsString);

/// The disk, from when the power comes on to when it goes.
#[derive(Debug)]
pub(super) struct Core {
    on: RwLock<bool>,
    tree: Mutex<Tree>,
    shared: Arc<Shared>,
    root: PathBuf,
    options: Options,
    pub(super) control: Arc<Control>,
}

impl Core {
    /// Reads the backing folder; all of it is durable.
    pub(super) fn load(root: &Path, options: Options, control: Arc<Control>) -> io::Result<Self> {
        control.space.clear();
        let images = Images::create(&make_hidden(root)?)?;
        let space = Arc::clone(&control.space);
        let shared = Arc::new(Shared { images, space });
        let tree = Tree::load(root, options.names, Arc::clone(&shared))?;
        Ok(Self {
            on: RwLock::new(true),
            tree: Mutex::new(tree),
            shared,
            root: root.to_owned(),
            options,
            control,
        })
    }

    /// The power, that stays on while this is held.
    fn power(&self) -> io::Result<RwLockReadGuard<'_, bool>> {
        let on = self.on.read();
        if *on { Ok(on) } else { Err(Errno::IO.into()) }
    }

    /// Turns the power off and takes away what is not durable.
    pub(super) fn cut(&self, chance: &mut StdRng) -> io::Result<Loss> {
        let mut on = self.on.write();
        if !*on {
            return Err(io::Error::other("the power of the disk is off already"));
        }
        *on = false;
        let mut tree = self.tree.lock();
        let mut changed: Vec<(PathBuf, Arc<FileNode>)> = Vec::new();
        for (id, node) in &tree.nodes {
            if let Kind::File(file) = &node.kind
                && (!node.names.is_empty() || node.remembered > 0)
                && !file.with(|content| content.is_durable())
            {
                changed.push((tree.path(*id), Arc::clone(file)));
            }
        }
        // In the order of names, so that the same seed has the same chances.
        changed.sort_by(|one, other| one.0.cmp(&other.0));
        let mut loss = Loss::default();
        for (path, file) in changed {
            let backing = file.backing(&path)?;
            let images = &self.shared.images;
            let torn = self.options.torn;
            loss.bytes += file.with(|content| content.revert(&backing, images, torn, chance))?;
            loss.files += 1;
        }
        loss.names = tree.revert_names()?;
        remove_hidden(&self.root)?;
        Ok(loss)
    }

    /// Ends without a power cut: all that was written stays.
    pub(super) fn end(&self) -> io::Result<()> {
        *self.on.write() = false;
        remove_hidden(&self.root)
    }

    /// True until the power goes.
    pub(super) fn is_on(&self) -> bool {
        *self.on.read()
    }

    /// Bytes that a power cut would take.
    pub(super) fn bytes_not_durable(&self) -> u64 {
        let Ok(_power) = self.power() else {
            return 0;
        };
        let files: Vec<Arc<FileNode>> = {
            let tree = self.tree.lock();
            let named = tree.nodes.values().filter(|node| !node.names.is_empty());
            named
                .filter_map(|node| match &node.kind {
                    Kind::File(file) => Some(Arc::clone(file)),
                    _ => None,
                })
                .collect()
        };
        let bytes = |file: &Arc<FileNode>| file.with(|content| content.bytes_not_durable());
        files.iter().map(bytes).sum()
    }

    pub(super) fn lookup(&self, folder: u64, name: &OsStr) -> io::Result<FileAttr> {
        let _power = self.power()?;
        let id = self.tree.lock().child(folder, name)?;
        self.attr(id)
    }

    pub(super) fn getattr(&self, id: u64) -> io::Result<FileAttr> {
        let _power = self.power()?;
        self.attr(id)
    }

    fn attr(&self, id: u64) -> io::Result<FileAttr> {
        let (meta, nlink, file) = {
            let tree = self.tree.lock();
            let node = tree.node(id)?;
            let meta = fs::symlink_metadata(tree.path(id))?;
            match &node.kind {
                Kind::File(file) => (meta, node.names.len() as u32, Some(Arc::clone(file))),
                Kind::Folder(_) => (meta, 2, None),
                Kind::Other => (meta, node.names.len() as u32, None),
            }
        };
        let pages = file.map_or(0, |file| file.with(|content| content.pages()));
        Ok(FileAttr {
            ino: INodeNo(id),
            size: meta.len(),
            blocks: pages * (PAGE_BYTES / 512),
            atime: meta.accessed()?,
            mtime: meta.modified()?,
            ctime: changed(&meta),
            crtime: SystemTime::UNIX_EPOCH,
            kind: FileType::from_std(meta.file_type()).ok_or(Errno::INVAL)?,
            perm: (meta.mode() & 0o7777) as u16,
            nlink,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            blksize: PAGE_BYTES as u32,
            flags: 0,
        })
    }

    pub(super) fn setattr(&self, id: u64, change: Change) -> io::Result<FileAttr> {
        let _power = self.power()?;
        if let Some(size) = change.size {
            let (file, backing) = {
                let tree = self.tree.lock();
                let file = tree.file(id)?;
                let backing = file.backing(&tree.path(id))?;
                (file, backing)
            };
            file.with(|content| content.truncate(&backing, size, &self.shared))?;
        }
        {
            let tree = self.tree.lock();
            tree.node(id)?;
            set_attributes(&tree.path(id), change)?;
        }
        self.attr(id)
    }

    pub(super) fn mkdir(&self, folder: u64, name: &OsStr, new: Creation) -> io::Result<FileAttr> {
        let kind = Kind::Folder(Folder::default());
        self.make(folder, name, kind, |path| {
            fs::create_dir(path)?;
            dress(path, new)
        })
    }

    pub(super) fn symlink(&self, folder: u64, name: &OsStr, to: &Path) -> io::Result<FileAttr> {
        self.make(folder, name, Kind::Other, |path| symlink(to, path))
    }

    pub(super) fn readlink(&self, id: u64) -> io::Result<PathBuf> {
        let _power = self.power()?;
        let tree = self.tree.lock();
        tree.node(id)?;
        fs::read_link(tree.path(id))
    }

    /// Makes a file that nobody has open yet.
    pub(super) fn mknod(&self, folder: u64, name: &OsStr, new: Creation) -> io::Result<FileAttr> {
        let kind = Kind::File(Arc::new(FileNode::empty()));
        self.make(folder, name, kind, |path| {
            fs::File::create_new(path)?;
            dress(path, new)
        })
    }

    /// Makes a file and opens it.
    pub(super) fn create(&self, folder: u64, name: &OsStr, new: Creation) -> io::Result<FileAttr> {
        let attr = self.mknod(folder, name, new)?;
        self.open(attr.ino.0)?;
        Ok(attr)
    }

    fn make(
        &self,
        folder: u64,
        name: &OsStr,
        kind: Kind,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<FileAttr> {
        let _power = self.power()?;
        let id = self.tree.lock().make(folder, name, kind, make)?;
        self.attr(id)
    }

    pub(super) fn link(&self, id: u64, folder: u64, name: &OsStr) -> io::Result<FileAttr> {
        let _power = self.power()?;
        self.tree.lock().link(id, folder, name)?;
        self.attr(id)
    }

    pub(super) fn unlink(&self, folder: u64, name: &OsStr) -> io::Result<()> {
        let _power = self.power()?;
        self.tree.lock().unlink(folder, name, false)
    }

    pub(super) fn rmdir(&self, folder: u64, name: &OsStr) -> io::Result<()> {
        let _power = self.power()?;
        self.tree.lock().unlink(folder, name, true)
    }

    pub(super) fn rename(
        &self,
        from: (u64, &OsStr),
        to: (u64, &OsStr),
        replace: bool,
    ) -> io::Result<()> {
        let _power = self.power()?;
        self.tree.lock().rename(from, to, replace)
    }

    pub(super) fn open(&self, id: u64) -> io::Result<()> {
        let _power = self.power()?;
        self.tree.lock().opened(id)
    }

    pub(super) fn close(&self, id: u64) -> io::Result<()> {
        let _power = self.power()?;
        self.tree.lock().closed(id)
    }

    pub(super) fn read(&self, id: u64, offset: u64, size: u32) -> io::Result<Vec<u8>> {
        let _power = self.power()?;
        let file = self.tree.lock().file(id)?;
        let mut bytes = vec![0; size as usize];
        let read = read_to_end(&*file.held()?, &mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    pub(super) fn write(&self, id: u64, offset: u64, data: &[u8]) -> io::Result<u32> {
        let _power = self.power()?;
        let file = self.tree.lock().file(id)?;
        let backing = file.held()?;
        let written = file.with(|content| content.write(&backing, offset, data, &self.shared))?;
        let counter = &self.control.bytes_written;
        counter.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written as u32)
    }

    pub(super) fn fallocate(
        &self,
        id: u64,
        mode: FallocateFlags,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        let _power = self.power()?;
        let file = self.tree.lock().file(id)?;
        let backing = file.held()?;
        file.with(|content| content.allocate(&backing, mode, offset, length, &self.shared))
    }

    pub(super) fn sync(&self, id: u64) -> io::Result<()> {
        let _power = self.power()?;
        let file = self.tree.lock().file(id)?;
        let backing = file.held()?;
        if self.fails() {
            file.with(|content| content.fail_sync(&backing, &self.shared.images))?;
            return Err(Errno::IO.into());
        }
        file.with(|content| content.sync(&self.shared.images))?;
        self.control.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn sync_folder(&self, id: u64) -> io::Result<()> {
        let _power = self.power()?;
        if self.fails() {
            return Err(Errno::IO.into());
        }
        self.tree.lock().sync_folder(id)?;
        self.control.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Files that somebody has open, as paths from the topmost folder.
    pub(super) fn in_use(&self) -> io::Result<Vec<PathBuf>> {
        let _power = self.power()?;
        let tree = self.tree.lock();
        let open = |id: &u64| tree.nodes[id].is_open() && !tree.nodes[id].names.is_empty();
        let paths = tree.nodes.keys().filter(|id| open(id));
        let paths = paths.map(|id| tree.path(*id));
        Ok(paths
            .filter_map(|path| Some(path.strip_prefix(&self.root).ok()?.to_owned()))
            .collect())
    }

    /// Makes everything durable.
    pub(super) fn settle(&self) -> io::Result<()> {
        let _power = self.power()?;
        let mut tree = self.tree.lock();
        let mut folders = Vec::new();
        for (id, node) in &tree.nodes {
            match &node.kind {
                Kind::File(file) => file.with(|content| content.sync(&self.shared.images))?,
                Kind::Folder(_) => folders.push(*id),
                Kind::Other => {}
            }
        }
        for id in folders {
            // One that was removed may have been forgotten with the folder above it.
            if tree.nodes.contains_key(&id) {
                tree.sync_folder(id)?;
            }
        }
        Ok(())
    }

    fn fails(&self) -> bool {
        self.control.fail_syncs.load(Ordering::Relaxed)
    }

    /// What is in a folder now.
    pub(super) fn entries(&self, id: u64) -> io::Result<Vec<Entry>> {
        let _power = self.power()?;
        let tree = self.tree.lock();
        let above = tree
            .node(id)?
            .names
            .first()
            .map_or(ROOT, |(above, _)| *above);
        let mut entries = vec![
            (id, FileType::Directory, OsString::from(".")),
            (above, FileType::Directory, OsString::from("..")),
        ];
        for (name, id) in &tree.folder(id)?.children {
            let kind = match tree.node(*id)?.kind {
                Kind::Folder(_) => FileType::Directory,
                Kind::File(_) => FileType::RegularFile,
                Kind::Other => FileType::Symlink,
            };
            entries.push((*id, kind, name.clone()));
        }
        Ok(entries)
    }

    /// Pages there are and pages that are free.
    pub(super) fn room(&self) -> io::Result<(u64, u64)> {
        let _power = self.power()?;
        if let Some(limit) = self.control.space.limit() {
            return Ok(limit);
        }
        let backing = rustix::fs::statvfs(&self.root)?;
        let pages = |blocks: u64| blocks.saturating_mul(backing.f_frsize) / PAGE_BYTES;
        Ok((pages(backing.f_blocks), pages(backing.f_bavail)))
    }
}

fn changed(meta: &fs::Metadata) -> SystemTime {
    let seconds = u64::try_from(meta.ctime()).unwrap_or_default();
    let nanoseconds = u64::try_from(meta.ctime_nsec()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}

/// Gives something new the mode and the owner that it was made with.
fn dress(path: &Path, new: Creation) -> io::Result<()> {
    let (uid, gid) = new.owner;
    let meta = fs::symlink_metadata(path)?;
    if (meta.uid(), meta.gid()) != (uid, gid) {
        lchown(path, Some(uid), Some(gid))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(new.mode & 0o7777))
}

fn set_attributes(path: &Path, change: Change) -> io::Result<()> {
    if change.uid.is_some() || change.gid.is_some() {
        lchown(path, change.uid, change.gid)?;
    }
    if let Some(mode) = change.mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if change.accessed.is_none() && change.modified.is_none() {
        return Ok(());
    }
    let times = rustix::fs::Timestamps {
        last_access: timespec(change.accessed)?,
        last_modification: timespec(change.modified)?,
    };
    let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(
        rustix::fs::CWD,
        path,
        &times,
        no_follow,
    )?)
}

fn timespec(time: Option<SystemTime>) -> io::Result<rustix::fs::Timespec> {
    let Some(time) = time else {
        return Ok(rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        });
    };
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| Errno::INVAL)?;
    Ok(rustix::fs::Timespec {
        tv_sec: i64::try_from(since.as_secs()).map_err(|_| Errno::INVAL)?,
        tv_nsec: since.subsec_nanos().into(),
    })
}
