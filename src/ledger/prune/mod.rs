//! Retention: what is older than somebody wants to keep it. Events go by the partition, dropped and
//! never deleted; other rows a stretch of their table at a time, so that no transaction is long and no
//! index on age is needed. What belongs to an unfinished run stays, and so does what isn't ours; the
//! rollups keep what pruned runs came to.

mod command;

use std::time::Duration;

use jiff::civil::Date;
use jiff_sqlx::ToSqlx;

use super::{Error, Ledger};

pub use command::{Ages, Args, Failure, run, run_to};

/// Pages of a table that one transaction looks through (2 MiB).
const STRETCH: i64 = 256;
/// Longest look through a whole table.
const COUNT: Duration = Duration::from_secs(3600);

/// A partition of `run_events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The UTC day that its attempts began on.
    pub day: Date,
    /// About how many rows it holds; nothing where nobody has counted.
    pub rows: Option<u64>,
    /// Attempts of unfinished runs are in it.
    pub is_pinned: bool,
}

/// A table whose rows are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Messages of our sessions, but for those in which a run is under way.
    Messages,
    /// Patches that were made before the day, but for those of unfinished runs.
    Patches,
    /// Runs that were created and ended before the day, with their attempts, labels and usage.
    Runs,
    /// Our sessions that were not touched since, of which neither runs, messages nor branches are left.
    Sessions,
    /// Entries of the audit.
    Audit,
}

/// What a table's rows are chosen by, for counting and for deleting a stretch of them.
macro_rules! rows {
    ($self:ident, $do:ident, $table:literal, $old:literal, $before:expr $(, $from:expr, $to:expr)?) => {
        rows!(@$do $self, $table, $old, $before $(, $from, $to)?)
    };
    (@count $self:ident, $table:literal, $old:literal, $before:expr) => {
        sqlx::query_scalar!(
            "SELECT count(*) AS \"count!\" FROM " + $table + " t WHERE " + $old,
            $before as _
        )
        .fetch_one(&$self.pool)
        .await?
        .unsigned_abs()
    };
    (@delete $tx:ident, $table:literal, $old:literal, $before:expr, $from:expr, $to:expr) => {
        sqlx::query!(
            "DELETE FROM " + $table + " t
             WHERE t.ctid >= format('(%s,0)', $2::bigint)::tid AND t.ctid < format('(%s,0)', $3::bigint)::tid AND "
                + $old,
            $before as _,
            $from,
            $to
        )
        .execute(&mut *$tx)
        .await?
        .rows_affected()
    };
}

/// The choice for each table; `$1` is the first day that is kept.
macro_rules! of_each {
    ($table:expr, $what:ident, $do:ident, $before:expr $(, $from:expr, $to:expr)?) => {
        match $table {
            Table::Messages => rows!(
                $what, $do, "messages",
                "t.created_at < $1::date::timestamp AT TIME ZONE 'UTC'
                 AND EXISTS (SELECT FROM sessions s WHERE s.id = t.session_id AND s.namespace IS NOT NULL)
                 AND NOT EXISTS (SELECT FROM workflow_runs r
                                 WHERE r.session_id = t.session_id AND r.status IN ('pending', 'running'))",
                $before $(, $from, $to)?
            ),
            Table::Patches => rows!(
                $what, $do, "run_patches",
                "t.at < $1::date::timestamp AT TIME ZONE 'UTC'
                 AND NOT EXISTS (SELECT FROM workflow_runs r
                                 WHERE r.id = t.run_id AND r.status IN ('pending', 'running'))",
                $before $(, $from, $to)?
            ),
            Table::Runs => rows!(
                $what, $do, "workflow_runs",
                "t.created_at < $1::date::timestamp AT TIME ZONE 'UTC'
                 AND t.completed_at < $1::date::timestamp AT TIME ZONE 'UTC'
                 AND t.status IN ('completed', 'failed', 'killed')",
                $before $(, $from, $to)?
            ),
            Table::Sessions => rows!(
                $what, $do, "sessions",
                "t.updated_at < $1::date::timestamp AT TIME ZONE 'UTC' AND t.namespace IS NOT NULL
                 AND NOT EXISTS (SELECT FROM messages m WHERE m.session_id = t.id)
                 AND NOT EXISTS (SELECT FROM workflow_runs r WHERE r.session_id = t.id)
                 AND NOT EXISTS (SELECT FROM sessions b WHERE b.parent_session_id = t.id)",
                $before $(, $from, $to)?
            ),
            Table::Audit => rows!(
                $what, $do, "audit", "t.at < $1::date::timestamp AT TIME ZONE 'UTC'",
                $before $(, $from, $to)?
            ),
        }
    };
}

