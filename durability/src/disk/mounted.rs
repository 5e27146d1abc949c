//! The disk as its owner has it: mounted from the first power-on to the drop.
//! The mount stays while the power is off, and answers everything with an error,
//! so that nobody writes into the folder beneath it by mistake.

use super::core::{Control, Core};
use super::serve::Served;
use super::{Loss, Options, Stats};
use fuser::{BackgroundSession, Config, Session, SessionACL};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};
use tracing::warn;

/// Threads that answer the kernel.
const THREADS: usize = 4;

/// How long the threads may take to notice that the disk is gone.
const END_WAIT: Duration = Duration::from_secs(5);

/// A disk that loses power. Dropping it unmounts it; what was written then stays
/// in the backing folder, durable or not, unless the power was off.
#[derive(Debug)]
pub struct Disk {
    backing: PathBuf,
    at: PathBuf,
    options: Options,
    control: Arc<Control>,
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    core: Arc<Core>,
    session: Option<BackgroundSession>,
    chance: StdRng,
}

impl Disk {
    /// Mounts the folder `backing` at `at`, an empty folder elsewhere. What is in
    /// `backing` is durable; nobody else may change it while the power is on.
    ///
    /// # Errors
    /// When /dev/fuse can't be used (it takes root), or a folder can't.
    pub fn mount(backing: &Path, at: &Path, options: Options) -> io::Result<Self> {
        let backing = backing.canonicalize()?;
        if at.metadata().is_err_and(|error| is_abandoned(&error)) {
            unmount(at, UnmountFlags::DETACH)?;
        }
        let at = at.canonicalize()?;
        if at.starts_with(&backing) || backing.starts_with(&at) {
            return Err(told(&at, "and the backing folder are one in the other"));
        }
        if at.read_dir()?.next().is_some() {
            return Err(told(&at, "is not empty"));
        }
        if at.metadata()?.dev() != at.join("..").metadata()?.dev() {
            return Err(told(&at, "has a file system mounted on it"));
        }
        let control = Arc::new(Control::default());
        let core = Arc::new(Core::load(&backing, options, Arc::clone(&control))?);
        let session = start(&core, &at)?;
        let running = Mutex::new(Running {
            core,
            session: Some(session),
            chance: StdRng::seed_from_u64(options.seed),
        });
        Ok(Self {
            backing,
            at,
            options,
            control,
            running,
        })
    }

    /// Drops what is not durable, at once for everybody. From here on every use
    /// of the disk fails with EIO, also through handles that are open, until
    /// [`Disk::power_on`]; the backing folder may be looked at and changed.
    ///
    /// # Errors
    /// When the power is off already, or the backing folder fails.
    pub fn power_cut(&self) -> io::Result<Loss> {
        let mut running = self.running.lock();
        let Running { core, chance, .. } = &mut *running;
        core.cut(chance)
    }

    /// Mounts again what the power cut has left. Handles opened before it stay
    /// unusable: who had the disk open should have ended by now.
    ///
    /// # Errors
    /// When the power is on, or the disk can't be mounted again.
    pub fn power_on(&self) -> io::Result<()> {
        let mut running = self.running.lock();
        if running.core.is_on() {
            return Err(io::Error::other("the power of the disk is on already"));
        }
        if let Some(session) = running.session.take() {
            // Without a trace of the old mount the kernel has nothing left in its caches.
            detach(&self.at)?;
            finish(session);
        }
        let core = Core::load(&self.backing, self.options, Arc::clone(&self.control))?;
        running.core = Arc::new(core);
        let started = start(&running.core, &self.at);
        if started.is_err() {
            running.core.end()?;
        }
        running.session = Some(started?);
        Ok(())
    }

