//! CR → ledger: the row of a run, written whole each time by the controller. Rows of runs that come at
//! about the same time are written in one statement.

use std::sync::Arc;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde_json::{Value, json};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::figures::{self, Figures, MAX_ATTEMPT};
use super::lanes::Joins;
use super::records::{self, Kill, KillRequest, RunRecord};
use super::{Error, Ledger, clean};
use crate::api::run::Phase;

/// Longest name that an index or a `varchar(255)` takes.
const MAX_NAME: usize = 255;

/// Longest key of a label that Kubernetes takes, prefix and all.
const MAX_LABEL: usize = 317;

impl Ledger {
    /// Writes what the controller knows of a run. Twice, late or out of order it changes nothing
    /// that is already further on. To be called within a tokio runtime.
    pub async fn mirror(&self, record: &RunRecord) -> Result<(), Error> {
        let row = Arc::new(Row::of(record)?);
        let (pool, cluster) = (self.together.clone(), self.cluster.clone());
        let together = move |mut rows: Vec<Arc<Row>>| {
            let (pool, cluster) = (pool.clone(), cluster.clone());
            async move {
                rows.sort_unstable_by_key(|row| row.id);
                let written = write_together(&pool, cluster.as_deref(), &rows).await;
                if let Err(error) = &written {
                    tracing::debug!(%error, runs = rows.len(), "runs are mirrored one by one");
                }
                written.is_ok()
            }
        };
        let lane = self.lane_of(row.session_id);
        if lane.join(Arc::clone(&row), together).await {
            return Ok(());
        }
        let rows = [row];
        Self::tries(|| async {
            let mut connection = self.pool.acquire().await?;
            write(&mut connection, self.cluster.as_deref(), &rows).await
        })
        .await
    }
}

/// Writes the rows on a connection that gives up soon, where something holds one of them up: the others
/// must not wait for it.
async fn write_together(
    pool: &PgPool,
    cluster: Option<&str>,
    rows: &[Arc<Row>],
) -> Result<(), Error> {
    let mut connection = pool.acquire().await?;
    let patience = super::pool::TOGETHER;
    match tokio::time::timeout(patience, write(&mut connection, cluster, rows)).await {
        Ok(written) => written,
        Err(_) => {
            // It may still be waiting for the answer.
            connection.close_on_drop();
            Err(Error::TimedOut(patience.as_secs()))
        }
    }
}

