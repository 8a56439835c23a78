//! A whole [`Report`]: commits, files and lines between two commits, and what is not committed.

use git2::Oid;
use url::Url;

use super::attributes::{self, Attributes};
use super::content::Content;
use super::history::{self, Boundary};
use super::objects::Objects;
use super::record::shown;
use super::trusted::{self, commit_id};
use super::uncommitted::{self, Ground};
use super::volume::{Folder, Found};
use super::{Error, Head, Place, changes, tree_diff};
use crate::report::{CommitLine, LEDGER_BYTES, Lines, Report};
use crate::wire::Changes;

/// See [`super::changes`].
pub(super) fn of_workspace(
    place: &Place,
    url: &Url,
    initial: Option<&str>,
    head: &Head,
) -> Result<Changes, Error> {
    let initial = initial.map(commit_id).transpose()?;
    let last = head.commit.as_deref().map(commit_id).transpose()?;
    let repo = trusted::open(place)?;
    let objects = Objects::of(&repo)?;
    // What a fetch has cut off is not there, and what is there counts.
    let mut report = between(&objects, initial, last.or(initial), &Boundary::new(), None)?;
    report.repository = Some(shown(url));
    report.branch.clone_from(&head.branch);
    match folders(place) {
        Ok(folders) => {
            let ground = Ground::of_workspace(&objects, &folders);
            add_uncommitted(&mut report, Some(&ground), last);
        }
        Err(why) => report.uncommitted_unknown = Some(why.to_string()),
    }
    Ok(wire_changes(report))
}

/// The agent's `.git` and its worktree.
pub(super) fn folders(place: &Place) -> Result<(Folder, Folder), Error> {
    let unreadable = |e: std::io::Error| Error::file("open the workspace", &e);
    let work = Folder::open(&place.worktree).map_err(unreadable)?;
    match work.folder(".git").map_err(unreadable)? {
        Found::Here(git) => Ok((git, work)),
        Found::Absent | Found::Odd => Err(Error::checkout("the workspace has no .git")),
    }
}

/// Looks at the worktree, if there is one. That it can't be read is told, and no error: what is
/// committed counts all the same.
pub(super) fn add_uncommitted(report: &mut Report, ground: Option<&Ground<'_>>, head: Option<Oid>) {
    match ground.map(|ground| uncommitted::look(ground, head)) {
        Some(Ok(uncommitted)) => report.uncommitted = Some(uncommitted),
        Some(Err(why)) => report.uncommitted_unknown = Some(why.to_string()),
        None => {}
    }
}

fn wire_changes(report: Report) -> Changes {
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Changes {
        repository: report.repository.clone().unwrap_or_default(),
        branch: report.branch.clone().unwrap_or_else(|| "HEAD".to_owned()),
        initial_commit: report.initial_commit.clone().unwrap_or_default(),
        final_commit: report.final_commit.clone().unwrap_or_default(),
        commits: count(report.commit_count),
        files: count(report.committed.files_changed),
        added: report.committed.added_lines,
        removed: report.committed.removed_lines,
        pushed: None,
        undelivered: None,
        stats: Some(Box::new(report.cut_to(LEDGER_BYTES))),
    }
}

/// What changed between two commits. Attributes are those of the later one, unless others are given.
pub(super) fn between(
    objects: &Objects<'_>,
    initial: Option<Oid>,
    last: Option<Oid>,
    boundary: &Boundary,
    attributes: Option<&Attributes<'_>>,
) -> Result<Report, Error> {
    let mut report = Report {
        initial_commit: initial.map(|id| id.to_string()),
        final_commit: last.map(|id| id.to_string()),
        ..Report::default()
    };
    let Some(last) = last.filter(|last| Some(*last) != initial) else {
        return Ok(report);
    };
    let history = history::between(objects, initial, last, boundary)?;
    report.history_rewritten = history.rewritten;
    report.merge_base = history.merge_base.map(|id| id.to_string());
    report.shallow = history.shallow;
    report.commit_count = history.commits.len() as u64;
    for id in history.commits {
        report.commits.push(commit_line(objects, id)?);
    }
    let old = initial.map(|id| objects.commit(id)).transpose()?;
    let (old, new) = (old.map(|commit| commit.tree), objects.commit(last)?.tree);
    report.committed = match attributes {
        Some(attributes) => trees(objects, old, new, attributes)?,
        None => trees(objects, old, new, &in_tree(objects, new))?,
    };
    Ok(report)
}

fn trees(
    objects: &Objects<'_>,
    old: Option<Oid>,
    new: Oid,
    attributes: &Attributes<'_>,
) -> Result<Lines, Error> {
    let content = Content {
        objects,
        on_disk: None,
    };
    let differ = tree_diff::diff(objects, old, Some(new))?;
    changes::count(&content, attributes, differ)
}

/// The attributes that a tree holds.
pub(super) fn in_tree<'o>(objects: &'o Objects<'o>, tree: Oid) -> Attributes<'o> {
    let read = move |folder: &[u8]| {
        let mut path = folder.to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(b".gitattributes");
        let mut at = tree;
        let mut steps = path.split(|&b| b == b'/').peekable();
        while let Some(step) = steps.next() {
            let tree = objects.tree(at).ok()?;
            let entries = tree.entries().ok()?;
            let entry = entries.iter().find(|entry| entry.name == step)?;
            if entry.is_folder() != steps.peek().is_some() {
                return None;
            }
            at = entry.id();
        }
        if objects.blob_size(at).ok()? > attributes::MAX_FILE {
            return None;
        }
        Some(objects.blob(at).ok()?.data().to_vec())
    };
    Attributes::new(Box::new(read), None)
}

fn commit_line(objects: &Objects<'_>, id: Oid) -> Result<CommitLine, Error> {
    let commit = objects.commit(id)?;
    Ok(CommitLine {
        hash: id.to_string(),
        author: commit.author,
        subject: commit.subject,
        time: jiff::Timestamp::from_second(commit.authored)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
            .to_string(),
    })
}
