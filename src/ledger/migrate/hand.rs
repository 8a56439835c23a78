//! The hand that migrate works with: one connection, progress lines, statements that never queue
//! for a lock behind somebody's long query, and the dry run, in which nothing is done but told.

use std::io::Write;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor};

use super::Error;

/// Longest wait for a lock: whoever comes after us waits behind us that long.
const LOCK: &str = "SET lock_timeout = '2s'";
/// Tries to get a lock, and the pause between two.
pub(in crate::ledger) const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_secs(2);

/// What does the work, or tells it.
pub(in crate::ledger) struct Hand<'a> {
    pub(in crate::ledger) connection: &'a mut PgConnection,
    pub(in crate::ledger) out: &'a mut (dyn Write + Send),
    pub(in crate::ledger) dry: bool,
}

impl Hand<'_> {
    pub(in crate::ledger) fn say(&mut self, line: &str) -> Result<(), Error> {
        writeln!(self.out, "{line}").map_err(Error::Output)
    }

    /// Runs one script of statements (one transaction, unless it is a single statement that has none)
    /// and says what that was.
    pub(in crate::ledger) async fn act(&mut self, what: &str, sql: &str) -> Result<(), Error> {
        if self.dry {
            self.say(&format!("would {what}:"))?;
            return self.show(sql);
        }
        self.quietly(sql).await?;
        self.say(what)
    }

    /// As [`Self::act`], saying nothing.
    pub(in crate::ledger) async fn quietly(&mut self, sql: &str) -> Result<(), Error> {
        self.raw(LOCK).await?;
        let mut tries = 0;
        loop {
            match self.raw(sql).await {
                Err(Error::Database(error)) if is_lock(&error) && tries < TRIES => {
                    tries += 1;
                    if tries % 5 == 1 {
                        self.say("waiting for a lock that a long query or transaction holds")?;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Runs a statement that waits for others without holding them up.
    pub(in crate::ledger) async fn patiently(
        &mut self,
        what: &str,
        sql: &str,
    ) -> Result<(), Error> {
        if self.dry {
            self.say(&format!("would {what}:"))?;
            return self.show(sql);
        }
        self.raw("SET lock_timeout = 0").await?;
        self.raw(sql).await?;
        self.say(what)
    }

    /// Statements that are not run.
    pub(in crate::ledger) fn show(&mut self, sql: &str) -> Result<(), Error> {
        for line in sql.lines().filter(|line| !line.trim().is_empty()) {
            self.say(&format!("    {}", line.trim_end()))?;
        }
        Ok(())
    }

    /// As it is.
    pub(in crate::ledger) async fn raw(&mut self, sql: &str) -> Result<(), Error> {
        self.connection
            .execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned())))
            .await
            .map(drop)
            .map_err(Error::Database)
    }

    /// Goes through a table in the order of its ids, a batch in a transaction of its own, so that no
    /// lock is held for long. `change` is an UPDATE of `batch`'s rows.
    pub(in crate::ledger) async fn batches(
        &mut self,
        what: &str,
        table: &str,
        change: &str,
    ) -> Result<(), Error> {
        let sql = |after: &str| {
            format!(
                "WITH batch AS (SELECT id FROM {table} WHERE {after} ORDER BY id LIMIT {BATCH}),\n\
                 change AS ({change})\n\
                 SELECT (SELECT id::text FROM batch ORDER BY id DESC LIMIT 1)"
            )
        };
        if self.dry {
            return self
                .act(&format!("{what}, {BATCH} rows at a time"), &sql("id > …"))
                .await;
        }
        self.raw("SET lock_timeout = '60s'; SET runledger.backfill = 'on'")
            .await?;
        let mut after = "true".to_owned();
        let mut rows = 0_u64;
        loop {
            let last: Option<String> = sqlx::query_scalar(AssertSqlSafe(sql(&after)))
                .persistent(false)
                .fetch_one(&mut *self.connection)
                .await
                .map_err(Error::Database)?;
            // An id in Postgres' own words.
            let Some(last) = last else { break };
            after = format!("id > '{last}'");
            rows += BATCH;
            if rows.is_multiple_of(100 * BATCH) {
                self.say(&format!("{what}: {rows} rows looked at so far"))?;
            }
        }
        self.raw("RESET runledger.backfill").await?;
        self.say(what)
    }
}

/// Rows of a batch: some 100 ms.
const BATCH: u64 = 5_000;

/// Whether somebody else held a lock for too long.
pub(in crate::ledger) fn is_lock(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}
