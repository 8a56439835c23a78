//! A record in the database's terms: clean, cut to what columns take, and with its figures held against
//! what can be true. No SQL and no client here.

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::figures::{self, Figures, MAX_ATTEMPT};
use super::super::lanes::Joins;
use super::super::records::{self, Kill, KillRequest, RunRecord};
use super::super::{Error, clean};
use crate::api::run::Phase;

/// Longest name that an index or a `varchar(255)` takes.
const MAX_NAME: usize = 255;

/// In a run's metadata: something of it could not be stored as it was.
const ALTERED: &str = "altered";

/// Longest key of a label that Kubernetes takes, prefix and all.
const MAX_LABEL: usize = 317;

/// A record in the database's terms.
#[derive(Debug)]
pub(in crate::ledger) struct Row {
    pub(super) id: Uuid,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) error_message: Option<String>,
    pub(super) attempt: i32,
    pub(super) started_at: Option<Timestamp>,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) attempts: Vec<(i32, Figures)>,
    pub(super) changes: Option<Value>,
    pub(super) missing_from: Option<i64>,
    pub(super) kill: Option<Kill>,
    pub(super) rest: Rest,
}

/// What mostly stays as it was first written. All of it counts for whether it did.
#[derive(Debug, Hash)]
pub(super) struct Rest {
    pub(super) session_id: Uuid,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) session_name: String,
    pub(super) created_at: Timestamp,
    pub(super) workflow_name: String,
    pub(super) task: Option<String>,
    pub(super) model: Option<String>,
    pub(super) repository: Option<String>,
    pub(super) branch: Option<String>,
    pub(super) workspace_id: Option<Uuid>,
    pub(super) workspace_persistent: bool,
    pub(super) workspace_path: Option<String>,
    pub(super) metadata: Value,
    pub(super) agent_image: Option<String>,
    pub(super) settings: Value,
    pub(super) labels: Vec<(String, String)>,
}

impl Joins for Row {
    fn key(&self) -> Uuid {
        self.id
    }

    fn group(&self) -> Uuid {
        self.rest.session_id
    }
}

impl Row {
    pub(super) fn of(record: &RunRecord) -> Result<Self, Error> {
        if record.attempt > MAX_ATTEMPT {
            return Err(Error::Refused(format!(
                "attempt {} can't be true",
                record.attempt
            )));
        }
        let mut notes = serde_json::Map::new();
        let mut text = |text: &str, max: usize| {
            let (clean, altered) = clean::text(text);
            if altered || clean.chars().count() > max {
                notes.insert(ALTERED.to_owned(), json!(true));
            }
            clean::cut(&clean, max)
        };
        let status = records::status(record.phase);
        let ended_badly = matches!(record.phase, Phase::Failed | Phase::Killed);
        let rest = Rest {
            session_id: record.session_id,
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            session_name: text(&record.session_name, MAX_NAME),
            created_at: record.created_at,
            workflow_name: text(&record.workflow_name, MAX_NAME),
            task: record.task.as_deref().map(|task| text(task, usize::MAX)),
            model: record
                .model
                .as_deref()
                .map(|model| text(model, figures::MAX_NAME)),
            repository: record
                .repository
                .as_deref()
                .map(|url| text(url, figures::MAX_URL)),
            branch: record
                .branch
                .as_deref()
                .map(|branch| text(branch, MAX_NAME)),
            workspace_id: record.workspace_id,
            workspace_persistent: record.workspace_persistent,
            workspace_path: record
                .workspace_path
                .as_deref()
                .map(|path| text(path, MAX_NAME * 4)),
            metadata: Value::Null,
            agent_image: record
                .agent_image
                .as_deref()
                .map(|image| text(image, figures::MAX_NAME)),
            settings: Value::Object(record.settings.clone()),
            labels: record
                .labels
                .iter()
                .map(|(key, value)| (text(key, MAX_LABEL), text(value, MAX_LABEL)))
                .collect(),
        };
        let mut row = Self {
            id: record.run_id,
            status,
            reason: record.reason.clone(),
            error_message: record
                .message
                .as_deref()
                .or(record.reason.as_deref())
                .filter(|_| ended_badly)
                .map(|message| text(message, usize::MAX)),
            attempt: i32::try_from(record.attempt).unwrap_or(i32::MAX),
            started_at: record.started_at,
            completed_at: record
                .completed_at
                .or_else(|| is_end(record.phase).then(Timestamp::now))
                .filter(|_| is_end(record.phase)),
            attempts: Vec::new(),
            changes: None,
            missing_from: None,
            kill: record.kill.clone(),
            rest,
        };
        if clean::value(&mut row.rest.settings) {
            notes.insert(ALTERED.to_owned(), json!(true));
        }
        row.attempts(record, &mut notes);
        row.rest.metadata = Value::Object(notes);
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
                    if clean::value(&mut value) {
                        notes.insert(ALTERED.to_owned(), json!(true));
                    }
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

    /// Whether nothing is told but how far the run is, and that it hasn't ended.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.completed_at.is_none()
            && self.error_message.is_none()
            && self.attempts.is_empty()
            && self.changes.is_none()
            && self.missing_from.is_none()
            && self.kill.is_none()
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
pub(super) fn request(request: KillRequest) -> &'static str {
    match request {
        KillRequest::DesiredState => "spec.desiredState",
        KillRequest::Deletion => "deletion",
    }
}

/// What is known of who asked.
pub(super) fn detail(kill: &Kill) -> String {
    let done = match kill.request {
        KillRequest::DesiredState => "spec.desiredState was set to Killed",
        KillRequest::Deletion => "the WorkflowRun was deleted before its end",
    };
    match &kill.manager {
        Some(manager) => format!(
            "{done} through the Kubernetes API, with {}",
            clean::marked(manager, MAX_NAME)
        ),
        None => format!("{done} through the Kubernetes API"),
    }
}

fn is_end(phase: Phase) -> bool {
    matches!(phase, Phase::Completed | Phase::Failed | Phase::Killed)
}