impl Table {
    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Patches => "run_patches",
            Self::Runs => "workflow_runs",
            Self::Sessions => "sessions",
            Self::Audit => "audit",
        }
    }
}

impl Ledger {
    /// Partitions of events of earlier days than that, oldest first.
    pub async fn event_partitions(&self, before: Date) -> Result<Vec<Partition>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query!(
                r#"SELECT p.day AS "day!: jiff_sqlx::Date", p.rows AS "rows!",
                          runledger_events_are_pinned(p.day) AS "is_pinned!"
                   FROM (SELECT c.reltuples::bigint AS rows,
                                to_date(substring(c.relname FROM '^run_events_(\d{8})$'), 'YYYYMMDD') AS day
                         FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                         WHERE i.inhparent = 'run_events'::regclass) p
                   WHERE p.day < $1 ORDER BY p.day"#,
                before.to_sqlx() as _,
            )
            .fetch_all(&self.pool)
            .await?;
            Ok(rows
                .into_iter()
                .map(|row| Partition {
                    day: row.day.to_jiff(),
                    rows: u64::try_from(row.rows).ok(),
                    is_pinned: row.is_pinned,
                })
                .collect())
        })
        .await
    }

    /// Drops a partition. Whoever writes events waits for that, two seconds at most.
    pub async fn drop_partition(&self, partition: &Partition) -> Result<(), Error> {
        Self::tries(|| async {
            let mut tx = self.pool.begin().await?;
            sqlx::query!("SET LOCAL lock_timeout = '2s'")
                .execute(&mut *tx)
                .await?;
            sqlx::query!(
                "SELECT runledger_drop_event_partition($1)",
                partition.day.to_sqlx() as _
            )
            .execute(&mut *tx)
            .await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// How many rows are older than that day and can go.
    pub async fn count_old(&self, table: Table, before: Date) -> Result<u64, Error> {
        let before = before.to_sqlx();
        let count = async { Ok(of_each!(table, self, count, before)) };
        tokio::time::timeout(COUNT, count)
            .await
            .unwrap_or(Err(Error::TimedOut(COUNT.as_secs())))
    }

    /// Deletes the rows that are older than that day, and answers how many.
    pub async fn delete_old(&self, table: Table, before: Date) -> Result<u64, Error> {
        if table == Table::Runs {
            if self.count_old(table, before).await? == 0 {
                return Ok(0);
            }
            // Before the first is gone: nobody shall count again what isn't all there.
            self.keep_rollups_before(before).await?;
        }
        let pages = Self::tries(|| async {
            let pages = sqlx::query_scalar!(
                r#"SELECT pg_relation_size(to_regclass($1)) / current_setting('block_size')::bigint + 1 AS "pages!""#,
                table.name(),
            );
            Ok(pages.fetch_one(&self.pool).await?)
        })
        .await?;
        let mut deleted = 0;
        let mut from = 0;
        while from < pages {
            deleted += Self::tries(|| self.delete_stretch(table, before, from)).await?;
            from += STRETCH;
        }
        Ok(deleted)
    }

    async fn delete_stretch(&self, table: Table, before: Date, from: i64) -> Result<u64, Error> {
        let before = before.to_sqlx();
        let mut tx = self.pool.begin().await?;
        // The rollups keep what these runs came to.
        sqlx::query!("SET LOCAL runledger.pruning = 'on'")
            .execute(&mut *tx)
            .await?;
        let deleted = of_each!(table, tx, delete, before, from, from + STRETCH);
        tx.commit().await?;
        Ok(deleted)
    }

    async fn keep_rollups_before(&self, day: Date) -> Result<(), Error> {
        Self::tries(|| async {
            sqlx::query!(
                "UPDATE run_rollup_horizon SET exact_from = greatest(exact_from, $1)",
                day.to_sqlx() as _
            )
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}
