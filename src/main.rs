//! The `drave` binary; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    drave::cli::main()
}
