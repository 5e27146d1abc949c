//! The bugs on purpose of this crate, and the choice among all; see [`drave_storage::planted`].

use drave_storage::planted::PlantedBug;

/// A leader serves what is in its log, committed or not.
pub(crate) const READ_UNCOMMITTED: PlantedBug = PlantedBug::named("read-uncommitted");

/// What a new leader knows of idempotent producers is nothing.
pub(crate) const FORGET_PRODUCERS: PlantedBug = PlantedBug::named("forget-producers");

/// No bug is there to be chosen.
#[cfg(not(feature = "planted-bugs"))]
pub(crate) fn check() -> anyhow::Result<()> {
    Ok(())
}

/// Says which bug this process has; a name that none has is an error.
#[cfg(feature = "planted-bugs")]
pub(crate) fn check() -> anyhow::Result<()> {
    use drave_raft::planted::FORGET_VOTE;
    use drave_storage::planted::{ACKNOWLEDGE_BEFORE_SYNC, chosen};

    let all = [
        ACKNOWLEDGE_BEFORE_SYNC,
        FORGET_VOTE,
        READ_UNCOMMITTED,
        FORGET_PRODUCERS,
    ]
    .map(PlantedBug::name);
    match chosen() {
        Some(name) if all.contains(&name) => eprintln!("a bug on purpose is in effect: {name}"),
        Some(name) => anyhow::bail!("DRAVE_PLANTED_BUG: `{name}` is none of {}", all.join(", ")),
        None => {}
    }
    Ok(())
}
