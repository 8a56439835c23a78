//! Which files changed, how, and by how many lines: a comparison made into a [`Lines`], as
//! `git diff --numstat -M` does it.

use std::collections::HashSet;

use super::Error;
use super::attributes::Attributes;
use super::content::Content;
use super::lines::{self, Count, Pair};
use super::objects::{SUBMODULE, SYMLINK, TYPE};
use super::renames;
use super::tree_diff::{Change, Side};
use crate::report::{FileLine, Kind, Lines, PathName};

/// A change with its rename found.
pub(super) struct Paired {
    pub(super) change: Change,
    /// Of a renamed file to what it was, in percent.
    pub(super) similarity: u8,
}

/// Pairs what was renamed, counts the lines of everything, and tells each file's kind.
pub(super) fn count(
    content: &Content<'_>,
    attributes: &Attributes<'_>,
    changes: Vec<Change>,
) -> Result<Lines, Error> {
    let changes = pair(content, attributes, changes)?;
    let pairs: Vec<Pair<'_>> = changes
        .iter()
        .map(|Paired { change, .. }| (change.old.as_ref(), change.new.as_ref()))
        .collect();
    let counts = lines::count_all(content, &pairs)?;
    let mut lines = Lines::default();
    for (paired, count) in changes.iter().zip(counts) {
        if let Some(line) = file_line(&paired.change, count) {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Tells text from what is not, and pairs what was renamed.
pub(super) fn pair(
    content: &Content<'_>,
    attributes: &Attributes<'_>,
    mut changes: Vec<Change>,
) -> Result<Vec<Paired>, Error> {
    for change in &mut changes {
        for side in [&mut change.old, &mut change.new].into_iter().flatten() {
            if side.on_disk && side.id.is_zero() {
                // It can't be read at all.
                side.is_text = Some(false);
            } else if side.is_regular() {
                side.is_text = attributes.is_text(&side.path);
            }
        }
    }
    paired(content, changes)
}

/// A file that went and one that came become one, where git sees a rename.
fn paired(content: &Content<'_>, changes: Vec<Change>) -> Result<Vec<Paired>, Error> {
    let alone = |is_old: bool| {
        let at = changes.iter().enumerate();
        at.filter_map(move |(at, change)| match (&change.old, &change.new) {
            (Some(side), None) if is_old => Some((at, side)),
            (None, Some(side)) if !is_old => Some((at, side)),
            _ => None,
        })
        .unzip()
    };
    let (from, sources): (Vec<usize>, Vec<&Side>) = alone(true);
    let (to, targets): (Vec<usize>, Vec<&Side>) = alone(false);
    let found = renames::find(content, &sources, &targets)?;
    let pairs: Vec<(usize, usize, u8)> = to
        .iter()
        .zip(found)
        .filter_map(|(to, origin)| origin.map(|it| (*to, from[it.source], it.similarity)))
        .collect();
    let moved: HashSet<usize> = pairs.iter().map(|(_, from, _)| *from).collect();
    let mut changes: Vec<Paired> = changes
        .into_iter()
        .map(|change| Paired {
            change,
            similarity: 0,
        })
        .collect();
    for (to, from, similarity) in pairs {
        changes[to].change.old = changes[from].change.old.take();
        changes[to].similarity = similarity;
    }
    Ok(changes
        .into_iter()
        .enumerate()
        .filter(|(at, _)| !moved.contains(at))
        .map(|(_, change)| change)
        .collect())
}

fn file_line(change: &Change, count: Count) -> Option<FileLine> {
    let (old, new) = (change.old.as_ref(), change.new.as_ref());
    let shown = new.or(old)?;
    let kind = match (old, new) {
        (None, _) => Kind::Added,
        (_, None) => Kind::Deleted,
        (Some(old), Some(new)) if old.path != new.path => Kind::Renamed,
        (Some(old), Some(new)) if old.mode & TYPE != new.mode & TYPE => Kind::TypeChanged,
        (Some(old), Some(new)) if old.id == new.id => Kind::ModeChanged,
        _ => Kind::Modified,
    };
    let old_mode = old
        .zip(new)
        .and_then(|(old, new)| (old.mode != new.mode).then(|| mode(old)));
    let is_odd = matches!(shown.mode, SYMLINK | SUBMODULE);
    Some(FileLine {
        name: PathName::from(shown.path.as_slice()),
        kind,
        renamed_from: old
            .filter(|_| kind == Kind::Renamed)
            .map(|old| PathName::from(old.path.as_slice())),
        added_lines: count.map(|(added, _)| added),
        removed_lines: count.map(|(_, removed)| removed),
        binary: count.is_none(),
        mode: (is_odd || old_mode.is_some()).then(|| mode(shown)),
        old_mode,
    })
}

fn mode(side: &Side) -> String {
    format!("{:06o}", side.mode)
}
