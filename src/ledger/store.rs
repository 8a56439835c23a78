//! Events → ledger: a batch in one transaction, keyed by (run, attempt, sequence), so that the same
//! event sent twice changes nothing. Locks are taken in one order everywhere: the run, its attempts,
//! the session.

use jiff::civil::Date;
use jiff::{Timestamp, tz::TimeZone};
use jiff_sqlx::ToSqlx;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::effects::Stored;
use super::rows::{self, Known};
use super::{Error, Ledger, patches};
use crate::wire::{Batch, BatchAccepted};

/// The run that a batch belongs to, as its sender was checked for it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Most goes at a batch that finds things other than they were when it began.
const MAX_GOES: usize = 4;
/// Most models that are warned of by name.
const MAX_WARNED: usize = 100;

impl Ledger {
    /// Stores a batch whose sender has been checked. `now` decides the day of an attempt whose first
    /// event this is.
    pub async fn store(
        &self,
        target: Target<'_>,
        batch: &Batch,
        now: Timestamp,
    ) -> Result<BatchAccepted, Error> {
        let stored = Stored::of(batch)?;
        let today = now.to_zoned(TimeZone::UTC).date();
        Self::tries(|| async {
            self.ensure_partition(today).await?;
            let mut day = today;
            let mut guess = true;
            for _ in 1..MAX_GOES {
                let written = self.write_batch(target, batch, &stored, &mut day, guess);
                match written.await {
                    // The attempt's own partition is gone, or this one was made in another life of the database.
                    Err(error) if error.code().as_deref() == Some("23514") => {
                        *self.partition.lock().await = None;
                        self.ensure_partition(day).await?;
                    }
                    // Somebody else has stored an event or a message of it.
                    Err(error) if error.code().as_deref() == Some("23505") => guess = false,
                    other => return other,
                }
            }
            self.write_batch(target, batch, &stored, &mut day, guess)
                .await
        })
        .await
    }

    /// Makes the day's partition in a transaction of its own, before any lock is held.
    async fn ensure_partition(&self, day: Date) -> Result<(), Error> {
        let mut known = self.partition.lock().await;
        if *known != Some(day) {
            sqlx::query!("SELECT runledger_event_partition($1)", day.to_sqlx() as _)
                .execute(&self.pool)
                .await?;
            *known = Some(day);
        }
        Ok(())
    }

    /// Says once that a model has no price.
    fn warn_of_unpriced(&self, models: Vec<String>) {
        for model in models {
            let mut known = self
                .unpriced
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            // Models are named by others: the list of those that were warned of has an end.
            if known.len() > MAX_WARNED || !known.insert(model.clone()) {
                continue;
            }
            if known.len() > MAX_WARNED {
                tracing::warn!(
                    "no price is known for more than {MAX_WARNED} models, and no more are named here (runledger prices list)"
                );
            } else {
                tracing::warn!(
                    model,
                    "no price is known for this model: where the SDK names no cost, it is unknown (runledger prices load)"
                );
            }
        }
    }

    /// Where it may guess what of the batch is there already, it saves the time to read that.
    async fn write_batch(
        &self,
        target: Target<'_>,
        batch: &Batch,
        stored: &Stored,
        day: &mut Date,
        guess: bool,
    ) -> Result<BatchAccepted, Error> {
        let mut tx = self.pool.begin().await?;
        let attempt = rows::Attempt {
            run: batch.run_id,
            attempt: stored.attempt,
        };
        let opened = open(&mut tx, target, batch, attempt, *day).await?;
        *day = opened.day;
        let guessed = Known::of_the_next(stored, opened.acknowledged).filter(|_| guess);
        let known = match guessed {
            Some(known) => known,
            None => Known::read(&mut tx, stored, attempt, *day).await?,
        };
        let inserted = rows::insert(&mut tx, batch, stored, attempt, *day, &known).await?;
        rows::tell_again(&mut tx, batch, stored, &known, &inserted.new).await?;
        patches::insert(&mut tx, stored, attempt, &inserted.new).await?;
        tx.commit().await?;
        self.warn_of_unpriced(inserted.unpriced);
        Ok(BatchAccepted {
            acknowledged: inserted.acknowledged,
        })
    }
}

/// What is stored of an attempt, with its run's row locked.
struct Opened {
    day: Date,
    acknowledged: i64,
}

/// Locks the run's row, making a stub of it where events come before the mirror.
async fn open(
    tx: &mut Transaction<'_, Postgres>,
    target: Target<'_>,
    batch: &Batch,
    attempt: rows::Attempt,
    today: Date,
) -> Result<Opened, Error> {
    let known = match lock(tx, attempt).await? {
        Some(known) => Some(known),
        None => {
            make(tx, target, batch, attempt, today).await?;
            lock(tx, attempt).await?
        }
    };
    match known {
        None => Err(Error::Database(sqlx::Error::RowNotFound)),
        Some((session, _)) if session != batch.session_id => Err(Error::Refused(format!(
            "the run belongs to session {session}, not to {}",
            batch.session_id
        ))),
        Some((_, opened)) => Ok(opened),
    }
}

/// The run's session and its attempt, with the run's row locked; nothing where any of them isn't
/// there.
async fn lock(
    tx: &mut Transaction<'_, Postgres>,
    attempt: rows::Attempt,
) -> Result<Option<(Uuid, Opened)>, Error> {
    let row = sqlx::query!(
        r#"SELECT r.session_id, a.started_day AS "day: jiff_sqlx::Date", a.acknowledged AS "acknowledged?"
           FROM workflow_runs r LEFT JOIN run_attempts a ON a.run_id = r.id AND a.attempt = $2
           WHERE r.id = $1 FOR NO KEY UPDATE OF r"#,
        attempt.run,
        attempt.attempt,
    )
    .fetch_optional(&mut **tx)
    .await?;
    Ok(row.and_then(|row| {
        let opened = Opened {
            day: row.day?.to_jiff(),
            acknowledged: row.acknowledged?,
        };
        Some((row.session_id?, opened))
    }))
}

async fn make(
    tx: &mut Transaction<'_, Postgres>,
    target: Target<'_>,
    batch: &Batch,
    attempt: rows::Attempt,
    today: Date,
) -> Result<(), Error> {
    // The session of a run that was deleted from under it comes back with its next words.
    sqlx::query!(
        "WITH session AS (
             INSERT INTO sessions (id, namespace, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
         )
         INSERT INTO workflow_runs AS r
             (id, run_id, namespace, name, workflow_name, agent_type, task_input,
              session_id, session_name, attempt, created_at)
         VALUES ($4, $4::uuid::text, $2, $5, 'unknown', 'claude', runledger_no_task(), $1, $3, $6, now())
         ON CONFLICT (id) DO UPDATE SET
             session_id = coalesce(r.session_id, EXCLUDED.session_id),
             session_name = coalesce(r.session_name, EXCLUDED.session_name)",
        batch.session_id,
        target.namespace,
        batch.session_name,
        attempt.run,
        target.name,
        attempt.attempt,
    )
    .execute(&mut **tx)
    .await?;
    sqlx::query!(
        "INSERT INTO run_attempts AS a (run_id, attempt, started_day) VALUES ($1, $2, $3)
         ON CONFLICT (run_id, attempt) DO UPDATE SET started_day = coalesce(a.started_day, EXCLUDED.started_day)",
        attempt.run,
        attempt.attempt,
        today.to_sqlx() as _,
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}
