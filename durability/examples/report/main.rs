//! Writes the report of a made-up run, to see what the page looks like:
//! `cargo run --release -p drave-durability --example report -- report.html`.

mod made_up;

use std::io::Write;

fn main() -> std::io::Result<()> {
    let report = made_up::report();
    let page = drave_durability::report::html(&report);
    match std::env::args_os().nth(1) {
        Some(path) => std::fs::write(path, page),
        None => std::io::stdout().write_all(page.as_bytes()),
    }
}
