//! `runledger migrate`: waits for Postgres, checks that it and the tables in it can be used, and applies
//! the migrations that the binary carries, one at a time under an advisory lock. Tables of the earlier
//! system are joined as they are, rows and all.
//!
//! It leaves to `legacy` what is read from tables that go.

mod error;
pub(super) mod hand;
mod hanging;
mod online;
mod retype;
mod shape;
mod statements;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Duration;

use clap::{Parser, Subcommand};
use sqlx::migrate::{Migrate, MigrateError, Migration, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection as _};
use tokio::time::Instant;

use super::connection::Connection;
use super::grants::Roles;
use super::legacy;
use super::pool::options;
pub use error::Error;
use hand::Hand;
use shape::Table;
use statements::{Column, Made};

/// The migrations of `migrations/`, embedded.
pub static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Oldest major version of Postgres that the schema works on.
const OLDEST: i32 = 14;
/// Advisory lock of whoever migrates: the first bytes of `runledger`.
const LOCK_KEY: i64 = 0x7275_6e6c_6564_6765;
/// Between two tries to connect, or to get a lock on a table.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two looks whether another migrate has ended.
const POLL: Duration = Duration::from_millis(200);
/// Longest try to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Arguments of `runledger migrate`.
///
/// On an empty database this makes the tables. On one that has users, agents, sessions, messages or
/// workflow_runs already, it joins them: columns, indexes and constraints are added while others read
/// and write, and no row is lost. It may be interrupted and run again at any time.
#[derive(Clone, Debug, Default, Parser)]
pub struct Args {
    /// Which database.
    #[command(flatten)]
    pub connection: Connection,
    /// Seconds to wait for Postgres to answer.
    #[arg(long, default_value_t = 120, global = true)]
    pub wait: u64,
    /// Print what would be done, and do nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Who is to get rights on the tables.
    #[command(flatten)]
    pub roles: Roles,
    /// What to do once the ledger is up to date.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What comes from the earlier system.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make runs of the earlier system's process rows, session metadata and log files.
    ImportLegacy(legacy::ImportArgs),
    /// Remove what was imported: workflow_processes, and the facts of runs in sessions' metadata.
    DropLegacy(legacy::DropArgs),
}

/// Applies what is missing, and says on standard output what that was.
pub async fn run(args: Args) -> Result<(), Error> {
    let out = &mut std::io::stdout();
    match &args.command {
        None => migrate(&args, out).await,
        Some(Command::ImportLegacy(import)) => import_legacy(&args, import, out).await.map(drop),
        Some(Command::DropLegacy(_)) => drop_legacy(&args, out).await,
    }
}

/// `runledger migrate drop-legacy`, with its progress lines written to `out`.
pub async fn drop_legacy(args: &Args, out: &mut (dyn Write + Send)) -> Result<(), Error> {
    let mut connection = up_to_date(args, out).await?;
    let mut hand = Hand {
        connection: &mut connection,
        out,
        dry: args.dry_run,
    };
    legacy::remove(&mut hand).await
}

/// `runledger migrate import-legacy`, with its progress lines and its report written to `out`.
pub async fn import_legacy(
    args: &Args,
    import: &legacy::ImportArgs,
    out: &mut (dyn Write + Send),
) -> Result<legacy::Report, Error> {
    let mut ledger = up_to_date(args, out).await?;
    let source = import
        .from
        .as_ref()
        .unwrap_or(&args.connection.database_url);
    let source = options(source)?.disable_statement_logging();
    let from = [
        reach(&source, args.wait, out).await?,
        reach(&source, args.wait, out).await?,
    ];
    let report = legacy::import(import, &mut ledger, from, args.dry_run, out).await?;
    if args.dry_run {
        writeln!(
            out,
            "a dry run: nothing was written; an import would do this"
        )
        .map_err(Error::Output)?;
    }
    write!(out, "{report}").map_err(Error::Output)?;
    Ok(report)
}

/// The ledger's database, locked, once it is certain that nothing is left to apply.
async fn up_to_date(args: &Args, out: &mut (dyn Write + Send)) -> Result<PgConnection, Error> {
    let options = options(&args.connection.database_url)?.disable_statement_logging();
    let mut connection = reach(&options, args.wait, out).await?;
    check(&mut connection).await?;
    let before = applied(&mut connection).await?;
    if MIGRATIONS.iter().any(|m| !before.contains(&m.version)) {
        return Err(Error::Behind);
    }
    let mut hand = Hand {
        connection: &mut connection,
        out,
        dry: false,
    };
    lock(&mut hand).await?;
    Ok(connection)
}

/// As [`run`], with its progress lines written to `out`.
pub async fn migrate(args: &Args, out: &mut (dyn Write + Send)) -> Result<(), Error> {
    let options = options(&args.connection.database_url)?.disable_statement_logging();
    let mut connection = reach(&options, args.wait, out).await?;
    check(&mut connection).await?;
    let mut hand = Hand {
        connection: &mut connection,
        out,
        dry: args.dry_run,
    };
    if !args.dry_run {
        lock(&mut hand).await?;
    }
    bring_up(&mut hand).await?;
    give(&mut hand, &args.roles).await?;
    // The lock goes with the connection.
    connection.close().await.map_err(Error::Database)
}

async fn give(hand: &mut Hand<'_>, roles: &Roles) -> Result<(), Error> {
    if !hand.dry {
        let named = |error| Error::Rights(roles.names().join(", "), error);
        roles.grant(hand.connection).await.map_err(named)?;
    }
    let done = if hand.dry { "would give" } else { "gave" };
    for role in roles.names() {
        hand.say(&format!("{done} rights to {role}"))?;
    }
    Ok(())
}

