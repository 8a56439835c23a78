//! Counting the lines that differ between two contents, as `git diff --numstat` does. Many pairs are
//! counted side by side.

use std::sync::{Mutex, PoisonError};

use git2::{DiffOptions, Patch};

use super::content::Content;
use super::tree_diff::Side;
use super::{Error, threads};

/// Largest file that is read for its lines, in bytes; a larger one counts as binary.
pub(super) const MAX_READ: u64 = 100 * 1024 * 1024;
/// Most lines of a file that is compared; one with more counts as binary. Comparing takes some hundred
/// bytes of memory for each line.
const MAX_LINES: usize = 2_000_000;
/// Files of which only one pair is read at a time, in bytes of both.
const LARGE: u64 = 8 * 1024 * 1024;
/// What is searched for a NUL, as in git.
const HEAD: usize = 8000;

/// Lines added and removed; nothing of a binary file.
pub(super) type Count = Option<(u64, u64)>;

/// Two sides of one file.
pub(super) type Pair<'p> = (Option<&'p Side>, Option<&'p Side>);

/// Counts each pair.
pub(super) fn count_all(content: &Content<'_>, pairs: &[Pair<'_>]) -> Result<Vec<Count>, Error> {
    let large = Mutex::new(());
    threads::each(pairs, |pair| count(content, *pair, &large))
}

fn count(content: &Content<'_>, (old, new): Pair<'_>, large: &Mutex<()>) -> Result<Count, Error> {
    let is_same = |one: &Side, two: &Side| !one.id.is_zero() && one.id == two.id;
    if let Some((old, new)) = old.zip(new).filter(|(one, two)| is_same(one, two)) {
        // No lines, but what is binary by its old name or its new one is binary.
        let is_binary = content.is_binary(old)? || content.is_binary(new)?;
        return Ok((!is_binary).then_some((0, 0)));
    }
    let mut size = 0;
    for side in [old, new].into_iter().flatten() {
        match content.size(side)? {
            bytes if bytes > MAX_READ => return Ok(None),
            bytes => size += bytes,
        }
    }
    let _one_at_a_time =
        (size > LARGE).then(|| large.lock().unwrap_or_else(PoisonError::into_inner));
    let old = old.map(|side| content.text(side)).transpose()?;
    let new = new.map(|side| content.text(side)).transpose()?;
    // No text is binary, no side is empty.
    let (Some(old), Some(new)) = (
        old.as_ref().map_or(Some(&b""[..]), |text| text.as_text()),
        new.as_ref().map_or(Some(&b""[..]), |text| text.as_text()),
    ) else {
        return Ok(None);
    };
    compare(old, new)
}

/// Lines between two texts.
fn compare(old: &[u8], new: &[u8]) -> Result<Count, Error> {
    if old == new {
        return Ok(Some((0, 0)));
    }
    let (before, after) = (lines(old), lines(new));
    if before == 0 || after == 0 {
        return Ok(Some((after as u64, before as u64)));
    }
    if before.max(after) > MAX_LINES {
        return Ok(None);
    }
    let mut options = DiffOptions::new();
    options.force_text(true).context_lines(0);
    let patch = Patch::from_buffers(old, None, new, None, Some(&mut options))
        .and_then(|patch| patch.line_stats())
        .map_err(|e| Error::local("compare two files", &e))?;
    Ok(Some((patch.1 as u64, patch.2 as u64)))
}

fn lines(text: &[u8]) -> usize {
    let ends = text.iter().filter(|&&b| b == b'\n').count();
    ends + usize::from(text.last().is_some_and(|&b| b != b'\n'))
}

/// Whether content looks binary.
pub(super) fn looks_binary(content: &[u8]) -> bool {
    content[..content.len().min(HEAD)].contains(&0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_with_and_without_an_end() {
        let compare = |old: &str, new: &str| compare(old.as_bytes(), new.as_bytes()).unwrap();
        assert_eq!(compare("", "a\nb"), Some((2, 0)));
        assert_eq!(compare("a\n", ""), Some((0, 1)));
        assert_eq!(compare("a\nb", "a\nb\n"), Some((1, 1)));
        assert_eq!(compare("a\nb\nc\n", "a\nc\n"), Some((0, 1)));
    }
}
