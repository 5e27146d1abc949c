//! Wall clocks that jump: brokers run with libfaketime, which answers for the
//! system's clock with an offset that a file says. Monotonic time goes on as it is.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Where systems have it: Debian, Fedora, Alpine and others.
const FOLDERS: [&str; 4] = [
    "/usr/lib/faketime",
    "/usr/lib64/faketime",
    "/usr/local/lib/faketime",
    "/usr/lib",
];
/// The one for programs with threads.
const LIBRARY: &str = "libfaketimeMT.so.1";

/// The library, or why there is none.
pub(super) fn library() -> anyhow::Result<PathBuf> {
    // Debian's folders below /usr/lib are named for the machine.
    let of_machines = std::fs::read_dir("/usr/lib").into_iter().flatten();
    let of_machines = of_machines.flatten().map(|it| it.path().join("faketime"));
    FOLDERS
        .iter()
        .map(PathBuf::from)
        .chain(of_machines)
        .map(|folder| folder.join(LIBRARY))
        .find(|file| file.exists())
        .with_context(|| format!("{LIBRARY} is missing (Debian has it in libfaketime)"))
}

/// The environment of a process whose clock is what `file` says.
pub(super) fn environment(file: &Path) -> anyhow::Result<[(&'static str, PathBuf); 5]> {
    Ok([
        ("LD_PRELOAD", library()?),
        ("FAKETIME_TIMESTAMP_FILE", file.to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
        // Waits on the monotonic clock are right as they are; the library's remedy ends them at once.
        ("FAKETIME_FORCE_MONOTONIC_FIX", "0".into()),
        ("FAKETIME_NO_CACHE", "1".into()),
    ])
}

/// Puts the clock of whoever runs with `file` this far ahead of the true one.
pub(super) fn set(file: &Path, ahead_seconds: i64) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{ahead_seconds:+}\n"))
        .and_then(|()| std::fs::rename(&new, file))
        .with_context(|| format!("{}", file.display()))
}
