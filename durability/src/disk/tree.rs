//! The names of the disk: all files and folders, by the number that the kernel
//! knows them by. The backing folder mirrors it, so every change is made there
//! first. A file that has lost its last name and is still open, or still durable
//! under a name that it had, waits in a hidden folder.

use super::NamesPolicy;
use super::content::Shared;
use super::files::FileNode;
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The number of the topmost folder.
pub(super) const ROOT: u64 = 1;

/// The hidden folder, in the topmost one.
const HIDDEN: &str = ".drave-disk-unsynced";

/// What a node is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A folder.
    Folder(Folder),
    /// A file.
    File(Arc<FileNode>),
    /// A symbolic link, or something else that has nothing but a name.
    Other,
}

/// The names in a folder.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub(super) children: BTreeMap<OsString, u64>,
    /// Names that have changed since the last sync, and what they stood for then.
    pub(super) was: BTreeMap<OsString, Option<u64>>,
}

/// A file, a folder or something else.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Where it is to be found: folders and names.
    pub(super) names: BTreeSet<(u64, OsString)>,
    /// How often it is open.
    opens: u64,
    /// How many names stood for it at the last sync and don't now.
    pub(super) remembered: u64,
}

impl Node {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            names: BTreeSet::new(),
            opens: 0,
            remembered: 0,
        }
    }

    /// True while somebody has it open.
    pub(super) fn is_open(&self) -> bool {
        self.opens > 0
    }
}

/// All that has a name, had one, or is open.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) nodes: HashMap<u64, Node>,
    root: PathBuf,
    last: u64,
    policy: NamesPolicy,
    shared: Arc<Shared>,
}

/// Makes the hidden folder below `root`, empty, and says where it is.
pub(super) fn make_hidden(root: &Path) -> io::Result<PathBuf> {
    remove_hidden(root)?;
    let hidden = root.join(HIDDEN);
    fs::create_dir(&hidden)?;
    Ok(hidden)
}

