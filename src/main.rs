//! The `sbp` command line.

fn main() {}
