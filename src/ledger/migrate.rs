//! `runledger migrate`: waits for Postgres, checks that it can be used, and applies the migrations
//! that the binary carries, one at a time under an advisory lock.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use clap::Parser;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::time::Instant;

use super::pool::options;

/// The migrations of `migrations/`, embedded.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Oldest major version of Postgres that the schema works on.
const OLDEST: i32 = 14;
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest try to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Arguments of `runledger migrate`.
#[derive(Debug, Parser)]
pub struct Args {
    /// postgres://user:password@host:5432/database?sslmode=require
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true
    )]
    pub database_url: String,
    /// Seconds to wait for Postgres to answer.
    #[arg(long, default_value_t = 120)]
    pub wait: u64,
}

/// Why the migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `DATABASE_URL` is missing or wrong.
    #[error(transparent)]
    Url(#[from] super::Error),
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
    /// A migration failed; nothing of it stays.
    #[error("a migration failed and was rolled back")]
    Failed(#[source] MigrateError),
    /// Any other answer of the database.
    #[error("Postgres answered with an error")]
    Database(#[source] sqlx::Error),
    /// Progress could not be written.
    #[error("standard output can't be written to")]
    Output(#[source] std::io::Error),
}

/// Applies what is missing, and says on standard output what that was.
pub async fn run(args: Args) -> Result<(), Error> {
    migrate(&args, &mut std::io::stdout()).await
}

/// As [`run`], with its progress lines written to `out`.
pub async fn migrate(args: &Args, out: &mut (dyn Write + Send)) -> Result<(), Error> {
    let options = options(&args.database_url)?.disable_statement_logging();
    let mut connection = reach(&options, args.wait, out).await?;
    check(&mut connection).await?;
    let before = applied(&mut connection).await?;
    MIGRATIONS.run(&mut connection).await.map_err(explain)?;
    let mut say = |line: String| writeln!(out, "{line}").map_err(Error::Output);
    let mut new = 0;
    for migration in MIGRATIONS.iter().filter(|m| !before.contains(&m.version)) {
        new += 1;
        say(format!(
            "applied {:04} {}",
            migration.version, migration.description
        ))?;
    }
    if new == 0 {
        say("nothing to apply: the ledger is up to date".to_owned())?;
    }
    connection.close().await.map_err(Error::Database)
}

/// A connection, once there is one. What waiting can't cure is told at once.
async fn reach(
    options: &PgConnectOptions,
    wait: u64,
    out: &mut (dyn Write + Send),
) -> Result<PgConnection, Error> {
    let start = Instant::now();
    loop {
        let answer = tokio::time::timeout(CONNECT, options.connect())
            .await
            .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())));
        let error = match answer {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        match super::Error::from(error) {
            super::Error::Unavailable(error) if !matches!(error, sqlx::Error::Tls(_)) => {
                let waited = start.elapsed();
                if waited + PAUSE > Duration::from_secs(wait) {
                    return Err(Error::Away(wait, error));
                }
                writeln!(
                    out,
                    "waiting for Postgres ({} s of {wait} s): {error}",
                    waited.as_secs()
                )
                .map_err(Error::Output)?;
            }
            super::Error::Unavailable(error) | super::Error::Database(error) => {
                return Err(Error::Denied(error));
            }
            other => return Err(Error::Url(other)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn check(connection: &mut PgConnection) -> Result<(), Error> {
    let row = sqlx::query!(
        r#"SELECT current_setting('server_version_num')::int AS "number!",
                  current_setting('server_version') AS "version!",
                  current_user::text AS "user!",
                  current_database()::text AS "database!",
                  current_schema()::text AS schema,
                  has_schema_privilege(current_schema(), 'CREATE') AS may_create"#
    )
    .fetch_one(connection)
    .await
    .map_err(Error::Database)?;
    if row.number < OLDEST * 10_000 {
        return Err(Error::TooOld(row.version));
    }
    match (row.schema, row.may_create) {
        (Some(_), Some(true)) => Ok(()),
        (Some(schema), _) => Err(Error::NoRights(format!(
            "user {user} may not make tables in schema {schema} of database {database}; as its owner: \
             GRANT CREATE, USAGE ON SCHEMA {schema} TO {user}",
            user = row.user,
            database = row.database,
        ))),
        (None, _) => Err(Error::NoRights(format!(
            "user {} has no schema to work in: none of its search_path is in database {} and open to it",
            row.user, row.database,
        ))),
    }
}

/// Versions that were applied before.
async fn applied(connection: &mut PgConnection) -> Result<BTreeSet<i64>, Error> {
    let there =
        sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "there!""#)
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::Database)?;
    if !there {
        return Ok(BTreeSet::new());
    }
    // Not checked at build time: this table is made by the migrator, not by a migration.
    let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM _sqlx_migrations")
        .fetch_all(connection)
        .await
        .map_err(Error::Database)?;
    Ok(versions.into_iter().collect())
}

fn explain(error: MigrateError) -> Error {
    match error {
        MigrateError::VersionMissing(version) => Error::Newer(version),
        MigrateError::VersionMismatch(version) => Error::Changed(version),
        other => Error::Failed(other),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_in_the_folder_is_in_the_binary() {
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations"))
            .unwrap()
            .count();
        assert_eq!(
            MIGRATIONS.iter().count(),
            files,
            "touch src/ledger/migrate.rs and build again"
        );
    }

    #[tokio::test]
    async fn a_missing_url_is_named() {
        let args = Args {
            database_url: String::new(),
            wait: 0,
        };
        let error = migrate(&args, &mut Vec::new()).await.unwrap_err();
        assert!(
            error.to_string().starts_with("DATABASE_URL can't be used"),
            "{error}"
        );
    }
}
