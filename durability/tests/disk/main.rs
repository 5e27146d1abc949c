//! The disk that loses power, mounted for real and used as any program would.
#![cfg(target_os = "linux")]

mod bytes;
mod faults;
mod mapped;
mod model;
mod names;
mod rig;
