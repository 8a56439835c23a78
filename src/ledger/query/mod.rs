//! What people ask of the ledger: runs, sessions and what was said in them, and who did what. Reads
//! only, but for a human's word and the audit, which never touch `workflow_runs`.
//!
//! Lists come in pages after a key, never after a number of rows, and nothing is counted; who wants a
//! number gets the planner's estimate. Each statement is planned for the filters that it is given (the
//! pool of readers says so), so that one text serves them all and finds its index each time.

mod audit;
mod filter;
mod messages;
mod run;
mod runs;
mod sessions;

pub use audit::{Action, Deed, Entry, Subject};
pub use filter::{Direction, Order, RunFilter, RunKey};
pub use messages::{MessageKey, Said, Word};
pub use run::{Completion, DiffSummary, Run, Status};
pub use runs::{RunPage, RunSummary};
pub use sessions::{SessionKey, SessionState, SessionSummary};

/// Rows of a page, where none are asked for.
pub const PAGE: u32 = 20;
/// Most rows of a page.
pub const MAX_PAGE: u32 = 100;

/// A page's size within its bounds.
fn size(asked: u32) -> i64 {
    i64::from(asked.clamp(1, MAX_PAGE))
}
