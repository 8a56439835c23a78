//! Figures as the database holds them. A number that can't be true is refused, never clamped: a
//! ledger that rounds is worse than one that says no.

use crate::wire::{Changes, Usage};

/// Largest figure of one attempt: 10¹⁵ tokens, or a thousand million dollars in micro-USD. A thousand
/// attempts of four such kinds still fit a bigint.
pub(super) const MAX_FIGURE: u64 = 1_000_000_000_000_000;
/// Largest number of an attempt.
pub(super) const MAX_ATTEMPT: u32 = 1000;

/// A [`Usage`] that fits its columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) input: i64,
    pub(super) output: i64,
    pub(super) cache_read: i64,
    pub(super) cache_creation: i64,
    pub(super) cost: Option<i64>,
    pub(super) turns: i64,
    pub(super) requests: i64,
    pub(super) estimated: i64,
}

impl Figures {
    /// The usage's figures, or the name of the one that can't be true.
    pub(super) fn of(usage: &Usage) -> Result<Self, &'static str> {
        Ok(Self {
            input: figure("input tokens", usage.tokens.input)?,
            output: figure("output tokens", usage.tokens.output)?,
            cache_read: figure("cache read tokens", usage.tokens.cache_read)?,
            cache_creation: figure("cache creation tokens", usage.tokens.cache_creation)?,
            cost: usage
                .cost_micro_usd
                .map(|cost| figure("cost", cost))
                .transpose()?,
            turns: i64::from(usage.turns),
            requests: i64::from(usage.requests),
            estimated: i64::from(usage.estimated_requests),
        })
    }

    /// The greater of each: figures are cumulative.
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            input: self.input.max(other.input),
            output: self.output.max(other.output),
            cache_read: self.cache_read.max(other.cache_read),
            cache_creation: self.cache_creation.max(other.cache_creation),
            cost: self.cost.max(other.cost),
            turns: self.turns.max(other.turns),
            requests: self.requests.max(other.requests),
            estimated: self.estimated.max(other.estimated),
        }
    }
}

/// The number, or its name where it can't be true.
pub(super) fn figure(name: &'static str, number: u64) -> Result<i64, &'static str> {
    if number > MAX_FIGURE {
        return Err(name);
    }
    i64::try_from(number).map_err(|_| name)
}

/// Whether the numbers and texts of the changes can be true.
pub(super) fn changes(changes: &Changes) -> Result<(), &'static str> {
    // An int, as readers of such counts expect.
    if i32::try_from(changes.commits).is_err() {
        return Err("commits");
    }
    figure("added lines", changes.added)?;
    figure("removed lines", changes.removed)?;
    let texts = [
        ("branch", &changes.branch, MAX_NAME),
        ("repository", &changes.repository, MAX_URL),
        ("initial commit", &changes.initial_commit, MAX_COMMIT),
        ("final commit", &changes.final_commit, MAX_COMMIT),
    ];
    for (name, text, max) in texts {
        if text.len() > max {
            return Err(name);
        }
    }
    match &changes.pushed {
        Some(pushed) if pushed.len() > MAX_NAME => Err("pushed branch"),
        _ => Ok(()),
    }
}

/// Longest branch or model name, in bytes (an index entry holds some 2,700).
pub(super) const MAX_NAME: usize = 1024;
/// Longest URL, in bytes.
pub(super) const MAX_URL: usize = 8192;
/// Longest commit id, in bytes.
pub(super) const MAX_COMMIT: usize = 128;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::wire::Tokens;

    #[test]
    fn a_number_that_cannot_be_true_is_named() {
        let usage = Usage {
            tokens: Tokens {
                cache_read: u64::MAX,
                ..Tokens::default()
            },
            ..Usage::default()
        };
        assert_eq!(Figures::of(&usage), Err("cache read tokens"));
        let usage = Usage {
            cost_micro_usd: Some(MAX_FIGURE),
            ..Usage::default()
        };
        assert!(Figures::of(&usage).is_ok());
    }

    #[test]
    fn the_greater_of_two_costs_is_taken_and_none_is_least() {
        let some = Figures {
            cost: Some(0),
            ..Figures::default()
        };
        assert_eq!(Figures::default().max(some).cost, Some(0));
    }
}
