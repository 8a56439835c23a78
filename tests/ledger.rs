//! The ledger and the server's door to it, on a real Postgres of the tests' own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "ledger/adopt.rs"]
mod adopt;
#[path = "ledger/again.rs"]
mod again;
#[path = "ledger/at_once.rs"]
mod at_once;
#[path = "ledger/audit.rs"]
mod audit;
#[path = "ledger/batches.rs"]
mod batches;
#[path = "ledger/copy.rs"]
mod copy;
#[path = "ledger/cost.rs"]
mod cost;
#[path = "ledger/database.rs"]
mod database;
#[path = "ledger/drop.rs"]
mod drop;
#[path = "ledger/faults.rs"]
mod faults;
#[path = "ledger/forward.rs"]
mod forward;
#[path = "ledger/guards.rs"]
mod guards;
#[path = "ledger/import.rs"]
mod import;
#[path = "ledger/migrate.rs"]
mod migrate;
#[path = "ledger/models.rs"]
mod models;
#[path = "ledger/outage.rs"]
mod outage;
#[path = "ledger/patches.rs"]
mod patches;
#[path = "ledger/plans.rs"]
mod plans;
#[path = "ledger/prune.rs"]
mod prune;
#[path = "ledger/query.rs"]
mod query;
#[path = "ledger/random.rs"]
mod random;
#[path = "ledger/report.rs"]
mod report;
#[path = "ledger/roles.rs"]
mod roles;
#[path = "ledger/rollups.rs"]
mod rollups;
#[path = "ledger/server.rs"]
mod server;
#[path = "ledger/shapes.rs"]
mod shapes;
#[path = "ledger/together.rs"]
mod together;
#[path = "ledger/whole.rs"]
mod whole;
