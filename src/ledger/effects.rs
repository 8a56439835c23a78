//! What events mean for the ledger's rows, as pure functions: which rows an event becomes, and what
//! a set of newly stored events changes. Every change is either a greater figure, a word that is
//! filled in once, or the word of the highest sequence: so neither order nor repetition matters.

mod message;
mod told;

use std::collections::HashSet;

use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use self::message::MessageRow;
use self::message::message_row;
use self::told::Told;
use super::Error;
use super::clean;
use super::figures::{self, Figures, MAX_ATTEMPT, figure};
use super::patches::{self, PatchRow};
use crate::wire::{Batch, Event, EventBody, MAX_BATCH_EVENTS};

/// A batch that can be stored, as rows.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) attempt: i32,
    pub(super) events: Vec<EventRow>,
}

/// A row of `run_events`, and the event that it came from.
#[derive(Debug)]
pub(super) struct EventRow {
    pub(super) sequence: i64,
    pub(super) at: Timestamp,
    pub(super) told: Told,
    pub(super) effect: Effect,
}

/// What one event changes beside its own row.
#[derive(Debug)]
pub(super) enum Effect {
    Nothing,
    Started {
        repository: Option<String>,
        branch: Option<String>,
        initial_commit: Option<String>,
    },
    Message(Box<MessageRow>),
    Request {
        model: Option<String>,
        figures: Figures,
        own: RequestRow,
    },
    Version(String),
    Result {
        text: String,
        figures: Figures,
        /// The SDK named a cost, which covers what was used until then.
        names_cost: bool,
    },
    Patch(Box<[PatchRow; 2]>),
    Sealed {
        changes: Option<Value>,
        figures: Figures,
    },
}

/// What one request used, for `run_model_usage`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RequestRow {
    pub(super) model: String,
    pub(super) input: i64,
    pub(super) output: i64,
    pub(super) cache_read: i64,
    pub(super) cache_creation: i64,
    pub(super) estimated: bool,
    pub(super) milliseconds: i64,
}

/// What newly stored events change in their attempt's row.
#[derive(Debug, Default, PartialEq)]
pub(super) struct AttemptChange {
    pub(super) figures: Figures,
    pub(super) repository: Option<String>,
    pub(super) branch: Option<String>,
    pub(super) initial_commit: Option<String>,
    pub(super) changes: Option<Value>,
    pub(super) model: Option<(i64, String)>,
    pub(super) result: Option<(i64, String)>,
    /// Sequence of the last result that named a cost.
    pub(super) cost_sequence: Option<i64>,
    pub(super) sealed: Option<i64>,
    pub(super) cli_version: Option<String>,
}

impl Stored {
    /// The batch's rows; refused, with a sentence, where it could not have been made by a supervisor.
    pub(super) fn of(batch: &Batch) -> Result<Self, Error> {
        let attempt = i32::try_from(batch.attempt)
            .ok()
            .filter(|_| (1..=MAX_ATTEMPT).contains(&batch.attempt))
            .ok_or_else(|| refused(format!("attempt {} can't be true", batch.attempt)))?;
        let name = &batch.session_name;
        if name.chars().count() > LONGEST_SESSION || name.contains('\0') {
            return Err(refused("its session's name can't be true".to_owned()));
        }
        if batch.events.len() > MAX_BATCH_EVENTS {
            return Err(refused(format!(
                "a batch holds at most {MAX_BATCH_EVENTS} events"
            )));
        }
        let mut events = Vec::with_capacity(batch.events.len());
        let mut last = 0;
        for event in &batch.events {
            let row = EventRow::of(event, attempt).map_err(|wrong| {
                refused(format!("event {}: {wrong} can't be true", event.sequence))
            })?;
            if row.sequence <= last {
                return Err(refused(format!(
                    "event {}: sequences must rise from 1 within a batch",
                    event.sequence
                )));
            }
            last = row.sequence;
            events.push(row);
        }
        Ok(Self { attempt, events })
    }

    /// Its sequences, rising.
    pub(super) fn sequences(&self) -> Vec<i64> {
        self.events.iter().map(|row| row.sequence).collect()
    }

    /// Whether the task is among its messages.
    pub(super) fn says_the_task(&self) -> bool {
        self.events.iter().any(
            |row| matches!(&row.effect, Effect::Message(message) if message.kind == WORKFLOW_START),
        )
    }

    /// The events of those sequences (rising, all of this batch).
    pub(super) fn among(&self, new: &[i64]) -> impl Iterator<Item = &EventRow> {
        self.events
            .iter()
            .filter(|row| new.binary_search(&row.sequence).is_ok())
    }

    /// What the events of those sequences (rising, all of this batch) change in the attempt's row.
    pub(super) fn change(&self, new: &[i64]) -> AttemptChange {
        let mut change = AttemptChange::default();
        for row in self.among(new) {
            change.take(row);
        }
        change
    }

    /// Rows of `messages` among the events of those sequences; of equal ids the first.
    pub(super) fn messages(&self, new: &[i64]) -> Vec<(&EventRow, &MessageRow)> {
        // One statement can't write the same row twice.
        let mut seen = HashSet::new();
        self.among(new)
            .filter_map(|row| match &row.effect {
                Effect::Message(message) => Some((row, &**message)),
                _ => None,
            })
            .filter(|(_, message)| seen.insert(message.id))
            .collect()
    }

    /// Requests among the events of those sequences.
    pub(super) fn requests(&self, new: &[i64]) -> Vec<(&EventRow, &RequestRow)> {
        self.among(new)
            .filter_map(|row| match &row.effect {
                Effect::Request { own, .. } => Some((row, own)),
                _ => None,
            })
            .collect()
    }

