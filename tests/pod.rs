//! A run's pod as two real processes of the built binary, the real Claude CLI between them, a
//! scripted model above and a small server that takes events in: everything but Kubernetes.
//!
//! Tests that need the CLI find it through `RUNLEDGER_CLAUDE` (the path of its native binary);
//! without it they are skipped, but under `CI=true` they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "model/app/mod.rs"]
#[allow(dead_code)]
mod app;
#[path = "pod/crashes.rs"]
mod crashes;
#[path = "pod/ends.rs"]
mod ends;
#[path = "git/server.rs"]
#[allow(dead_code)]
mod git_server;
#[path = "pod/guards.rs"]
mod guards;
#[path = "pod/harness.rs"]
mod harness;
#[path = "pod/limits.rs"]
mod limits;
#[path = "pod/repository.rs"]
mod repository;
#[path = "pod/server.rs"]
mod server;
#[path = "pod/work.rs"]
mod work;
