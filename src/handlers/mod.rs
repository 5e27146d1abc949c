//! From a request to the handler of its API.

pub mod group_admin;
pub mod group_offsets;
pub mod groups;
