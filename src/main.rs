//! drave
fn main() {}
