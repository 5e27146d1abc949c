//! Work that may wait for the disk, off the async threads.

use std::io;

use drave_storage::SharedStore;

/// Runs `work` on a thread that may block; at once where the store never blocks,
/// so that a simulation has no threads and no order but its own.
pub(crate) async fn run<T: Send + 'static>(
    store: &SharedStore,
    work: impl FnOnce(&SharedStore) -> T + Send + 'static,
) -> io::Result<T> {
    if store.never_blocks() {
        return Ok(work(store));
    }
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || work(&store)).await;
    done.map_err(io::Error::other)
}
