//! What an import has done, counted and told.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;

use super::Error;

/// Examples that are named for each reason.
const EXAMPLES: usize = 5;
/// Rows between two progress lines.
const STEP: u64 = 10_000;

/// Counts, for each source.
#[derive(Debug, Default)]
pub struct Report {
    sources: BTreeMap<&'static str, Count>,
    skipped: BTreeMap<String, (u64, Vec<String>)>,
    notes: BTreeMap<String, u64>,
    ahead: BTreeMap<&'static str, u64>,
}

/// What became of a source's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Rows or files that were read.
    pub read: u64,
    /// New rows of the ledger.
    pub imported: u64,
    /// Went into a row that another source, or an import before, had made.
    pub merged: u64,
    /// Were imported before, as they are.
    pub unchanged: u64,
    /// Hold nothing to import.
    pub empty: u64,
    /// Could not be imported.
    pub skipped: u64,
}

impl Report {
    /// The counts of a source.
    pub fn of(&self, source: &str) -> Count {
        self.sources.get(source).copied().unwrap_or_default()
    }

    pub(super) fn count(&mut self, source: &'static str) -> &mut Count {
        self.sources.entry(source).or_default()
    }

    /// A source's row went into another's before it was its own turn, when it will be found unchanged.
    pub(super) fn merged_ahead(&mut self, source: &'static str) {
        *self.ahead.entry(source).or_default() += 1;
    }

    /// After a source's turn: what was merged ahead is counted as merged, and not as unchanged.
    pub(super) fn turn_is_over(&mut self, source: &'static str) {
        let ahead = self.ahead.remove(source).unwrap_or_default();
        let count = self.count(source);
        let ahead = ahead.min(count.unchanged);
        count.unchanged -= ahead;
        count.merged += ahead;
    }

    pub(super) fn skip(&mut self, source: &'static str, why: &str, what: &str) {
        self.count(source).skipped += 1;
        let (count, examples) = self.skipped.entry(format!("{source}: {why}")).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(what.chars().take(80).collect());
        }
    }

    pub(super) fn note(&mut self, note: &str, count: u64) {
        if count > 0 {
            *self.notes.entry(note.to_owned()).or_default() += count;
        }
    }

    /// One more was read; says so now and then.
    pub(super) fn read(
        &mut self,
        source: &'static str,
        out: &mut (dyn Write + Send),
    ) -> Result<(), Error> {
        let count = self.count(source);
        count.read += 1;
        if count.read.is_multiple_of(STEP) {
            writeln!(
                out,
                "{source}: {} read, {} imported, {} merged, {} skipped so far",
                count.read, count.imported, count.merged, count.skipped
            )
            .map_err(Error::Output)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "source", "read", "imported", "merged", "unchanged", "empty", "skipped"
        )?;
        for (source, c) in &self.sources {
            writeln!(
                f,
                "{source:<24}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
                c.read, c.imported, c.merged, c.unchanged, c.empty, c.skipped
            )?;
        }
        for (why, (count, examples)) in &self.skipped {
            writeln!(
                f,
                "skipped {count}, {why} (for example {})",
                examples.join(", ")
            )?;
        }
        for (note, count) in &self.notes {
            writeln!(f, "note: {count} {note}")?;
        }
        Ok(())
    }
}
