//! The ledger. What do we store? One row per run (`workflow_runs`) that only moves forward; the
//! session that it belongs to and the messages said in it; each attempt's cumulative figures, of
//! which the run's are the sums; and the events that a supervisor journalled. All SQL is here, and
//! the schema in `migrations/`. The database itself refuses whatever would move a run backward.
//!
//! It leaves to others who may write what: the server judges a batch's sender, the controller what a
//! run's phase is.

mod clean;
pub mod connection;
mod effects;
mod error;
mod figures;
mod grants;
mod known;
mod lanes;
pub mod legacy;
mod lookup;
pub mod migrate;
mod mirror;
mod patches;
mod pool;
pub mod prices;
pub mod prune;
pub mod query;
pub mod records;
pub mod report;
pub mod rollup;
mod rows;
mod store;
mod workspaces;

pub use error::Error;
pub use pool::Ledger;
pub use store::Target;
