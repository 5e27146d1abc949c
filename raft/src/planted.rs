//! The bug on purpose of this crate; see [`drave_storage::planted`].

use drave_storage::planted::PlantedBug;

/// A replica that is opened does not know for whom it has voted, nor in which term.
pub const FORGET_VOTE: PlantedBug = PlantedBug::named("forget-vote");
