//! The connection pool: checks the URL, opens connections when they are needed, gives every
//! operation a time-out and a few more tries where another try can help.

use std::collections::HashSet;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use jiff::civil::Date;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor as _, PgPool};
use tokio::sync::Mutex;
use url::Url;

use super::Error;
use super::known::Known;
use super::lanes::Lanes;
use super::mirror::{Row, Writer};

/// Most connections of one process. The server's batches and the controller's mirror are short.
const MAX_CONNECTIONS: u32 = 10;
/// Longest wait for a connection, a new one's handshake included.
const ACQUIRE: Duration = Duration::from_secs(5);
/// Longest life of one operation on an open connection.
const OPERATION: Duration = Duration::from_secs(60);

/// Writers of what is written together.
const WRITERS: usize = 2;

/// The ledger's database.
#[derive(Debug)]
pub struct Ledger {
    pub(super) pool: PgPool,
    /// For the queries of people, which leave out or name filters: each is planned for what it asks,
    /// and none holds up a writer.
    pub(super) readers: PgPool,
    /// Where runs to be mirrored meet. Its writers have connections of their own.
    pub(super) lanes: Arc<Lanes<Row, Writer>>,
    /// For these connections.
    pub(super) together: PgConnectOptions,
    /// What was written of them.
    pub(super) known: Arc<Known>,
    /// The cluster whose runs are written, where that is known.
    pub(super) cluster: Option<String>,
    /// Models whose price was found to be unknown, so that it is said once.
    pub(super) unpriced: std::sync::Mutex<HashSet<String>>,
    /// The last day whose partition of `run_events` is known to be there.
    pub(super) partition: Mutex<Option<Date>>,
}

impl Ledger {
    /// Checks the URL and opens no connection yet, so that nothing waits for Postgres to be there.
    /// TLS is as its `sslmode` says. To be called within a tokio runtime.
    pub fn connect(url: &str) -> Result<Self, Error> {
        let options = options(url)?;
        // The second is for disks without a head to move: it lets an index win that reads few rows from
        // many places over one that reads many from few. No page is worth the start of other processes,
        // which takes longer than it.
        let readers = Self::pool_with(
            "SET plan_cache_mode = force_custom_plan; SET random_page_cost = 1.1;
             SET max_parallel_workers_per_gather = 0",
        );
        Ok(Self {
            readers: readers.connect_lazy_with(options.clone()),
            pool: Self::pool().connect_lazy_with(options.clone()),
            lanes: Arc::new(Lanes::new(WRITERS)),
            together: options,
            known: Arc::default(),
            cluster: None,
            unpriced: std::sync::Mutex::default(),
            partition: Mutex::new(None),
        })
    }

    /// Marks what it writes as that cluster's.
    pub fn of_cluster(self, cluster: String) -> Self {
        Self {
            cluster: Some(cluster),
            ..self
        }
    }

    /// Options of a pool whose connections are set up like this.
    fn pool_with(settings: &'static str) -> PgPoolOptions {
        Self::pool().after_connect(move |connection, _| {
            Box::pin(async move {
                connection.execute(settings).await?;
                Ok(())
            })
        })
    }

    fn pool() -> PgPoolOptions {
        PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(Duration::from_secs(300))
            .test_before_acquire(false)
            // A connection in steady use saves the round trip; one that has lain idle may be dead.
            .before_acquire(|connection, meta| {
                Box::pin(async move {
                    if meta.idle_for > Duration::from_secs(1) {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<(), Error> {
        within(async {
            self.pool.acquire().await?.ping().await?;
            Ok(())
        })
        .await
    }

    /// Ends the connections in use at their end, and opens no more.
    pub async fn close(&self) {
        for writer in self.lanes.close() {
            writer.close().await;
        }
        self.readers.close().await;
        self.pool.close().await;
    }

    /// Runs the operation, again where another try at once can help.
    pub(super) async fn tries<T, F, O>(operation: O) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
        O: Fn() -> F,
    {
        (|| within(operation()))
            .retry(
                ExponentialBuilder::default()
                    .with_min_delay(Duration::from_millis(20))
                    .with_max_delay(Duration::from_millis(500))
                    .with_max_times(5)
                    .with_jitter(),
            )
            .when(Error::is_worth_another_try)
            .notify(|error, after| {
                tracing::debug!(%error, ?after, "the ledger is tried again");
            })
            .await
    }
}

/// A peer that went silent must not hold the caller.
async fn within<T>(operation: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(OPERATION, operation)
        .await
        .unwrap_or(Err(Error::TimedOut(OPERATION.as_secs())))
}

/// The URL's options, or a sentence on what is wrong with it that never quotes it.
pub(super) fn options(url: &str) -> Result<PgConnectOptions, Error> {
    let wrong = |sentence: &str| Err(Error::Url(sentence.to_owned()));
    if url.trim().is_empty() {
        return wrong("it is empty; write postgres://user:password@host:5432/database");
    }
    let parsed = match Url::parse(url.trim()) {
        Ok(parsed) => parsed,
        Err(e) => {
            return wrong(&format!(
                "{e}; write postgres://user:password@host:5432/database, special characters in the \
                 password percent-encoded"
            ));
        }
    };
    if !matches!(parsed.scheme(), "postgres" | "postgresql") {
        return wrong("its scheme must be postgres");
    }
    let asks = |key: &str| parsed.query_pairs().any(|(k, v)| k == key && !v.is_empty());
    if parsed.host_str().is_none_or(str::is_empty) && !asks("host") && !asks("hostaddr") {
        return wrong("it names no host");
    }
    if parsed.path().trim_matches('/').is_empty() && !asks("dbname") {
        return wrong("it names no database: write postgres://…/database");
    }
    match PgConnectOptions::from_str(url.trim()) {
        Ok(options) => Ok(options.application_name("runledger")),
        Err(_) => {
            wrong("a parameter after `?` is not understood (sslmode, sslrootcert, host, port, …)")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn sentence(url: &str) -> String {
        options(url)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn a_wrong_url_is_explained_without_its_password() {
        for url in [
            "",
            "mysql://u:hunter2@h/d",
            "postgres://u:hunter2@h",
            "postgres://u:hunter2@/d",
            "postgres://u:hunter2/x@h/d",
            "postgres://u:hunter2@h/d?sslmode=hunter2",
            "hunter2",
        ] {
            let sentence = sentence(url);
            assert!(
                sentence.starts_with("DATABASE_URL can't be used: "),
                "{url}: {sentence}"
            );
            assert!(!sentence.contains("hunter2"), "{url}: {sentence}");
        }
    }

    #[test]
    fn a_right_url_is_taken() {
        for url in [
            "postgres://u:p@h:5432/d",
            "postgresql://h/d?sslmode=verify-full",
            "postgres:///d?host=/var/run/postgresql",
            " postgres://u:p%40ss@h/d\n",
        ] {
            assert_eq!(sentence(url), "", "{url}");
        }
    }
}
