//! Bugs on purpose, which show that tests see what they are to see.
//!
//! A build with the feature `planted-bugs` has the bug that `DRAVE_PLANTED_BUG` names. Any other build has none,
//! and none of their names: the question is answered when it is compiled. Each crate declares its own bugs, in a file
//! like this one.

/// A write is done when the operating system has it, which syncs it when it likes.
pub const ACKNOWLEDGE_BEFORE_SYNC: PlantedBug = PlantedBug::named("acknowledge-before-sync");

/// A bug that can be chosen by its name.
#[derive(Clone, Copy)]
pub struct PlantedBug(&'static str);

impl PlantedBug {
    /// The bug of this name.
    pub const fn named(name: &'static str) -> PlantedBug {
        PlantedBug(name)
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        self.0
    }

    /// Whether this process has it.
    #[cfg(not(feature = "planted-bugs"))]
    #[inline]
    pub const fn is_planted(self) -> bool {
        false
    }

    /// Whether this process has it.
    #[cfg(feature = "planted-bugs")]
    pub fn is_planted(self) -> bool {
        chosen() == Some(self.0)
    }
}

/// What `DRAVE_PLANTED_BUG` says, if anything.
#[cfg(feature = "planted-bugs")]
pub fn chosen() -> Option<&'static str> {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN
        .get_or_init(|| std::env::var("DRAVE_PLANTED_BUG").ok())
        .as_deref()
}
