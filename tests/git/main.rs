//! Git on real repositories: made by the git command, served on loopback by `git http-backend`, behind
//! nginx or a server of our own, and by sshd; and every number compared with git's own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod checkouts;
mod conformance;
mod dice;
mod fuzz;
mod histories;
mod kills;
mod lab;
mod nginx;
mod patches;
mod planted;
mod remotes;
mod reuse;
mod rough;
mod server;
mod servers;
mod ssh;
mod states;
mod traps;
mod workspaces;
