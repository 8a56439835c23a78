//! CR → ledger: the row of a run, written whole each time by the controller, in one statement.

use jiff_sqlx::ToSqlx;
use serde_json::{Value, json};

use super::figures::{self, Figures, MAX_ATTEMPT};
use super::records::{self, Kill, KillRequest, RunRecord};
use super::{Error, Ledger, clean};
use crate::api::run::Phase;

/// Longest name that an index or a `varchar(255)` takes.
const MAX_NAME: usize = 255;

/// Longest key of a label that Kubernetes takes, prefix and all.
const MAX_LABEL: usize = 317;

impl Ledger {
    /// Writes what the controller knows of a run. Twice, late or out of order it changes nothing
    /// that is already further on.
    pub async fn mirror(&self, record: &RunRecord) -> Result<(), Error> {
        let row = Row::of(record)?;
        Self::tries(|| self.write(&row)).await
    }

    async fn write(&self, row: &Row<'_>) -> Result<(), Error> {
        let r = row.record;
        let (attempts, f) = (&row.attempts, &row.figures);
        let column = |of: fn(&Figures) -> i64| f.iter().map(of).collect::<Vec<_>>();
        let costs: Vec<Option<i64>> = f.iter().map(|f| f.cost).collect();
        sqlx::query_file!(
            "src/ledger/mirror.sql",
            r.session_id,
            r.namespace,
            row.session_name,
            r.created_at.to_sqlx() as _,
            r.run_id,
            r.name,
            row.workflow_name,
            row.model,
            row.task,
            row.repository,
            row.branch,
            row.status,
            r.reason,
            row.attempt,
            row.error_message,
            r.started_at.map(ToSqlx::to_sqlx) as _,
            row.completed_at.map(ToSqlx::to_sqlx) as _,
            r.workspace_id.map(|id| id.to_string()),
            r.workspace_persistent,
            row.metadata,
            attempts as &[i32],
            &column(|f| f.input),
            &column(|f| f.output),
            &column(|f| f.cache_read),
            &column(|f| f.cache_creation),
            &costs as &[Option<i64>],
            &column(|f| f.turns),
            &column(|f| f.requests),
            &column(|f| f.estimated),
            row.changes,
            row.missing_from,
            self.cluster,
            row.agent_image,
            row.settings,
            row.workspace_path,
            &row.label_keys,
            &row.label_values,
            r.kill.as_ref().map(|kill| request(kill.request)),
            r.kill
                .as_ref()
                .and_then(|kill| kill.at)
                .map(ToSqlx::to_sqlx) as _,
            r.kill.as_ref().map(detail),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// A record in the database's terms.
struct Row<'a> {
    record: &'a RunRecord,
    session_name: String,
    workflow_name: String,
    task: Option<String>,
    model: Option<String>,
    repository: Option<String>,
    branch: Option<String>,
    status: &'static str,
    error_message: Option<String>,
    attempt: i32,
    completed_at: Option<jiff::Timestamp>,
    attempts: Vec<i32>,
    figures: Vec<Figures>,
    changes: Option<Value>,
    missing_from: Option<i64>,
    metadata: Value,
    agent_image: Option<String>,
    settings: Value,
    workspace_path: Option<String>,
    label_keys: Vec<String>,
    label_values: Vec<String>,
}

impl<'a> Row<'a> {
    fn of(record: &'a RunRecord) -> Result<Self, Error> {
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
                .or_else(|| is_end(record.phase).then(jiff::Timestamp::now))
                .filter(|_| is_end(record.phase)),
            attempts: Vec::new(),
            figures: Vec::new(),
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
            label_keys: record
                .labels
                .keys()
                .map(|key| text(key, MAX_LABEL))
                .collect(),
            label_values: record
                .labels
                .values()
                .map(|value| text(value, MAX_LABEL))
                .collect(),
            record,
        };
        row.attempts(&mut notes);
        row.metadata = Value::Object(notes);
        Ok(row)
    }

    /// The rows of `run_attempts`. A figure that can't be true is left out and named in the
    /// metadata: refusing the whole record would keep the run's end out of the ledger for ever.
    fn attempts(&mut self, notes: &mut serde_json::Map<String, Value>) {
        let record = self.record;
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
        match self.attempts.iter().position(|known| *known == attempt) {
            Some(i) => self.figures[i] = self.figures[i].max(figures),
            None => {
                self.attempts.push(attempt);
                self.figures.push(figures);
            }
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
