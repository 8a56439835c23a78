//! The one binary: subcommands for each place that Runledger runs in.

fn main() {}
