//! Git on real repositories: made by the git command, served by `git http-backend` over https on
//! loopback, and every number compared with git's own.
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
mod lab;
mod planted;
mod remotes;
mod rough;
mod server;
mod ssh;
mod states;
mod workspaces;
