//! The books balance: what every ended run must satisfy, whatever it was, each figure against the
//! source that knows it best.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use runledger::api::run::{Phase, WorkflowRunStatus};
use runledger::ids;
use runledger::wire::{Changes, Event, EventBody, Termination, Tokens};

use crate::git;
use crate::ledger::{self, EventRow, Row};
use crate::model::{self, Sent};
use crate::runs::Run;

/// Everything that is known of an ended run.
pub(crate) struct Books {
    pub(crate) status: WorkflowRunStatus,
    pub(crate) row: Row,
    pub(crate) events: Vec<EventRow>,
    pub(crate) bodies: Vec<(i32, EventBody)>,
    pub(crate) sent: Vec<Sent>,
}

impl Books {
    /// Reads them, and requires what holds for every run.
    pub(crate) async fn of(run: &Run, status: WorkflowRunStatus) -> Result<Self> {
        let pool = &run.space.world.ledger;
        let row = ledger::row(pool, run.id()).await?;
        let events = ledger::events(pool, run.id()).await?;
        let sent = model::sent(&run.space.world, Some(&run.tag())).await?;
        let bodies = events.iter().map(body).collect::<Result<_>>()?;
        let books = Self {
            status,
            row,
            events,
            bodies,
            sent,
        };
        books.status_is_the_row()?;
        ledger::contiguous(&books.events)?;
        let is_omitted = |body: &EventBody| matches!(body, EventBody::Omitted { .. });
        ensure!(
            !books.bodies.iter().any(|(_, body)| is_omitted(body)),
            "events were left out: {:?}",
            books.bodies
        );
        books.every_attempt_had_one_pod(run)?;
        Ok(books)
    }

    /// As [`Books::of`] for a run that nothing disturbed: sealed once, every token as it was sent.
    pub(crate) async fn undisturbed(run: &Run, status: WorkflowRunStatus) -> Result<Self> {
        let books = Self::of(run, status).await?;
        books.sealed(run).await?;
        ensure!(
            books.tokens() == model::total(&books.sent),
            "row {:?}, model {:?}",
            books.tokens(),
            books.sent
        );
        ensure!(
            ledger::estimated_requests(&run.space.world.ledger, run.id()).await? == 0,
            "estimated requests"
        );
        books.every_answer_is_a_message(run).await?;
        Ok(books)
    }

    /// Tokens of the ledger's row.
    pub(crate) fn tokens(&self) -> Tokens {
        let count = |column: i64| u64::try_from(column).unwrap_or(0);
        Tokens {
            input: count(self.row.input_tokens),
            output: count(self.row.output_tokens),
            cache_read: count(self.row.cache_read_tokens),
            cache_creation: count(self.row.cache_creation_tokens),
        }
    }

    fn status_is_the_row(&self) -> Result<()> {
        let (status, row) = (&self.status, &self.row);
        let usage = status.usage.clone().unwrap_or_default();
        let phase = match status.phase {
            Phase::Pending => "pending",
            Phase::Running => "running",
            Phase::Completed => "completed",
            Phase::Failed => "failed",
            Phase::Killed => "killed",
        };
        let git = status.git.clone().unwrap_or_default();
        let text = |column: &Option<String>| column.clone().unwrap_or_default();
        let cost = row.cost_estimate.map(|cost| format!("{cost:.6}"));
        let of_status = (
            (phase, status.reason.clone(), status.attempt.unwrap_or(0)),
            (
                usage.input_tokens,
                usage.output_tokens,
                usage.cache_read_tokens,
                usage.cache_creation_tokens,
            ),
            (usage.total_tokens, usage.turns, usage.cost_usd),
            (
                git.initial_commit,
                git.final_commit,
                git.commits,
                git.files,
                git.added,
                git.removed,
                git.pushed,
            ),
        );
        let tokens = self.tokens();
        let of_row = (
            (
                row.status.as_str(),
                row.reason.clone(),
                u32::try_from(row.attempt)?,
            ),
            (
                tokens.input,
                tokens.output,
                tokens.cache_read,
                tokens.cache_creation,
            ),
            (
                u64::try_from(row.total_tokens)?,
                u32::try_from(row.turns)?,
                cost,
            ),
            (
                text(&row.initial_commit_hash),
                text(&row.final_commit_hash),
                u32::try_from(row.git_commits)?,
                u32::try_from(row.git_diff_files_changed)?,
                u64::try_from(row.git_diff_added_lines)?,
                u64::try_from(row.git_diff_removed_lines)?,
                row.git_pushed_branch.clone(),
            ),
        );
        // A run that never got so far has no git status, and its row may know the first commit.
        if status.git.is_none() {
            ensure!(
                (&of_status.0, &of_status.1, &of_status.2) == (&of_row.0, &of_row.1, &of_row.2),
                "status {of_status:?}\nrow    {of_row:?}"
            );
            return Ok(());
        }
        let branch = status.git.as_ref().map(|git| git.branch.clone());
        ensure!(
            branch == row.git_branch,
            "branch {branch:?} and {:?}",
            row.git_branch
        );
        ensure!(
            of_status == of_row,
            "status {of_status:?}\nrow    {of_row:?}"
        );
        Ok(())
    }

