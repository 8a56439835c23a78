//! Rollups: what runs came to, by day, namespace, workflow and repository, for all models together and
//! for each that a run used. The database's own
//! triggers keep them, exact at every moment, as deltas; here those are folded together, also into sums over
//! namespaces and repositories, and checked against the runs. Who asks what they say is `report`.

mod command;

use std::convert::Infallible;
use std::time::Duration;

use jiff::civil::Date;
use rust_decimal::Decimal;

use super::{Error, Ledger};

pub use command::{Args, DIFFERED, Failure, run, run_to};

/// Most deltas that are folded in one transaction.
const FOLD: i32 = 10_000;
/// Between two rounds of folding.
const PAUSE: Duration = Duration::from_secs(10);
/// Longest count of all runs.
const RECOUNT: Duration = Duration::from_secs(3600);
/// Most differences that are named.
pub const NAMED: i64 = 20;

/// A rollup that was not what the runs say, and by how much it was too small.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// UTC day that the runs were created on.
    pub day: Date,
    /// Their namespace; empty where they have none.
    pub namespace: String,
    /// Their workflow.
    pub workflow: String,
    /// A model that they used; nothing where all are counted together, empty where none is known.
    pub model: Option<String>,
    /// Their repository; empty where they have none.
    pub repository: String,
    /// Runs that were missing in it.
    pub runs: i64,
    /// Tokens that were missing, of all kinds together.
    pub tokens: Decimal,
    /// US dollars that were missing.
    pub cost: Decimal,
}

/// What a comparison of rollups and runs found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// From which day on it was possible: earlier runs were pruned. Nothing: on all days.
    pub from: Option<Date>,
    /// Rollups that differed.
    pub differ: u64,
    /// The latest of them, at most [`NAMED`].
    pub named: Vec<Difference>,
    /// Sums over namespaces and repositories that were not what the rollups come to.
    pub sums: u64,
}

impl Comparison {
    /// Whether nothing differed.
    pub fn is_exact(&self) -> bool {
        self.differ == 0 && self.sums == 0
    }
}

impl Ledger {
    /// Folds what has gathered since the last time, and answers how many deltas that were.
    pub async fn fold_rollups(&self) -> Result<u64, Error> {
        let mut all = 0;
        loop {
            let folded = Self::tries(|| async {
                let folded =
                    sqlx::query_scalar!(r#"SELECT runledger_fold_rollups($1) AS "folded!""#, FOLD)
                        .fetch_one(&self.pool)
                        .await?;
                Ok(u64::try_from(folded).unwrap_or_default())
            })
            .await?;
            all += folded;
            if folded < u64::from(FOLD.unsigned_abs()) {
                return Ok(all);
            }
        }
    }

    /// Folds every now and then, for ever. Any number of processes may.
    pub async fn keep_rollups_folded(&self) -> Infallible {
        loop {
            tokio::time::sleep(PAUSE).await;
            match self.fold_rollups().await {
                Ok(0) => {}
                Ok(deltas) => tracing::debug!(deltas, "rollups folded"),
                // Reports count what is not folded, too: nothing is wrong but that they get slower.
                Err(error) => {
                    tracing::warn!(%error, cause = ?std::error::Error::source(&error), "rollups can't be folded")
                }
            }
        }
    }

    /// Compares the rollups with the runs, in one snapshot, on the days whose runs are all there; if
    /// asked, makes them the same. Writers are not held up: what differs is appended like all else.
    pub async fn compare_rollups(&self, mend: bool) -> Result<Comparison, Error> {
        tokio::time::timeout(RECOUNT, self.compare(mend))
            .await
            .unwrap_or(Err(Error::TimedOut(RECOUNT.as_secs())))
    }

    async fn compare(&self, mend: bool) -> Result<Comparison, Error> {
        let mut tx = self.pool.begin().await?;
        // Two at once would both append what is missing.
        sqlx::query!("SELECT pg_advisory_xact_lock(hashtext('runledger_rebuild_rollups'))")
            .execute(&mut *tx)
            .await?;
        let from = sqlx::query_scalar!(
            r#"SELECT nullif(exact_from, '-infinity') AS "from: jiff_sqlx::Date" FROM run_rollup_horizon"#
        )
        .fetch_one(&mut *tx)
        .await?;
        let rows = sqlx::query!(
            r#"WITH differ AS MATERIALIZED (
                   SELECT * FROM runledger_rollup_differences()
               ), added AS (
                   INSERT INTO run_rollup_deltas SELECT * FROM differ WHERE $1
               )
               SELECT day AS "day!: jiff_sqlx::Date", namespace AS "namespace!", workflow_name AS "workflow!",
                      CASE WHEN by_model THEN model END AS model, repository AS "repository!", runs AS "runs!", cost AS "cost!",
                      input_tokens + output_tokens + cache_read_tokens + cache_creation_tokens AS "tokens!",
                      count(*) OVER () AS "differ!"
               FROM differ ORDER BY 1 DESC, 2, 3, 4 NULLS FIRST, 5 LIMIT $2"#,
            mend,
            NAMED,
        )
        .fetch_all(&mut *tx)
        .await?;
        let sums = sqlx::query_scalar!(
            r#"SELECT runledger_rollup_sums_differ($1) AS "differ!""#,
            mend
        )
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Comparison {
            sums: sums.unsigned_abs(),
            from: from.map(|from| from.to_jiff()),
            differ: rows.first().map_or(0, |row| row.differ.unsigned_abs()),
            named: rows
                .into_iter()
                .map(|row| Difference {
                    day: row.day.to_jiff(),
                    namespace: row.namespace,
                    workflow: row.workflow,
                    model: row.model,
                    repository: row.repository,
                    runs: row.runs,
                    tokens: row.tokens,
                    cost: row.cost,
                })
                .collect(),
        })
    }
}
