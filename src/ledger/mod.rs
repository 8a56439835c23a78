//! The ledger. What do we store? One row per run (`workflow_runs`) that only moves forward; the
//! session that it belongs to and the messages said in it; each attempt's cumulative usage; and the
//! events that a supervisor journalled. All SQL is here, and the schema in `migrations/`.

pub mod records;
