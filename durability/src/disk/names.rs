//! Names that are durable only after their folder was synced: what a sync makes
//! of them, and what a power cut does.

use super::tree::{Kind, Tree};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;

/// A name in a folder, and what it stood for at the last sync.
type Remembered = (u64, OsString, Option<u64>);

impl Tree {
    /// Makes the names in a folder durable.
    pub(super) fn sync_folder(&mut self, id: u64) -> io::Result<()> {
        let folder = self.folder_mut(id)?;
        let was = std::mem::take(&mut folder.was);
        let now = was.keys().filter_map(|name| folder.children.get(name));
        let touched: BTreeSet<u64> = now.chain(was.values().flatten()).copied().collect();
        for id in was.into_values().flatten() {
            self.let_be(id)?;
        }
        let is_folder = |id: &u64| matches!(self.nodes.get(id), Some(node) if matches!(node.kind, Kind::Folder(_)));
        let moved: BTreeSet<u64> = touched.into_iter().filter(is_folder).collect();
        if !moved.is_empty() {
            self.settle(&moved)?;
        }
        Ok(())
    }

    /// A folder that moved is in one place: its new name is durable when its old
    /// one is gone, and the other way round.
    fn settle(&mut self, moved: &BTreeSet<u64>) -> io::Result<()> {
        let mut done = Vec::new();
        for node in self.nodes.values_mut() {
            let Kind::Folder(folder) = &mut node.kind else {
                continue;
            };
            let children = &folder.children;
            let settled = folder.was.extract_if(.., |name, was| {
                let now = children.get(name);
                now.is_some_and(|id| moved.contains(id))
                    || was.is_some_and(|id| moved.contains(&id))
            });
            done.extend(settled.filter_map(|(_, was)| was));
        }
        done.into_iter().try_for_each(|id| self.let_be(id))
    }

    /// How a power cut leaves the names: as they were when their folders were
    /// synced. Says how many changed.
    pub(super) fn revert_names(&mut self) -> io::Result<u64> {
        let changed = self.remembered();
        for (folder, name, _) in &changed {
            if let Ok(id) = self.child(*folder, name) {
                self.take_name(*folder, name, id)?;
            }
        }
        for (folder, name, was) in &changed {
            let Some(id) = was else {
                continue;
            };
            let to = self.path(*folder).join(name);
            let node = self.node(*id)?;
            if node.names.is_empty() {
                std::fs::rename(self.waiting_room(*id), to)?;
            } else if matches!(node.kind, Kind::Folder(_)) {
                continue;
            } else {
                std::fs::hard_link(self.path(*id), to)?;
            }
            self.bind(*folder, name, *id)?;
        }
        Ok(changed.len() as u64)
    }

    fn remembered(&self) -> Vec<Remembered> {
        let mut changed = Vec::new();
        for (id, node) in &self.nodes {
            let Kind::Folder(folder) = &node.kind else {
                continue;
            };
            for (name, was) in &folder.was {
                if folder.children.get(name) != was.as_ref() {
                    changed.push((*id, name.clone(), *was));
                }
            }
        }
        changed.sort();
        changed
    }
}
