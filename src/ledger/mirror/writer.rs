//! Who writes the rows of several runs at once: a connection that is kept from one write to the next,
//! since to give it back to a pool and take it again is a round trip more than to write is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection};

use super::Row;
use crate::ledger::known::Known;
use crate::ledger::lanes::Writes;
use crate::ledger::{Error, Ledger};

/// Longest wait for a write, and for its connection. Who waited that long does it alone: the others must
/// not wait for it.
const PATIENCE: Duration = Duration::from_secs(2);
/// A connection that has lain idle for longer may be dead.
const FRESH: Duration = Duration::from_secs(1);
/// To plan these statements anew for each call would take longer than to do what they say. So a plan that
/// is made while there are few rows must do for many: it finds them by their keys.
const SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET lock_timeout = '250ms'";

/// A writer of what is mirrored together.
#[derive(Debug)]
pub(in crate::ledger) struct Writer {
    options: PgConnectOptions,
    cluster: Option<String>,
    known: Arc<Known>,
    /// Where the last write ended well, and when.
    kept: Option<(PgConnection, Instant)>,
}

impl Ledger {
    /// Another writer, without a connection yet.
    pub(super) fn writer(&self) -> Writer {
        Writer {
            options: self.together.clone(),
            cluster: self.cluster.clone(),
            known: Arc::clone(&self.known),
            kept: None,
        }
    }
}

impl Writes<Row> for Writer {
    async fn write(&mut self, mut rows: Vec<Arc<Row>>) -> bool {
        rows.sort_unstable_by_key(|row| row.id);
        let runs = rows.len();
        let written = tokio::time::timeout(PATIENCE, self.try_to_write(rows))
            .await
            .unwrap_or(Err(Error::TimedOut(PATIENCE.as_secs())));
        if let Err(error) = &written {
            tracing::debug!(%error, runs, "runs are mirrored one by one");
        }
        written.is_ok()
    }
}

impl Writer {
    /// Whatever becomes of it, the connection is only kept where it ended well: another may still be
    /// waiting for an answer.
    async fn try_to_write(&mut self, rows: Vec<Arc<Row>>) -> Result<(), Error> {
        let mut connection = match self.connection().await {
            Some(connection) => connection,
            None => connect(&self.options).await?,
        };
        super::write_what_is_new(&mut connection, self.cluster.as_deref(), &self.known, rows)
            .await?;
        self.kept = Some((connection, Instant::now()));
        Ok(())
    }

    /// The one of the last write, unless it has died since.
    async fn connection(&mut self) -> Option<PgConnection> {
        let (mut connection, used) = self.kept.take()?;
        let lives = used.elapsed() < FRESH || connection.ping().await.is_ok();
        lives.then_some(connection)
    }

    /// Gives the connection up.
    pub(in crate::ledger) async fn close(self) {
        if let Some((connection, _)) = self.kept {
            // It is gone either way.
            let _ = connection.close().await;
        }
    }
}

async fn connect(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    connection.execute(SETTINGS).await?;
    Ok(connection)
}
