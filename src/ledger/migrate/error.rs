//! Why `runledger migrate` and what goes with it stopped, and what to do about it.

use sqlx::migrate::MigrateError;

use super::{OLDEST, legacy};

/// Why the migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `DATABASE_URL` is missing or wrong.
    #[error(transparent)]
    Url(#[from] crate::ledger::Error),
    /// Postgres did not answer in time.
    #[error("Postgres did not answer within {0} s")]
    Away(u64, #[source] sqlx::Error),
    /// Postgres answered, and did not let us in.
    #[error(
        "Postgres refuses the connection; check user, password, database and sslmode in DATABASE_URL"
    )]
    Denied(#[source] sqlx::Error),
    /// The server is older than the schema needs.
    #[error("Postgres {0} is too old: {OLDEST} or newer is needed")]
    TooOld(String),
    /// The user may not make tables.
    #[error("{0}")]
    NoRights(String),
    /// The database was migrated by a newer Runledger.
    #[error(
        "the database knows migration {0} and this Runledger doesn't: use the newer release, or a backup"
    )]
    Newer(i64),
    /// A migration that was applied is not the one that this binary carries.
    #[error(
        "migration {0} was changed after it had been applied; the release is damaged or mixed up"
    )]
    Changed(i64),
    /// A migration was left half-applied by other means than this command.
    #[error(
        "migration {0} is marked as half applied, which this command never leaves behind: restore a backup, or \
         undo what it did and delete its row from _sqlx_migrations"
    )]
    HalfApplied(i64),
    /// Something that is there is not what we know by its name.
    #[error(
        "the database has tables or other things of our names that are not the ones we know: {0}. Nothing was \
         changed. Rename them, or use another database or schema"
    )]
    Shape(String),
    /// The tables hold everything as text.
    #[error(
        "the tables here hold ids, times or JSON as text ({0}) and are not changed in place. Nothing was \
         changed. Migrate an empty database instead, then bring the rows over with: runledger migrate \
         import-legacy --from URL-of-this-database"
    )]
    Text(String),
    /// Something hangs on columns that must be made wider.
    #[error(
        "columns of workflow_runs have to be changed, and these use them or can't be made on the new types: {0}. \
         Nothing was changed. Drop them, run migrate, and make them again"
    )]
    Hangs(String),
    /// Policies would hide rows from us.
    #[error(
        "policies show {0} of the rows of {1} only in part, and migrate would miss the others. Nothing was changed. \
         Run it as a user with BYPASSRLS, or ALTER TABLE … NO FORCE ROW LEVEL SECURITY first"
    )]
    Hidden(String, String),
    /// The import or the removal of the earlier system's rows ended early.
    #[error(transparent)]
    Legacy(#[from] legacy::Error),
    /// Something would be lost, or would break.
    #[error("nothing was removed; in the way:\n- {0}")]
    InTheWay(String),
    /// The migrations come first.
    #[error("the ledger is not up to date: run runledger migrate first")]
    Behind,
    /// A migration failed; nothing of it stays.
    #[error("a migration failed and was rolled back")]
    Failed(#[source] MigrateError),
    /// A role is not there, or the tables are not this user's.
    #[error(
        "rights can't be given to {0}; make the roles first, and migrate as the owner of the tables"
    )]
    Rights(String, #[source] sqlx::Error),
    /// Any other answer of the database.
    #[error("Postgres answered with an error")]
    Database(#[source] sqlx::Error),
    /// Progress could not be written.
    #[error("standard output can't be written to")]
    Output(#[source] std::io::Error),
}
