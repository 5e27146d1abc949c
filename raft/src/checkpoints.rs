//! Which checkpoints of a group's machine are kept, and which one is its
//! snapshot: the boundary, up to which the log may be purged. The newest one
//! may be only for a restart: the next one takes its place.
//!
//! Shared by the machine's driver, which adds them, and by whoever purges by
//! retention, who picks the boundary from another task.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Newest checkpoints that all stay, for whoever purges by retention.
const RECENT: usize = 16;
/// Of the older ones, one in so many stays.
const LADDER_STRIDE: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Held {
    index: u64,
    /// It can be read back from the store.
    stored: bool,
    /// It may become the boundary; one for a restart goes when the next one comes.
    lasting: bool,
}

#[derive(Debug, Default)]
struct Inner {
    /// Ascending.
    held: Vec<Held>,
    boundary: Option<u64>,
    /// How many have left the newest [`RECENT`].
    aged: usize,
}

impl Held {
    /// One that the store had before.
    fn stored(index: u64) -> Held {
        Held {
            index,
            stored: true,
            lasting: true,
        }
    }
}

impl Inner {
    /// Lets go of what was only for a restart; whether `index` is a new one.
    fn make_room(&mut self, index: u64) -> bool {
        let is_new = self.held.last().is_none_or(|last| last.index != index);
        if is_new {
            self.held.pop_if(|last| !last.lasting);
        }
        is_new
    }

    /// Adds one; those that were there.
    fn push(&mut self, index: u64, lasting: bool) -> Vec<u64> {
        let keep = self.held.iter().map(|held| held.index).collect();
        self.held.push(Held {
            index,
            stored: false,
            lasting,
        });
        keep
    }
}

/// The checkpoints of one group.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints(Mutex<Inner>);

impl Checkpoints {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that the store holds; entries up to `purged` are gone, or about to
    /// go, and with them the checkpoints before it.
    pub(crate) fn open(&self, indexes: &[u64], purged: Option<u64>) {
        let mut inner = self.lock();
        let held = indexes.iter().filter(|index| Some(**index) >= purged);
        inner.held = held.map(|&index| Held::stored(index)).collect();
        let first = inner.held.first().map(|held| held.index);
        inner.boundary = purged.and(first);
    }

    /// Adds a checkpoint for a restart that is on its way to the store, unless
    /// it is there already; returns those to keep beside it.
    pub(crate) fn add_for_restart(&self, index: u64) -> Option<Vec<u64>> {
        let mut inner = self.lock();
        inner.make_room(index).then(|| inner.push(index, false))
    }

    /// The same for a lasting one. With `purge_behind`, only so many older ones
    /// stay and the oldest of them becomes the boundary.
    pub(crate) fn add(&self, index: u64, purge_behind: Option<u32>) -> Option<Vec<u64>> {
        let mut inner = self.lock();
        if !inner.make_room(index) {
            return None;
        }
        if let Some(behind) = purge_behind {
            let gone = inner.held.len().saturating_sub(behind as usize);
            inner.held.drain(..gone);
            inner.boundary = inner.held.first().map(|oldest| oldest.index);
        } else if let Some(aging) = inner.held.len().checked_sub(RECENT) {
            inner.aged += 1;
            let stays =
                inner.aged % LADDER_STRIDE == 1 || inner.boundary == Some(inner.held[aging].index);
            if !stays {
                inner.held.remove(aging);
            }
        }
        Some(inner.push(index, true))
    }

    /// The store has written the checkpoint.
    pub(crate) fn stored(&self, index: u64) {
        let mut inner = self.lock();
        if let Some(held) = inner.held.iter_mut().find(|held| held.index == index) {
            held.stored = true;
        }
    }

    /// A snapshot has taken the place of the log up to `index`.
    pub(crate) fn replace(&self, index: u64) {
        let mut inner = self.lock();
        inner.held = vec![Held::stored(index)];
        inner.boundary = Some(index);
    }

