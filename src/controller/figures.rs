//! The figures of a run's status: sums over its attempts, and how people read them. Pure.

use crate::api::run::{AttemptStatus, GitStatus, UsageStatus, WorkflowRunStatus};
use crate::wire::{Changes, Termination, Usage};

/// Enters the figures of the current attempt, and those of earlier ones that were handed in late.
pub(super) fn count(status: &mut WorkflowRunStatus, termination: Option<&Termination>) {
    let attempt = status.attempt.unwrap_or(1);
    enter(status, attempt, termination.map(|t| &t.usage));
    for earlier in termination.iter().flat_map(|t| &t.earlier) {
        if earlier.attempt < attempt {
            enter(status, earlier.attempt, Some(&earlier.usage));
        }
    }
    status.attempts.sort_by_key(|one| one.attempt);
    let mut total = UsageStatus::default();
    let mut cost = None;
    for usage in status.attempts.iter().filter_map(|one| one.usage.as_ref()) {
        total.input_tokens = total.input_tokens.saturating_add(usage.input_tokens);
        total.output_tokens = total.output_tokens.saturating_add(usage.output_tokens);
        total.cache_read_tokens = total
            .cache_read_tokens
            .saturating_add(usage.cache_read_tokens);
        total.cache_creation_tokens = total
            .cache_creation_tokens
            .saturating_add(usage.cache_creation_tokens);
        total.total_tokens = total.total_tokens.saturating_add(usage.total_tokens);
        total.turns = total.turns.saturating_add(usage.turns);
        total.requests = total.requests.saturating_add(usage.requests);
        total.estimated_requests = total
            .estimated_requests
            .saturating_add(usage.estimated_requests);
        if let Some(one) = usage.cost_usd.as_deref().and_then(micro_usd) {
            cost = Some(cost.unwrap_or(0_u64).saturating_add(one));
        }
    }
    total.cost_usd = cost.map(usd);
    status.usage = status
        .attempts
        .iter()
        .any(|one| one.usage.is_some())
        .then_some(total);
}

fn enter(status: &mut WorkflowRunStatus, attempt: u32, usage: Option<&Usage>) {
    let pod_name = status
        .pod_name
        .clone()
        .filter(|_| status.attempt == Some(attempt));
    let usage = usage.map(usage_status);
    match status
        .attempts
        .iter_mut()
        .find(|one| one.attempt == attempt)
    {
        Some(one) => {
            one.pod_name = pod_name.or(one.pod_name.take());
            one.usage = usage.or(one.usage.take());
        }
        None => status.attempts.push(AttemptStatus {
            attempt,
            pod_name,
            usage,
        }),
    }
}

fn usage_status(usage: &Usage) -> UsageStatus {
    UsageStatus {
        input_tokens: usage.tokens.input,
        output_tokens: usage.tokens.output,
        cache_read_tokens: usage.tokens.cache_read,
        cache_creation_tokens: usage.tokens.cache_creation,
        total_tokens: usage.tokens.total(),
        cost_usd: usage.cost_micro_usd.map(usd),
        turns: usage.turns,
        requests: usage.requests,
        estimated_requests: usage.estimated_requests,
    }
}

/// What changed, as the status has it.
pub(super) fn git(changes: &Changes) -> GitStatus {
    GitStatus {
        repository: changes.repository.clone(),
        branch: changes.branch.clone(),
        initial_commit: changes.initial_commit.clone(),
        final_commit: changes.final_commit.clone(),
        commits: changes.commits,
        files: changes.files,
        added: changes.added,
        removed: changes.removed,
        pushed: changes.pushed.clone(),
    }
}

/// `3 files +40 -2`.
pub(super) fn changes(git: &GitStatus) -> String {
    match git.files {
        0 => "none".to_owned(),
        1 => format!("1 file +{} -{}", git.added, git.removed),
        files => format!("{files} files +{} -{}", git.added, git.removed),
    }
}

/// `1h4m`, `1m4s`, `4s`.
pub(super) fn duration(seconds: i64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, m) => format!("{m}m{s}s"),
        (h, m) => format!("{h}h{m}m{s}s"),
    }
}

/// Micro-USD as `0.016280`.
pub(super) fn usd(micro: u64) -> String {
    format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000)
}

/// The reverse of [`usd`].
pub(super) fn micro_usd(usd: &str) -> Option<u64> {
    let (whole, rest) = usd.split_once('.')?;
    let rest: u64 = (rest.len() == 6).then(|| rest.parse().ok())??;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(1_000_000)?
        .checked_add(rest)
}
