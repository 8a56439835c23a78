//! All that is in the worktree and not in the final commit, as one list of changes: staged, unstaged and
//! untracked together, as somebody wants it who can't come back for the worktree.

use std::collections::{BTreeMap, HashSet};

use super::disk::told;
use super::*;
use crate::git::attributes::LineEnds;
use crate::git::objects::SYMLINK;

/// Most files unknown to the index that are read.
const MAX_UNTRACKED: usize = 5_000;
/// Most bytes of them.
const MAX_UNTRACKED_BYTES: u64 = 64 * 1024 * 1024;

/// What differs between a commit and the worktree.
pub(in crate::git) struct All<'a> {
    pub(in crate::git) content: &'a Content<'a>,
    pub(in crate::git) attributes: &'a Attributes<'a>,
    pub(in crate::git) changes: Vec<Change>,
    /// Paths that no change is given of, and why.
    pub(in crate::git) odd: Vec<(Vec<u8>, &'static str)>,
}

/// Looks at everything between a commit and the worktree.
pub(in crate::git) fn with_all<T>(
    ground: &Ground<'_>,
    head: Option<Oid>,
    then: impl FnOnce(All<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let index = read_index(ground.git)?;
    let attributes = attributes_of(ground, &index)?;
    let (staged, findings) = differing(ground, head, &index)?;
    let mut disk = Disk::new(ground, &attributes, &index, &findings.known);
    let unstaged = unstaged(&disk, &index, &findings.known)?;

    let mut odd = Vec::new();
    for entry in index.entries().iter().filter(|entry| entry.stage != 0) {
        let path = index.path(entry).to_vec();
        if odd.last().is_none_or(|(last, _)| *last != path) {
            odd.push((path, "in conflict"));
        }
    }
    let mut all = BTreeMap::new();
    for change in staged {
        join(&mut all, change);
    }
    let announced: HashSet<&[u8]> = index
        .entries()
        .iter()
        .filter(|entry| entry.is_announced)
        .map(|entry| index.path(entry))
        .collect();
    for mut change in unstaged {
        // What the index has of it is a promise: no commit and no content.
        change.old = change
            .old
            .filter(|old| !announced.contains(old.path.as_slice()));
        join(&mut all, change);
    }
    for new in untracked(&mut disk, &attributes, findings.untracked, &mut odd)? {
        let new = Some(new);
        join(&mut all, Change { old: None, new });
    }
    let content = Content {
        objects: ground.objects,
        on_disk: Some(&disk),
    };
    then(All {
        content: &content,
        attributes: &attributes,
        changes: all.into_values().flatten().collect(),
        odd,
    })
}

/// A change on top of an earlier one of the same path; nothing where it takes that back.
fn join(all: &mut BTreeMap<Vec<u8>, Option<Change>>, change: Change) {
    let Some(path) = change.new.as_ref().or(change.old.as_ref()) else {
        // Promised, and gone.
        return;
    };
    let before = all.entry(path.path.clone()).or_default();
    let old = match before.take() {
        Some(earlier) => earlier.old,
        None => change.old,
    };
    let of = |side: &Option<Side>| side.as_ref().map(|side| (side.mode, side.id));
    let is_same = of(&old) == of(&change.new) && old.as_ref().is_none_or(|old| !old.id.is_zero());
    *before = (!is_same).then_some(Change {
        old,
        new: change.new,
    });
}

/// Files that the index does not know, as they would be added.
fn untracked(
    disk: &mut Disk<'_>,
    attributes: &Attributes<'_>,
    paths: Vec<Vec<u8>>,
    odd: &mut Vec<(Vec<u8>, &'static str)>,
) -> Result<Vec<Side>, Error> {
    let (mut sides, mut bytes) = (Vec::new(), 0);
    for path in paths {
        if path.ends_with(b"/") {
            odd.push((path, "a repository of its own"));
            continue;
        }
        let mut side = Side {
            path,
            mode: 0o100_644,
            id: Oid::ZERO_SHA1,
            is_text: None,
            on_disk: true,
        };
        let folder = disk.folder_of(&side)?;
        let stat = folder.map(|(folder, name)| folder.look(name)).transpose();
        let stat = stat.map_err(|e| Error::file(told(&side), &e))?;
        let Some(stat) = stat.flatten() else {
            continue;
        };
        bytes += stat.st_size.unsigned_abs();
        if sides.len() == MAX_UNTRACKED || bytes > MAX_UNTRACKED_BYTES {
            bytes -= stat.st_size.unsigned_abs();
            odd.push((side.path, "untracked, with many or large others"));
            continue;
        }
        match stat.st_mode & 0o170_000 {
            0o120_000 => side.mode = SYMLINK,
            _ if stat.st_mode & 0o100 != 0 => side.mode = 0o100_755,
            _ => {}
        }
        let ends = match side.mode {
            SYMLINK => LineEnds::Keep,
            _ => attributes.line_ends(&side.path),
        };
        if ends != LineEnds::Keep {
            let place = (ends, Oid::ZERO_SHA1);
            disk.treated.insert(side.path.clone(), place);
        }
        sides.push(side);
    }
    let ids = disk.hash_all(&sides)?;
    for (side, id) in sides.iter_mut().zip(ids) {
        // What can't be read stays without a name, and counts as binary.
        side.id = id.unwrap_or(Oid::ZERO_SHA1);
    }
    Ok(sides)
}