    /// Makes the newest checkpoint before the entry at `index` the boundary;
    /// whether that moved it.
    pub(crate) fn choose_before(&self, index: u64) -> bool {
        let mut inner = self.lock();
        let chosen = inner.held.iter().rev();
        let chosen = chosen
            .filter(|held| held.stored && held.lasting && held.index < index)
            .map(|held| held.index)
            .next();
        let Some(chosen) = chosen.filter(|chosen| Some(*chosen) > inner.boundary) else {
            return false;
        };
        inner.boundary = Some(chosen);
        inner.held.retain(|held| held.index >= chosen);
        true
    }

    /// The checkpoint that is the group's snapshot.
    pub(crate) fn boundary(&self) -> Option<u64> {
        self.lock().boundary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_before_the_purge_point_are_not_held() {
        let checkpoints = Checkpoints::default();
        checkpoints.open(&[17, 99], Some(99));
        assert_eq!(checkpoints.boundary(), Some(99));
        assert_eq!(held(&checkpoints), [99]);
        checkpoints.open(&[17, 99], None);
        assert_eq!(checkpoints.boundary(), None);
        assert_eq!(held(&checkpoints), [17, 99]);
    }

    fn held(checkpoints: &Checkpoints) -> Vec<u64> {
        let inner = checkpoints.lock();
        inner.held.iter().map(|held| held.index).collect()
    }

    #[test]
    fn the_newest_stay_and_one_in_eight_of_the_others() {
        let checkpoints = Checkpoints::default();
        for index in 1..=100 {
            let keep = checkpoints.add(index * 10, None).expect("a new one");
            assert!(!keep.contains(&(index * 10)));
            checkpoints.stored(index * 10);
        }
        assert_eq!(checkpoints.add(1000, None), None);
        let held = held(&checkpoints);
        assert!(held.ends_with(&(85..=100).map(|n| n * 10).collect::<Vec<_>>()));
        assert_eq!(held[..4], [10, 90, 170, 250]);
        assert!(held.len() < RECENT + 100 / LADDER_STRIDE + 2);
    }

    #[test]
    fn the_boundary_is_the_newest_one_before_an_entry_that_is_stored() {
        let checkpoints = Checkpoints::default();
        checkpoints.open(&[10, 20, 30], Some(9));
        assert_eq!(checkpoints.boundary(), Some(10));
        assert!(!checkpoints.choose_before(20));
        assert!(checkpoints.choose_before(21));
        assert_eq!(
            (checkpoints.boundary(), held(&checkpoints)),
            (Some(20), vec![20, 30])
        );
        checkpoints.add(40, None).expect("a new one");
        assert!(checkpoints.choose_before(50));
        assert_eq!(checkpoints.boundary(), Some(30));
        checkpoints.stored(40);
        assert!(checkpoints.choose_before(50));
        assert!(!checkpoints.choose_before(50));
        assert_eq!(checkpoints.boundary(), Some(40));
    }

    #[test]
    fn one_for_a_restart_goes_when_the_next_one_comes_and_is_no_boundary() {
        let checkpoints = Checkpoints::default();
        assert_eq!(checkpoints.add(10, None), Some(vec![]));
        assert_eq!(checkpoints.add_for_restart(12), Some(vec![10]));
        assert_eq!(checkpoints.add_for_restart(12), None);
        assert_eq!(checkpoints.add_for_restart(14), Some(vec![10]));
        checkpoints.stored(10);
        checkpoints.stored(14);
        assert!(checkpoints.choose_before(20));
        assert_eq!(checkpoints.boundary(), Some(10));
        assert_eq!(checkpoints.add(16, Some(1)), Some(vec![10]));
        assert_eq!(held(&checkpoints), [10, 16]);
    }

    #[test]
    fn purging_behind_keeps_one_and_purges_to_it() {
        let checkpoints = Checkpoints::default();
        assert_eq!(checkpoints.add(1, Some(1)), Some(vec![]));
        assert_eq!(checkpoints.boundary(), None);
        assert_eq!(checkpoints.add(2, Some(1)), Some(vec![1]));
        assert_eq!(checkpoints.boundary(), Some(1));
        assert_eq!(checkpoints.add(3, Some(1)), Some(vec![2]));
        assert_eq!(
            (checkpoints.boundary(), held(&checkpoints)),
            (Some(2), vec![2, 3])
        );
    }
}
