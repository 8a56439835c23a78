//! Who did what, when, and whether they were let.

use jiff::Timestamp;
use uuid::Uuid;

use super::size;
use crate::ledger::{Error, Ledger, clean};

/// Longest name of an actor, and longest detail, in characters; what is longer is cut, and says so.
const MAX_TEXT: usize = 2000;

/// What was done, or tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A run was to be stopped for good.
    Kill,
    /// A word was said into a session.
    Write,
    /// A session was taken up again by a new run.
    Resume,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Write => "write",
            Self::Resume => "resume",
        }
    }
}

/// What it was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A run.
    Run(Uuid),
    /// A session.
    Session(Uuid),
}

/// A deed to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// Who, as the cluster knows them.
    pub actor: String,
    /// What.
    pub action: Action,
    /// Whether they were let.
    pub allowed: bool,
    /// Where.
    pub namespace: String,
    /// To what.
    pub subject: Subject,
    /// Why, or why not.
    pub detail: Option<String>,
}

/// A deed as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number: later ones are greater.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub actor: String,
    /// `kill`, `write` or `resume`.
    pub action: String,
    /// Whether they were let.
    pub allowed: bool,
    /// Where.
    pub namespace: String,
    /// To which run.
    pub run_id: Option<Uuid>,
    /// To which session.
    pub session_id: Option<Uuid>,
    /// Why, or why not.
    pub detail: Option<String>,
}

struct Row {
    id: i64,
    at: jiff_sqlx::Timestamp,
    actor: String,
    action: String,
    allowed: bool,
    namespace: String,
    run_id: Option<Uuid>,
    session_id: Option<Uuid>,
    detail: Option<String>,
}

impl Ledger {
    /// Writes a deed down, let or not.
    pub async fn audit(&self, deed: &Deed) -> Result<(), Error> {
        Self::tries(|| async {
            let mut connection = self.pool.acquire().await?;
            Ok(write(&mut connection, deed).await?)
        })
        .await
    }

    /// What was done in a namespace, the latest first, before that entry.
    pub async fn audit_of_namespace(
        &self,
        namespace: &str,
        before: Option<i64>,
        asked: u32,
    ) -> Result<Vec<Entry>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query_as!(
                Row,
                r#"SELECT id, at AS "at: jiff_sqlx::Timestamp", actor, action, allowed, namespace,
                          run_id, session_id, detail
                   FROM audit WHERE namespace = $1 AND ($2::bigint IS NULL OR id < $2)
                   ORDER BY id DESC LIMIT $3"#,
                namespace,
                before,
                size(asked)
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows.into_iter().map(Entry::from).collect())
        })
        .await
    }

    /// What was done to a run or a session, the latest first, before that entry.
    pub async fn audit_of(
        &self,
        subject: Subject,
        before: Option<i64>,
        asked: u32,
    ) -> Result<Vec<Entry>, Error> {
        let (run, session) = ids(subject);
        Self::tries(|| async {
            let rows = sqlx::query_as!(
                Row,
                r#"SELECT id, at AS "at: jiff_sqlx::Timestamp", actor, action, allowed, namespace,
                          run_id, session_id, detail
                   FROM audit WHERE ($1::uuid IS NULL OR run_id = $1) AND ($2::uuid IS NULL OR session_id = $2)
                     AND ($3::bigint IS NULL OR id < $3)
                   ORDER BY id DESC LIMIT $4"#,
                run,
                session,
                before,
                size(asked)
            )
            .fetch_all(&self.readers)
            .await?;
            Ok(rows.into_iter().map(Entry::from).collect())
        })
        .await
    }
}

/// Writes a deed down within somebody's transaction.
pub(super) async fn write(
    connection: &mut sqlx::PgConnection,
    deed: &Deed,
) -> Result<(), sqlx::Error> {
    let text = |text: &str| clean::marked(text, MAX_TEXT);
    let (run, session) = ids(deed.subject);
    sqlx::query!(
        "INSERT INTO audit (actor, action, allowed, namespace, run_id, session_id, detail)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        text(&deed.actor),
        deed.action.word(),
        deed.allowed,
        text(&deed.namespace),
        run,
        session,
        deed.detail.as_deref().map(text),
    )
    .execute(connection)
    .await?;
    Ok(())
}

fn ids(subject: Subject) -> (Option<Uuid>, Option<Uuid>) {
    match subject {
        Subject::Run(id) => (Some(id), None),
        Subject::Session(id) => (None, Some(id)),
    }
}

impl From<Row> for Entry {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            at: row.at.to_jiff(),
            actor: row.actor,
            action: row.action,
            allowed: row.allowed,
            namespace: row.namespace,
            run_id: row.run_id,
            session_id: row.session_id,
            detail: row.detail,
        }
    }
}
