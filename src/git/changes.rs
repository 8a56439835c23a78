//! Counting what changed, as `git diff --numstat -M` and `git rev-list --count` do. Reads the
//! trusted git dir alone; `.gitattributes` are those of the final commit, not of the worktree.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{Delta, Diff, DiffFile, DiffOptions, FileMode, Index, Oid, Patch, Repository, Tree};
use url::Url;

use super::record::shown;
use super::renames::{self, Side};
use super::trusted::{self, MAX_READ, commit_id};
use super::{Error, Head, Place};
use crate::wire::Changes;

/// See [`super::changes`].
pub(super) fn changes(
    place: &Place,
    url: &Url,
    initial: Option<&str>,
    head: &Head,
) -> Result<Changes, Error> {
    let initial_id = initial.map(commit_id).transpose()?;
    let final_id = head
        .commit
        .as_deref()
        .map(commit_id)
        .transpose()?
        .or(initial_id);
    let mut changes = Changes {
        repository: shown(url),
        branch: head.branch.clone().unwrap_or_else(|| "HEAD".to_owned()),
        initial_commit: initial_id.map(|id| id.to_string()).unwrap_or_default(),
        final_commit: final_id.map(|id| id.to_string()).unwrap_or_default(),
        ..Changes::default()
    };
    let Some(final_id) = final_id.filter(|id| Some(*id) != initial_id) else {
        return Ok(changes);
    };
    let repo = trusted::open(place)?;
    count(&repo, initial_id, final_id, &mut changes).map_err(|e| {
        Error::local(
            format_args!("count the changes up to commit {final_id}"),
            &e,
        )
    })?;
    Ok(changes)
}

fn count(
    repo: &Repository,
    initial: Option<Oid>,
    last: Oid,
    into: &mut Changes,
) -> Result<(), git2::Error> {
    into.commits = commits(repo, initial, last)?;
    let new = repo.find_commit(last)?.tree()?;
    let old = initial.map(|id| repo.find_commit(id)?.tree()).transpose()?;
    // In memory, and for its .gitattributes only.
    let mut index = Index::new()?;
    index.read_tree(&new)?;
    repo.set_index(&mut index)?;
    let lines = lines(repo, old.as_ref(), &new)?;
    (into.files, into.added, into.removed) = (lines.files, lines.added, lines.removed);
    Ok(())
}

fn commits(repo: &Repository, initial: Option<Oid>, last: Oid) -> Result<u32, git2::Error> {
    let mut walk = repo.revwalk()?;
    walk.push(last)?;
    if let Some(initial) = initial {
        walk.hide(initial)?;
    }
    walk.try_fold(0u32, |n, id| id.map(|_| n.saturating_add(1)))
}

/// Files and lines that differ between two trees.
fn lines(repo: &Repository, old: Option<&Tree<'_>>, new: &Tree<'_>) -> Result<Lines, git2::Error> {
    let mut options = DiffOptions::new();
    options.include_typechange(true).max_size(MAX_READ as i64);
    let diff = repo.diff_tree_to_tree(old, Some(new), Some(&mut options))?;
    let mut total = Lines::default();
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (at, delta) in diff.deltas().enumerate() {
        match delta.status() {
            Delta::Added => come.push((at, side(&delta.new_file()))),
            Delta::Deleted => gone.push((at, side(&delta.old_file()))),
            _ => total.add(of_delta(repo, &diff, at)?),
        }
    }
    let sources: Vec<&Side> = gone.iter().map(|(_, side)| side).collect();
    let targets: Vec<&Side> = come.iter().map(|(_, side)| side).collect();
    let renamed = renames::find(repo, &sources, &targets)?;
    let moved: HashSet<usize> = renamed.iter().flatten().copied().collect();
    for ((at, new), from) in come.iter().zip(&renamed) {
        total.add(match from.map(|from| &gone[from].1) {
            None => of_delta(repo, &diff, *at)?,
            Some(old) if old.id == new.id => (0, 0),
            Some(old) => between(repo, old, new)?,
        });
    }
    for (source, (at, _)) in gone.iter().enumerate() {
        if !moved.contains(&source) {
            total.add(of_delta(repo, &diff, *at)?);
        }
    }
    Ok(total)
}

/// Lines added and removed in one file.
fn of_delta(repo: &Repository, diff: &Diff<'_>, at: usize) -> Result<(u64, u64), git2::Error> {
    let Some(delta) = diff.get_delta(at) else {
        return Ok((0, 0));
    };
    let (old, new) = (side(&delta.old_file()), side(&delta.new_file()));
    let is_plain = |side: &Side| side.id.is_zero() || side.is_regular();
    if is_plain(&old) && is_plain(&new) {
        return of_patch(Patch::from_diff(diff, at)?.as_ref());
    }
    // Symlinks, submodules, and what turned into one or was one: libgit2 counts no lines of them, or
    // heeds attributes that say nothing of them to git.
    let (Some(old), Some(new)) = (text(repo, &old)?, text(repo, &new)?) else {
        return Ok((0, 0));
    };
    let mut options = DiffOptions::new();
    options.force_text(true);
    of_patch(Some(&Patch::from_buffers(
        &old,
        None,
        &new,
        None,
        Some(&mut options),
    )?))
}

/// What git compares of a file; nothing where it is binary.
fn text(repo: &Repository, side: &Side) -> Result<Option<Vec<u8>>, git2::Error> {
    if side.id.is_zero() {
        return Ok(Some(Vec::new()));
    }
    if side.mode == FileMode::Commit {
        return Ok(Some(
            format!("Subproject commit {}\n", side.id).into_bytes(),
        ));
    }
    let odb = repo.odb()?;
    if odb.read_header(side.id)?.0 as u64 > MAX_READ {
        return Ok(None);
    }
    let object = odb.read(side.id)?;
    Ok((!side.is_binary(repo, object.data())).then(|| object.data().to_vec()))
}

/// Lines between a file and what it was renamed to. Renames of different content are only ever found
/// between blobs of at most [`MAX_READ`].
fn between(repo: &Repository, old: &Side, new: &Side) -> Result<(u64, u64), git2::Error> {
    let path = |side: &Side| Path::new(OsStr::from_bytes(&side.path)).to_owned();
    let patch = Patch::from_blobs(
        &repo.find_blob(old.id)?,
        Some(&path(old)),
        &repo.find_blob(new.id)?,
        Some(&path(new)),
        None,
    )?;
    of_patch(Some(&patch))
}

/// Lines added and removed; none without a patch, as of a binary file.
fn of_patch(patch: Option<&Patch<'_>>) -> Result<(u64, u64), git2::Error> {
    let Some(patch) = patch else {
        return Ok((0, 0));
    };
    let (_, added, removed) = patch.line_stats()?;
    Ok((added as u64, removed as u64))
}

fn side(file: &DiffFile<'_>) -> Side {
    Side {
        path: file.path_bytes().unwrap_or_default().to_vec(),
        id: file.id(),
        mode: file.mode(),
    }
}

#[derive(Default)]
struct Lines {
    files: u32,
    added: u64,
    removed: u64,
}

impl Lines {
    fn add(&mut self, (added, removed): (u64, u64)) {
        self.files = self.files.saturating_add(1);
        self.added += added;
        self.removed += removed;
    }
}
