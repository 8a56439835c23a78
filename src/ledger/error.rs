//! What can go wrong with the ledger, told apart by what the caller can do about it.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database URL can't be used. Never quotes it: it holds a password.
    #[error("DATABASE_URL can't be used: {0}")]
    Url(String),
    /// The database is away or busy: the same call may go well later.
    #[error("the ledger can't be reached")]
    Unavailable(#[source] sqlx::Error),
    /// The database did not answer in time: the same call may go well later.
    #[error("the ledger did not answer within {0} s")]
    TimedOut(u64),
    /// What was to be stored can't be; trying again won't help.
    #[error("{0}")]
    Refused(String),
    /// The database answered with an error that waiting won't cure.
    #[error("the ledger refused a statement")]
    Database(#[source] sqlx::Error),
}

impl Error {
    /// Whether the same call may go well later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::TimedOut(_))
    }

    /// Whether another connection, at once, may do better: the transaction lost against another, or
    /// its connection was dead.
    pub(super) fn is_worth_another_try(&self) -> bool {
        match self {
            Self::Unavailable(sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => false,
            other => other.is_transient(),
        }
    }

    /// Whether what was to be stored is the trouble: a data exception, or more than Postgres can hold
    /// in one value.
    pub fn is_of_content(&self) -> bool {
        let code = self.code().unwrap_or_default();
        matches!(self, Self::Refused(_)) || code.starts_with("22") || code.starts_with("54")
    }

    /// SQLSTATE, where the database gave one.
    pub(super) fn code(&self) -> Option<String> {
        match self {
            Self::Unavailable(sqlx::Error::Database(e))
            | Self::Database(sqlx::Error::Database(e)) => e.code().map(|code| code.into_owned()),
            _ => None,
        }
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let transient = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(e) => {
                e.code().is_some_and(|code| is_transient_code(&code))
                    // Controller and server make a run's row at once: ON CONFLICT looks at one of
                    // its two keys only. There is a row now, so the next try finds it.
                    || e.constraint() == Some("workflow_runs_run_id_key")
            }
            _ => false,
        };
        if transient {
            Self::Unavailable(error)
        } else {
            Self::Database(error)
        }
    }
}

/// SQLSTATEs that pass by themselves.
fn is_transient_code(code: &str) -> bool {
    // Connection exceptions; insufficient resources (disk full, too many connections).
    code.starts_with("08")
        || code.starts_with("53")
        || matches!(
            code,
            // Serialization failure, deadlock, lock not available, statement timeout.
            "40001" | "40P01" | "55P03" | "57014"
            // Shutdown, crash, starting up; idle session closed; read-only while it fails over.
            | "57P01" | "57P02" | "57P03" | "57P05" | "25006"
        )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pool_is_transient_but_not_tried_at_once() {
        let error = Error::from(sqlx::Error::PoolTimedOut);
        assert!(error.is_transient());
        assert!(!error.is_worth_another_try());
    }

    #[test]
    fn a_deadlock_passes_and_a_missing_table_does_not() {
        assert!(is_transient_code("40P01"));
        assert!(is_transient_code("08006"));
        assert!(!is_transient_code("42P01"));
        assert!(!Error::from(sqlx::Error::RowNotFound).is_transient());
    }
}