async fn bring_up(hand: &mut Hand<'_>) -> Result<(), Error> {
    let before = applied(hand.connection).await?;
    let pending: Vec<&Migration> = MIGRATIONS
        .iter()
        .filter(|m| !before.contains(&m.version))
        .collect();
    let wanted = wanted();
    let tables = shape::look(hand.connection, &wanted).await?;
    let made: Vec<Made> = pending
        .iter()
        .flat_map(|m| statements::made(m.sql.as_str()))
        .collect();
    let taken = shape::taken(hand.connection, &made).await?;
    shape::check(&tables, &wanted, taken)?;
    sees_all(hand, &tables).await?;
    retype::run(hand, &tables).await?;
    if !pending.is_empty() {
        online::fill(hand, &wanted).await?;
    }
    for migration in &pending {
        let script = migration.sql.as_str();
        online::prepare(hand, script, &wanted).await?;
        apply(hand, migration).await?;
    }
    online::settle(hand, &wanted).await?;
    if hand.dry || !pending.is_empty() {
        online::name_covered_indexes(hand).await?;
    }
    if pending.is_empty() {
        hand.say("nothing to apply: the ledger is up to date")?;
    }
    Ok(())
}

/// Refuses to work on rows that policies hide from this user.
async fn sees_all(hand: &mut Hand<'_>, tables: &BTreeMap<String, Table>) -> Result<(), Error> {
    let names: Vec<String> = tables.keys().cloned().collect();
    // Not checked at build time: a name that is no table would be an error there.
    let (user, hidden): (String, Option<String>) = sqlx::query_as(
        "SELECT current_user::text, string_agg(name, ', ') FILTER (WHERE row_security_active(name)) FROM unnest($1) AS name",
    )
    .bind(&names)
    .fetch_one(&mut *hand.connection)
    .await
    .map_err(Error::Database)?;
    match hidden {
        Some(hidden) => Err(Error::Hidden(user, hidden)),
        None => Ok(()),
    }
}

/// All columns that the migrations add to tables which may be there already.
fn wanted() -> Vec<Column> {
    MIGRATIONS
        .iter()
        .flat_map(|migration| statements::columns(migration.sql.as_str()))
        .collect()
}

/// One migration, whole or not at all.
async fn apply(hand: &mut Hand<'_>, migration: &Migration) -> Result<(), Error> {
    let name = format!("{:04} {}", migration.version, migration.description);
    if hand.dry {
        hand.say(&format!("would apply {name}, in one transaction:"))?;
        return hand.show(migration.sql.as_str());
    }
    const TABLE: &str = "_sqlx_migrations";
    let mut tries = 0;
    loop {
        hand.raw("SET lock_timeout = '2s'").await?;
        hand.connection
            .ensure_migrations_table(TABLE)
            .await
            .map_err(Error::Failed)?;
        match hand.connection.apply(TABLE, migration).await {
            Ok(_) => return hand.say(&format!("applied {name}")),
            Err(MigrateError::ExecuteMigration(error, _))
                if hand::is_lock(&error) && tries < hand::TRIES =>
            {
                tries += 1;
                hand.say(&format!("{name} waits for a lock that a long query holds"))?;
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(Error::Failed(error)),
        }
    }
}

/// Keeps a second migrate out. Polled: whoever waits inside Postgres holds a snapshot, which an index
/// that is built CONCURRENTLY would wait for in turn.
async fn lock(hand: &mut Hand<'_>) -> Result<(), Error> {
    let mut told = false;
    loop {
        let locked =
            sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "locked!""#, LOCK_KEY)
                .fetch_one(&mut *hand.connection)
                .await
                .map_err(Error::Database)?;
        if locked {
            return Ok(());
        }
        if !told {
            hand.say("another runledger migrate is at work in this database: waiting for its end")?;
            told = true;
        }
        tokio::time::sleep(POLL).await;
    }
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

/// Refuses a server that lacks what the schema is made of.
fn new_enough(number: i32, version: String) -> Result<(), Error> {
    if number < OLDEST * 10_000 {
        return Err(Error::TooOld(version));
    }
    Ok(())
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
    new_enough(row.number, row.version)?;
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

/// Versions that were applied before, once it is certain that they are ours.
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
    let rows: Vec<(i64, Vec<u8>, bool)> =
        sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations ORDER BY version")
            .fetch_all(connection)
            .await
            .map_err(Error::Database)?;
    for (version, checksum, success) in &rows {
        let Some(ours) = MIGRATIONS.iter().find(|m| m.version == *version) else {
            return Err(Error::Newer(*version));
        };
        if !success {
            return Err(Error::HalfApplied(*version));
        }
        if *ours.checksum != checksum[..] {
            return Err(Error::Changed(*version));
        }
    }
    Ok(rows.into_iter().map(|(version, _, _)| version).collect())
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

    #[test]
    fn a_server_that_is_too_old_is_told_which_would_do() {
        let error = new_enough(130_022, "13.22 (Debian)".to_owned()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Postgres 13.22 (Debian) is too old: 14 or newer is needed"
        );
        assert!(new_enough(140_000, "14.0".to_owned()).is_ok());
    }

    #[tokio::test]
    async fn a_missing_url_is_named() {
        let args = Args {
            wait: 0,
            ..Args::default()
        };
        let error = migrate(&args, &mut Vec::new()).await.unwrap_err();
        assert!(
            error.to_string().starts_with("DATABASE_URL can't be used"),
            "{error}"
        );
    }
}