    /// Makes everything durable that was written so far, as a kernel does in its
    /// own time (Linux after half a minute, when nobody syncs). So a cluster can be
    /// set up by tools that sync nothing and lose none of that later.
    ///
    /// # Errors
    /// When the power is off, syncs fail, or the backing folder does.
    pub fn settle(&self) -> io::Result<()> {
        let running = self.running.lock();
        // What was written through mappings is in the kernel still, and syncfs(2)
        // does not wait for it where FUSE is concerned.
        for path in running.core.in_use()? {
            match File::open(self.at.join(path)) {
                Ok(file) => file.sync_data()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        running.core.settle()
    }

    /// Makes every sync take this much longer. By itself a sync takes no time, as
    /// on a disk with a cache that survives.
    pub fn set_sync_delay(&self, delay: Duration) {
        *self.control.sync_delay.lock() = delay;
    }

    /// Makes every sync fail with EIO. What it should have made durable is marked
    /// clean, as Linux does: readers go on seeing it, later syncs succeed without
    /// writing it, and a power cut takes it, unless it is written once more.
    pub fn fail_syncs(&self, fail: bool) {
        self.control.fail_syncs.store(fail, Ordering::Relaxed);
    }

    /// Limits the space of the disk to some bytes, in whole pages; without a limit
    /// it has what the backing folder has. Files take space as they are written.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.control.space.set_capacity(bytes);
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        Stats {
            syncs: self.control.syncs.load(Ordering::Relaxed),
            bytes_written: self.control.bytes_written.load(Ordering::Relaxed),
            bytes_not_durable: self.running.lock().core.bytes_not_durable(),
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let running = self.running.get_mut();
        if let Some(session) = running.session.take() {
            // A plain unmount writes back what was written through mappings.
            let unmounted = unmount(&self.at, UnmountFlags::empty())
                .or_else(|_| detach(&self.at).map_err(|_| Errno::IO));
            if let Err(error) = unmounted {
                warn!(%error, at = %self.at.display(), "can't unmount a disk");
            }
            finish(session);
        }
        if let Err(error) = running.core.end() {
            warn!(%error, backing = %self.backing.display(), "can't tidy up after a disk");
        }
    }
}

fn told(path: &Path, what: &str) -> io::Error {
    let text = format!("{} {what}", path.display());
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// True for what a mount says whose owner was killed.
fn is_abandoned(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

/// Mounts, and begins to answer the kernel.
fn start(core: &Arc<Core>, at: &Path) -> io::Result<BackgroundSession> {
    let fuse = File::options().read(true).write(true).open("/dev/fuse");
    let fuse = fuse.map_err(|error| io::Error::new(error.kind(), format!("/dev/fuse: {error}")))?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        fuse.as_raw_fd()
    );
    let data = CString::new(data)?;
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOATIME;
    mount("drave-disk", at, "fuse", flags, data.as_c_str()).map_err(|error| {
        let text = format!(
            "can't mount a FUSE file system at {}: {error}",
            at.display()
        );
        io::Error::new(io::Error::from(error).kind(), text)
    })?;
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    let served = Served::new(Arc::clone(core));
    let session = Session::from_fd(served, OwnedFd::from(fuse), SessionACL::All, config);
    session.and_then(Session::spawn).inspect_err(|_| {
        if let Err(error) = detach(at) {
            warn!(%error, at = %at.display(), "can't unmount a disk");
        }
    })
}

/// Takes the mount away, whoever uses it, and with it what the kernel has in its caches.
fn detach(at: &Path) -> io::Result<()> {
    Ok(unmount(at, UnmountFlags::FORCE | UnmountFlags::DETACH)?)
}

/// Waits for the threads, but not for ever.
fn finish(session: BackgroundSession) {
    let begun = Instant::now();
    while !session.guard.is_finished() && begun.elapsed() < END_WAIT {
        thread::sleep(Duration::from_millis(1));
    }
    if !session.guard.is_finished() {
        warn!("a disk is still in use after it was unmounted");
    } else if let Err(error) = session.join() {
        warn!(%error, "a disk ended with an error");
    }
}