    /// The last patch among the events of those sequences.
    pub(super) fn patch(&self, new: &[i64]) -> Option<(&EventRow, &[PatchRow; 2])> {
        let patches = self.among(new).filter_map(|row| match &row.effect {
            Effect::Patch(rows) => Some((row, &**rows)),
            _ => None,
        });
        patches.last()
    }
}

impl AttemptChange {
    fn take(&mut self, row: &EventRow) {
        match &row.effect {
            Effect::Nothing | Effect::Message(_) | Effect::Patch(_) => {}
            Effect::Started {
                repository,
                branch,
                initial_commit,
            } => {
                self.repository = self.repository.take().or_else(|| repository.clone());
                self.branch = self.branch.take().or_else(|| branch.clone());
                self.initial_commit = self
                    .initial_commit
                    .take()
                    .or_else(|| initial_commit.clone());
            }
            Effect::Request { model, figures, .. } => {
                self.figures = self.figures.max(*figures);
                if let Some(model) = model {
                    self.model = Some((row.sequence, model.clone()));
                }
            }
            Effect::Version(version) => self.cli_version = Some(version.clone()),
            Effect::Result {
                text,
                figures,
                names_cost,
            } => {
                self.figures = self.figures.max(*figures);
                self.result = Some((row.sequence, text.clone()));
                if *names_cost {
                    self.cost_sequence = Some(row.sequence);
                }
            }
            Effect::Sealed { changes, figures } => {
                self.figures = self.figures.max(*figures);
                self.changes.clone_from(changes);
                self.sealed = Some(row.sequence);
            }
        }
    }
}

impl EventRow {
    fn of(event: &Event, attempt: i32) -> Result<Self, &'static str> {
        let sequence = figure("its sequence", event.sequence)?;
        let effect = effect(&event.body, attempt)?;
        Ok(Self {
            sequence,
            at: event.at,
            told: Told::of(&event.body)?,
            effect,
        })
    }
}

fn effect(body: &EventBody, attempt: i32) -> Result<Effect, &'static str> {
    Ok(match body {
        EventBody::RequestStarted { request, bytes } => {
            figure("its request", *request)?;
            figure("its bytes", *bytes)?;
            Effect::Nothing
        }
        EventBody::Omitted { .. } => Effect::Nothing,
        EventBody::Patch(patch) => Effect::Patch(Box::new(patches::rows(patch)?)),
        EventBody::AttemptStarted {
            repository,
            branch,
            initial_commit,
            // For who reads the events.
            notes: _,
        } => Effect::Started {
            repository: name("its repository", repository.as_deref(), figures::MAX_URL)?,
            branch: name("its branch", branch.as_deref(), figures::MAX_NAME)?,
            initial_commit: name("its commit", initial_commit.as_deref(), figures::MAX_COMMIT)?
                .filter(|commit| !commit.is_empty()),
        },
        EventBody::Message(message) => Effect::Message(Box::new(message_row(message, attempt)?)),
        EventBody::RequestEnded {
            model,
            usage,
            tokens,
            estimated,
            milliseconds,
            ..
        } => {
            // Of this request alone; refused like the sums that it is part of.
            let own = Figures::of(&crate::wire::Usage {
                tokens: *tokens,
                ..Default::default()
            })?;
            let model = name("its model", model.as_deref(), figures::MAX_NAME)?;
            Effect::Request {
                own: RequestRow {
                    model: model.clone().unwrap_or_else(|| UNKNOWN_MODEL.to_owned()),
                    input: own.input,
                    output: own.output,
                    cache_read: own.cache_read,
                    cache_creation: own.cache_creation,
                    estimated: *estimated,
                    milliseconds: figure("its duration", *milliseconds)?,
                },
                model,
                figures: Figures::of(usage)?,
            }
        }
        EventBody::AgentStarted { version } => {
            Effect::Version(clean::marked(version, LONGEST_TOOL))
        }
        EventBody::AgentResult {
            text,
            session_cost_micro_usd,
            usage,
            ..
        } => {
            figure("its session's cost", session_cost_micro_usd.unwrap_or(0))?;
            Effect::Result {
                text: clean::text(text).0,
                figures: Figures::of(usage)?,
                names_cost: session_cost_micro_usd.is_some(),
            }
        }
        EventBody::Sealed(termination) => {
            let changes = match &termination.git {
                Some(changes) => {
                    figures::changes(changes)?;
                    let mut value = json!(changes);
                    clean::value(&mut value);
                    Some(value)
                }
                None => None,
            };
            Effect::Sealed {
                changes,
                figures: Figures::of(&termination.usage)?,
            }
        }
    })
}

/// Model of a request that none answered.
pub(super) const UNKNOWN_MODEL: &str = "unknown";
/// Longest name of a session, in characters: what its column takes, and more than Kubernetes does.
const LONGEST_SESSION: usize = 255;
/// Longest name of a tool, or version, in characters.
const LONGEST_TOOL: usize = 200;
/// `message_type` of the task.
pub(super) const WORKFLOW_START: &str = "workflow_start";

/// A text for a bounded column, or its name where it is longer.
fn name(
    what: &'static str,
    text: Option<&str>,
    max: usize,
) -> Result<Option<String>, &'static str> {
    match text {
        Some(text) if text.len() > max => Err(what),
        Some(text) => Ok(Some(clean::text(text).0)),
        None => Ok(None),
    }
}

fn refused(sentence: String) -> Error {
    Error::Refused(sentence)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