/// Writes runs, each of them once, in the order of their ids.
async fn write(
    connection: &mut PgConnection,
    cluster: Option<&str>,
    rows: &[Arc<Row>],
) -> Result<(), Error> {
    let attempts: Vec<(Uuid, i32, Figures)> = rows
        .iter()
        .flat_map(|row| row.attempts.iter().map(|(n, f)| (row.id, *n, *f)))
        .collect();
    let labels: Vec<(Uuid, &str, &str)> = rows
        .iter()
        .flat_map(|row| row.labels.iter().map(|(k, v)| (row.id, &**k, &**v)))
        .collect();
    let figure = |of: fn(&Figures) -> i64| column(&attempts, |(_, _, f)| of(f));
    let time = |of: fn(&Row) -> Option<Timestamp>| column(rows, |r| of(r).map(ToSqlx::to_sqlx));
    sqlx::query_file!(
        "src/ledger/mirror.sql",
        &column(rows, |r| r.id),
        &column(rows, |r| r.session_id),
        &column(rows, |r| &*r.namespace) as &[&str],
        &column(rows, |r| &*r.name) as &[&str],
        &column(rows, |r| &*r.session_name) as &[&str],
        column(rows, |r| r.created_at.to_sqlx()) as _,
        &column(rows, |r| &*r.workflow_name) as &[&str],
        &column(rows, |r| r.model.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.task.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.repository.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.branch.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.status) as &[&str],
        &column(rows, |r| r.reason.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.attempt),
        &column(rows, |r| r.error_message.as_deref()) as &[Option<&str>],
        time(|r| r.started_at) as _,
        time(|r| r.completed_at) as _,
        &column(rows, |r| r.workspace_id.map(|id| id.to_string())) as &[Option<String>],
        &column(rows, |r| r.workspace_persistent),
        &column(rows, |r| r.metadata.clone()),
        &column(rows, |r| r.agent_image.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.settings.clone()),
        &column(rows, |r| r.workspace_path.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.changes.clone()) as &[Option<Value>],
        &column(rows, |r| r.missing_from) as &[Option<i64>],
        &column(rows, |r| r.kill.as_ref().map(|kill| request(kill.request))) as &[Option<&str>],
        time(|r| r.kill.as_ref().and_then(|kill| kill.at)) as _,
        &column(rows, |r| r.kill.as_ref().map(detail)) as &[Option<String>],
        cluster,
        &column(&labels, |(run, _, _)| *run),
        &column(&labels, |(_, key, _)| *key) as &[&str],
        &column(&labels, |(_, _, value)| *value) as &[&str],
        &column(&attempts, |(run, _, _)| *run),
        &column(&attempts, |(_, attempt, _)| *attempt),
        &figure(|f| f.input),
        &figure(|f| f.output),
        &figure(|f| f.cache_read),
        &figure(|f| f.cache_creation),
        &column(&attempts, |(_, _, f)| f.cost) as &[Option<i64>],
        &figure(|f| f.turns),
        &figure(|f| f.requests),
        &figure(|f| f.estimated),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// One column of the rows.
fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}

/// A record in the database's terms.
#[derive(Debug)]
pub(super) struct Row {
    id: Uuid,
    session_id: Uuid,
    namespace: String,
    name: String,
    session_name: String,
    created_at: Timestamp,
    workflow_name: String,
    task: Option<String>,
    model: Option<String>,
    repository: Option<String>,
    branch: Option<String>,
    status: &'static str,
    reason: Option<String>,
    error_message: Option<String>,
    attempt: i32,
    started_at: Option<Timestamp>,
    completed_at: Option<Timestamp>,
    workspace_id: Option<Uuid>,
    workspace_persistent: bool,
    workspace_path: Option<String>,
    attempts: Vec<(i32, Figures)>,
    changes: Option<Value>,
    missing_from: Option<i64>,
    metadata: Value,
    agent_image: Option<String>,
    settings: Value,
    labels: Vec<(String, String)>,
    kill: Option<Kill>,
}

impl Joins for Row {
    fn key(&self) -> Uuid {
        self.id
    }
}

impl Row {
    fn of(record: &RunRecord) -> Result<Self, Error> {
        if record.attempt > MAX_ATTEMPT {
            return Err(Error::Refused(format!(
                "attempt {} can't be true",
                record.attempt
            )));
        }
        let mut notes = serde_json::Map::new();
        let mut text = |text: &str, max: usize| {
            let (clean, altered) = clean::text(text);
            if altered {
                notes.insert("altered".to_owned(), json!(true));
            }
            clean::cut(&clean, max)
        };
        let status = records::status(record.phase);
        let ended_badly = matches!(record.phase, Phase::Failed | Phase::Killed);
        let mut row = Self {
            id: record.run_id,
            session_id: record.session_id,
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            reason: record.reason.clone(),
            created_at: record.created_at,
            started_at: record.started_at,
            workspace_id: record.workspace_id,
            workspace_persistent: record.workspace_persistent,
            kill: record.kill.clone(),
            session_name: text(&record.session_name, MAX_NAME),
            workflow_name: text(&record.workflow_name, MAX_NAME),
            task: record.task.as_deref().map(|task| text(task, usize::MAX)),
            model: record.model.as_deref().map(|model| text(model, MAX_NAME)),
            repository: record
                .repository
                .as_deref()
                .map(|url| text(url, figures::MAX_URL)),
            branch: record
                .branch
                .as_deref()
                .map(|branch| text(branch, MAX_NAME)),
            status,
            error_message: record
                .message
                .as_deref()
                .or(record.reason.as_deref())
                .filter(|_| ended_badly)
                .map(|message| text(message, usize::MAX)),
            attempt: i32::try_from(record.attempt).unwrap_or(i32::MAX),
            completed_at: record
                .completed_at
                .or_else(|| is_end(record.phase).then(Timestamp::now))
                .filter(|_| is_end(record.phase)),
            attempts: Vec::new(),
            changes: None,
            missing_from: None,
            metadata: Value::Null,
            agent_image: record
                .agent_image
                .as_deref()
                .map(|image| text(image, MAX_NAME)),
            settings: {
                let mut settings = Value::Object(record.settings.clone());
                clean::value(&mut settings);
                settings
            },
            workspace_path: record
                .workspace_path
                .as_deref()
                .map(|path| text(path, MAX_NAME * 4)),
            labels: record
                .labels
                .iter()
                .map(|(key, value)| (text(key, MAX_LABEL), text(value, MAX_LABEL)))
                .collect(),
        };
        row.attempts(record, &mut notes);
        row.metadata = Value::Object(notes);
        Ok(row)
    }

    /// The rows of `run_attempts`. A figure that can't be true is left out and named in the
    /// metadata: refusing the whole record would keep the run's end out of the ledger for ever.
    fn attempts(&mut self, record: &RunRecord, notes: &mut serde_json::Map<String, Value>) {
        let own = record.usage.map(|usage| (record.attempt, usage));
        let earlier = record.earlier.iter().map(|e| (e.attempt, e.usage));
        for (attempt, usage) in earlier.chain(own) {
            // One statement can't write the same row twice.
            if attempt == 0 || attempt > MAX_ATTEMPT {
                continue;
            }
            match (i32::try_from(attempt), Figures::of(&usage)) {
                (Ok(attempt), Ok(figures)) => self.add(attempt, figures),
                (_, Err(name)) => {
                    notes.insert("refused".to_owned(), json!(name));
                }
                (Err(_), _) => {}
            }
        }
        if record.attempt == 0 {
            return;
        }
        if let Some(changes) = &record.changes {
            match figures::changes(changes) {
                Ok(()) => {
                    let mut value = json!(changes);
                    clean::value(&mut value);
                    self.changes = Some(value);
                }
                Err(name) => {
                    notes.insert("refused".to_owned(), json!(name));
                }
            }
        }
        self.missing_from = record
            .transcript_missing_from
            .and_then(|sequence| figures::figure("sequence", sequence).ok())
            .filter(|sequence| *sequence > 0);
        if self.changes.is_some() || self.missing_from.is_some() {
            self.add(self.attempt, Figures::default());
        }
    }

    fn add(&mut self, attempt: i32, figures: Figures) {
        match self
            .attempts
            .iter_mut()
            .find(|(known, _)| *known == attempt)
        {
            Some((_, known)) => *known = known.max(figures),
            None => self.attempts.push((attempt, figures)),
        }
    }
}

/// A kill's `request` in the audit.
fn request(request: KillRequest) -> &'static str {
    match request {
        KillRequest::DesiredState => "spec.desiredState",
        KillRequest::Deletion => "deletion",
    }
}

/// What is known of who asked.
fn detail(kill: &Kill) -> String {
    let done = match kill.request {
        KillRequest::DesiredState => "spec.desiredState was set to Killed",
        KillRequest::Deletion => "the WorkflowRun was deleted before its end",
    };
    match &kill.manager {
        Some(manager) => format!(
            "{done} through the Kubernetes API, with {}",
            clean::cut(&clean::text(manager).0, MAX_NAME)
        ),
        None => format!("{done} through the Kubernetes API"),
    }
}

fn is_end(phase: Phase) -> bool {
    matches!(phase, Phase::Completed | Phase::Failed | Phase::Killed)
}
