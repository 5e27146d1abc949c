//! The `drave` binary; everything is in the library.

use std::process::ExitCode;

/// Messages are allocated on one thread and freed on another, which glibc's
/// allocator pays for in time, and in memory that it can't give back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    drave::cli::main()
}