/// Removes the hidden folder below `root`.
pub(super) fn remove_hidden(root: &Path) -> io::Result<()> {
    match fs::remove_dir_all(root.join(HIDDEN)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

impl Tree {
    /// Reads the backing folder.
    pub(super) fn load(root: &Path, policy: NamesPolicy, shared: Arc<Shared>) -> io::Result<Self> {
        let top = Node::new(Kind::Folder(Folder::default()));
        let mut tree = Self {
            nodes: HashMap::from([(ROOT, top)]),
            root: root.to_owned(),
            last: ROOT,
            policy,
            shared,
        };
        // Files with several names, by their number in the backing file system.
        let mut linked = HashMap::new();
        let mut folders = vec![ROOT];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(tree.path(folder))? {
                let (entry, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
                if folder == ROOT && name == HIDDEN {
                    continue;
                }
                let meta = fs::symlink_metadata(&entry)?;
                if let Some(id) = linked.get(&meta.ino()) {
                    tree.bind(folder, &name, *id)?;
                    continue;
                }
                let kind = if meta.is_dir() {
                    Kind::Folder(Folder::default())
                } else if meta.is_file() {
                    let file = FileNode::existing(&entry, &tree.shared.space)?;
                    Kind::File(Arc::new(file))
                } else {
                    Kind::Other
                };
                let id = tree.add(kind);
                tree.bind(folder, &name, id)?;
                if meta.is_dir() {
                    folders.push(id);
                } else if meta.nlink() > 1 {
                    linked.insert(meta.ino(), id);
                }
            }
        }
        Ok(tree)
    }

    fn add(&mut self, kind: Kind) -> u64 {
        self.last += 1;
        self.nodes.insert(self.last, Node::new(kind));
        self.last
    }

    /// The node of this number.
    pub(super) fn node(&self, id: u64) -> io::Result<&Node> {
        Ok(self.nodes.get(&id).ok_or(Errno::NOENT)?)
    }

    pub(super) fn node_mut(&mut self, id: u64) -> io::Result<&mut Node> {
        Ok(self.nodes.get_mut(&id).ok_or(Errno::NOENT)?)
    }

    /// The folder of this number.
    pub(super) fn folder(&self, id: u64) -> io::Result<&Folder> {
        match &self.node(id)?.kind {
            Kind::Folder(folder) => Ok(folder),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    pub(super) fn folder_mut(&mut self, id: u64) -> io::Result<&mut Folder> {
        match &mut self.node_mut(id)?.kind {
            Kind::Folder(folder) => Ok(folder),
            _ => Err(Errno::NOTDIR.into()),
        }
    }

    /// The file of this number.
    pub(super) fn file(&self, id: u64) -> io::Result<Arc<FileNode>> {
        match &self.node(id)?.kind {
            Kind::File(file) => Ok(Arc::clone(file)),
            Kind::Folder(_) => Err(Errno::ISDIR.into()),
            Kind::Other => Err(Errno::INVAL.into()),
        }
    }

    /// Where a node that has no name waits.
    pub(super) fn waiting_room(&self, id: u64) -> PathBuf {
        self.root.join(HIDDEN).join(id.to_string())
    }

    /// Where a node is in the backing folder.
    pub(super) fn path(&self, id: u64) -> PathBuf {
        let mut names = Vec::new();
        let mut at = id;
        let mut path = loop {
            if at == ROOT {
                break self.root.clone();
            }
            match self.nodes.get(&at).and_then(|node| node.names.first()) {
                Some((folder, name)) => {
                    names.push(name);
                    at = *folder;
                }
                None => break self.waiting_room(at),
            }
        };
        path.extend(names.into_iter().rev());
        path
    }

    /// What a name stands for.
    pub(super) fn child(&self, folder: u64, name: &OsStr) -> io::Result<u64> {
        let children = &self.folder(folder)?.children;
        Ok(*children.get(name).ok_or(Errno::NOENT)?)
    }

    /// Where a new name would be in the backing folder.
    fn vacant(&self, folder: u64, name: &OsStr) -> io::Result<PathBuf> {
        let children = &self.folder(folder)?.children;
        if folder == ROOT && name == HIDDEN {
            return Err(Errno::PERM.into());
        }
        if children.contains_key(name) {
            return Err(Errno::EXIST.into());
        }
        if folder != ROOT && self.node(folder)?.names.is_empty() {
            return Err(Errno::NOENT.into());
        }
        Ok(self.path(folder).join(name))
    }

    /// Adds a name, that `make` gives to a new node in the backing folder.
    pub(super) fn make(
        &mut self,
        folder: u64,
        name: &OsStr,
        kind: Kind,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<u64> {
        make(&self.vacant(folder, name)?)?;
        self.remember(folder, name)?;
        let id = self.add(kind);
        self.bind(folder, name, id)?;
        Ok(id)
    }

    /// Gives a file one more name.
    pub(super) fn link(&mut self, id: u64, folder: u64, name: &OsStr) -> io::Result<()> {
        let to = self.vacant(folder, name)?;
        match self.node(id)?.kind {
            Kind::Folder(_) => return Err(Errno::PERM.into()),
            _ => fs::hard_link(self.path(id), to)?,
        }
        self.remember(folder, name)?;
        self.bind(folder, name, id)
    }

    /// Removes a name; that of a folder only when `folders`, and only when it is empty.
    pub(super) fn unlink(&mut self, folder: u64, name: &OsStr, folders: bool) -> io::Result<()> {
        let id = self.child(folder, name)?;
        match &self.node(id)?.kind {
            Kind::Folder(_) if !folders => return Err(Errno::ISDIR.into()),
            Kind::Folder(inside) if !inside.children.is_empty() => {
                return Err(Errno::NOTEMPTY.into());
            }
            Kind::File(_) | Kind::Other if folders => return Err(Errno::NOTDIR.into()),
            _ => {}
        }
        self.remember(folder, name)?;
        self.take_name(folder, name, id)?;
        self.reap(id)
    }

    /// Moves a name, over what has it already.
    pub(super) fn rename(
        &mut self,
        (folder, name): (u64, &OsStr),
        (to_folder, to_name): (u64, &OsStr),
        replace: bool,
    ) -> io::Result<()> {
        let id = self.child(folder, name)?;
        match self.child(to_folder, to_name) {
            Ok(_) if !replace => return Err(Errno::EXIST.into()),
            Ok(target) if target == id => return Ok(()),
            Ok(target) => {
                let is_folder = matches!(self.node(target)?.kind, Kind::Folder(_));
                self.unlink(to_folder, to_name, is_folder)?;
            }
            Err(_) => {}
        }
        let to = self.vacant(to_folder, to_name)?;
        fs::rename(self.path(folder).join(name), to)?;
        self.remember(folder, name)?;
        self.remember(to_folder, to_name)?;
        self.unbind(folder, name, id)?;
        self.bind(to_folder, to_name, id)
    }

    /// Somebody has opened a file.
    pub(super) fn opened(&mut self, id: u64) -> io::Result<()> {
        let path = self.path(id);
        self.file(id)?.hold(&path)?;
        self.node_mut(id)?.opens += 1;
        Ok(())
    }

    /// Somebody has closed a file.
    pub(super) fn closed(&mut self, id: u64) -> io::Result<()> {
        let file = self.file(id)?;
        let node = self.node_mut(id)?;
        node.opens = node.opens.checked_sub(1).ok_or(Errno::BADF)?;
        if node.opens == 0 {
            file.let_go();
            self.reap(id)?;
        }
        Ok(())
    }

    /// Keeps in mind what a name stood for at the last sync, before it changes.
    fn remember(&mut self, folder: u64, name: &OsStr) -> io::Result<()> {
        if self.policy == NamesPolicy::Durable {
            return Ok(());
        }
        let folder = self.folder_mut(folder)?;
        if folder.was.contains_key(name) {
            return Ok(());
        }
        let id = folder.children.get(name).copied();
        folder.was.insert(name.to_owned(), id);
        if let Some(id) = id {
            self.node_mut(id)?.remembered += 1;
        }
        Ok(())
    }

    pub(super) fn bind(&mut self, folder: u64, name: &OsStr, id: u64) -> io::Result<()> {
        let children = &mut self.folder_mut(folder)?.children;
        children.insert(name.to_owned(), id);
        self.node_mut(id)?.names.insert((folder, name.to_owned()));
        Ok(())
    }

    fn unbind(&mut self, folder: u64, name: &OsStr, id: u64) -> io::Result<()> {
        self.folder_mut(folder)?.children.remove(name);
        self.node_mut(id)?.names.remove(&(folder, name.to_owned()));
        Ok(())
    }

    /// Takes a name away from a node, that waits in the hidden folder if it was the last.
    pub(super) fn take_name(&mut self, folder: u64, name: &OsStr, id: u64) -> io::Result<()> {
        let from = self.path(folder).join(name);
        if self.node(id)?.names.len() > 1 {
            fs::remove_file(from)?;
        } else {
            fs::rename(from, self.waiting_room(id))?;
        }
        self.unbind(folder, name, id)
    }

    /// Removes a node that has no name if it is neither open nor remembered.
    pub(super) fn reap(&mut self, id: u64) -> io::Result<()> {
        let Some(node) = self.nodes.get(&id) else {
            return Ok(());
        };
        if !node.names.is_empty() || node.opens > 0 || id == ROOT {
            return Ok(());
        }
        if node.remembered > 0 {
            // It takes no room: the file system would use it for something else.
            if let Kind::File(file) = &node.kind {
                file.with(|content| content.give_up_all(&self.shared.space));
            }
            return Ok(());
        }
        let waiting = self.waiting_room(id);
        let node = self.nodes.remove(&id).expect("it was just found");
        match node.kind {
            Kind::Folder(folder) => {
                fs::remove_dir(waiting)?;
                for id in folder.was.into_values().flatten() {
                    self.let_be(id)?;
                }
            }
            Kind::File(file) => {
                file.remove(&self.shared);
                fs::remove_file(waiting)?;
            }
            Kind::Other => fs::remove_file(waiting)?,
        }
        Ok(())
    }

    /// A name that stood for this node is durable no longer.
    pub(super) fn let_be(&mut self, id: u64) -> io::Result<()> {
        self.node_mut(id)?.remembered -= 1;
        self.reap(id)
    }
}
