//! The database that a command at somebody's shell speaks to, as its arguments name it.

use super::{Error, Ledger};

/// Which database.
#[derive(Clone, Default, clap::Args)]
pub struct Connection {
    /// postgres://user:password@host:5432/database?sslmode=require
    #[arg(
        long,
        env = "DATABASE_URL",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        global = true
    )]
    pub database_url: String,
}

impl Connection {
    /// To the database that a URL names.
    pub fn to(url: &str) -> Self {
        Self {
            database_url: url.to_owned(),
        }
    }

    /// The ledger there, once it is sure that there is one.
    pub(crate) async fn ledger(&self) -> Result<Ledger, Error> {
        let ledger = Ledger::connect(&self.database_url)?;
        let there = sqlx::query_scalar!(
            r#"SELECT to_regclass('run_rollup_horizon') IS NOT NULL AS "there!""#
        )
        .fetch_one(&ledger.pool)
        .await?;
        if there {
            Ok(ledger)
        } else {
            Err(Error::Refused(
                "this database holds no ledger, or an older one: `runledger migrate` makes it"
                    .to_owned(),
            ))
        }
    }
}

impl std::fmt::Debug for Connection {
    /// Without the password that the URL holds.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}