    /// No attempt ever had two pods.
    fn every_attempt_had_one_pod(&self, run: &Run) -> Result<()> {
        let mut attempts: BTreeMap<u32, Vec<String>> = BTreeMap::new();
        for (attempt, pod) in run.space.witness.pods_of(&run.uid) {
            attempts
                .entry(attempt)
                .or_default()
                .push(pod.metadata.uid.unwrap_or_default());
        }
        ensure!(
            attempts.len() == usize::try_from(self.row.attempt)?,
            "attempt {}, pods {attempts:?}",
            self.row.attempt
        );
        ensure!(
            attempts.values().all(|pods| pods.len() == 1),
            "pods by attempt: {attempts:?}"
        );
        Ok(())
    }

    /// The termination message, the last event and the status say the same.
    pub(crate) async fn sealed(&self, run: &Run) -> Result<Termination> {
        let termination = run.space.witness.termination(&run.uid).await?;
        let last = self.bodies.last().context("no events")?;
        let EventBody::Sealed(sealed) = &last.1 else {
            anyhow::bail!("the last event is {last:?}");
        };
        // The report of what changed is in the event alone: a termination message has no room for it.
        let bare = |git: &Option<Changes>| git.clone().map(|git| Changes { stats: None, ..git });
        ensure!(
            (
                sealed.outcome,
                &sealed.reason,
                sealed.usage,
                bare(&sealed.git),
                sealed.sequence
            ) == (
                termination.outcome,
                &termination.reason,
                termination.usage,
                bare(&termination.git),
                termination.sequence
            ),
            "event {sealed:?}\ntermination {termination:?}"
        );
        ensure!(
            termination.acknowledged == termination.sequence,
            "not all was flushed: {termination:?}"
        );
        let sequence = u64::try_from(self.events.last().map_or(0, |event| event.sequence))?;
        ensure!(
            termination.sequence == sequence,
            "sealed at {}, last event {sequence}",
            termination.sequence
        );
        let usage = self.status.usage.clone().unwrap_or_default();
        if self.row.attempt == 1 {
            ensure!(
                termination.usage.tokens == self.tokens() && termination.usage.turns == usage.turns,
                "termination {:?}, status {usage:?}",
                termination.usage
            );
        }
        Ok(termination)
    }

    /// Each answer that the model sent whole is one message of the ledger. (A subagent's answer is
    /// the result of the tool call that made it.)
    pub(crate) async fn every_answer_is_a_message(&self, run: &Run) -> Result<()> {
        let messages = ledger::messages(&run.space.world.ledger, run.id()).await?;
        let said: Vec<_> = messages
            .iter()
            .filter(|message| message.role == "assistant")
            .map(|message| message.id)
            .collect();
        for answer in self.sent.iter().filter(|sent| {
            sent.complete && sent.status == 200 && sent.kind == "turn" && sent.scenario != "helper"
        }) {
            let id = ids::message(run.id(), answer.message_id.as_deref().unwrap_or_default());
            let count = said.iter().filter(|said| **said == id).count();
            ensure!(count == 1, "{count} messages for the answer {answer:?}");
        }
        ensure!(
            messages
                .first()
                .and_then(|first| first.message_type.clone())
                .as_deref()
                == Some("workflow_start"),
            "first is {:?}",
            messages.first()
        );
        Ok(())
    }

    /// The diff and the commits, as git counts them in a clone from the server.
    pub(crate) async fn changes_are_gits(&self, clone: &git::Clone) -> Result<()> {
        let status = self.status.git.clone().context("the status has no git")?;
        let counts = clone
            .counts(&status.initial_commit, &status.final_commit)
            .await?;
        let ours = git::Counts {
            commits: status.commits,
            files: status.files,
            added: status.added,
            removed: status.removed,
        };
        ensure!(ours == counts, "status {ours:?}, git {counts:?}");
        if let Some(branch) = &status.pushed {
            let there = clone.branch(branch).await?;
            ensure!(
                there.as_ref() == Some(&status.final_commit),
                "{branch} is at {there:?}, not {}",
                status.final_commit
            );
        }
        Ok(())
    }

    /// The SDK's last word on the session's cost, in micro-USD.
    pub(crate) fn session_cost(&self) -> Option<u64> {
        self.bodies.iter().rev().find_map(|(_, body)| match body {
            EventBody::AgentResult {
                session_cost_micro_usd,
                ..
            } => *session_cost_micro_usd,
            _ => None,
        })
    }

    /// The row's cost in micro-USD.
    pub(crate) fn cost(&self) -> Option<u64> {
        use rust_decimal::prelude::ToPrimitive;
        self.row
            .cost_estimate
            .and_then(|cost| (cost * rust_decimal::Decimal::from(1_000_000)).to_u64())
    }
}

/// An event's body as the wire has it.
fn body(row: &EventRow) -> Result<(i32, EventBody)> {
    let mut value = row.body.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.entry("sequence").or_insert(row.sequence.into());
        fields.entry("at").or_insert("1970-01-01T00:00:00Z".into());
        fields.entry("type").or_insert(row.kind.clone().into());
    }
    let event: Event = serde_json::from_value(value).with_context(|| format!("event {row:?}"))?;
    Ok((row.attempt, event.body))
}
