//! The agent's own `.git`: made of plain files, without a git library, and only of copies. A hard
//! link would let the agent alter our objects.

use std::fs;
use std::io;
use std::path::Path;

use git2::Repository;

use super::record::Record;
use super::{Error, Head, Place};

/// What the agent is given.
pub(super) struct Handover<'a> {
    /// The repository that it is a checkout of.
    pub(super) record: &'a Record,
    /// Where its HEAD is to be.
    pub(super) head: &'a Head,
}

/// Makes `.git` in the worktree, whole or not at all.
pub(super) fn make_git_dir(
    place: &Place,
    repo: &Repository,
    what: &Handover<'_>,
) -> Result<(), Error> {
    let refs = packed_refs(repo, what.head).map_err(|e| Error::local("list our refs", &e))?;
    let draft = place.worktree.join(".git.runledger");
    let make = || -> io::Result<()> {
        remove(&draft)?;
        fs::create_dir(&draft)?;
        for dir in ["refs", "refs/heads", "refs/tags", "info", "hooks"] {
            fs::create_dir(draft.join(dir))?;
        }
        copy_objects(&place.git_dir().join("objects"), &draft.join("objects"))?;
        fs::write(draft.join("HEAD"), head_file(what.head))?;
        fs::write(draft.join("config"), config(what.record))?;
        fs::write(draft.join("packed-refs"), refs)?;
        // Where history was cut off: without it, git takes the commits beyond for lost.
        let shallow = place.git_dir().join("shallow");
        if shallow.is_file() {
            fs::copy(shallow, draft.join("shallow"))?;
        }
        if what.head.commit.is_some() {
            fs::copy(place.git_dir().join("index"), draft.join("index"))?;
        }
        fs::rename(&draft, place.worktree.join(".git"))
    };
    make().map_err(|e| Error::file("make the agent's .git", &e))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// Copies packs and loose objects, two levels deep, which is all that an object store has.
fn copy_objects(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for dir in fs::read_dir(from)? {
        let dir = dir?;
        if !dir.file_type()?.is_dir() {
            continue;
        }
        let target = to.join(dir.file_name());
        fs::create_dir(&target)?;
        for file in fs::read_dir(dir.path())? {
            let file = file?;
            if file.file_type()?.is_file() {
                fs::copy(file.path(), target.join(file.file_name()))?;
            }
        }
    }
    Ok(())
}

fn head_file(head: &Head) -> String {
    match (&head.branch, &head.commit) {
        (Some(branch), _) => format!("ref: refs/heads/{branch}\n"),
        (None, Some(commit)) => format!("{commit}\n"),
        (None, None) => "ref: refs/heads/main\n".to_owned(),
    }
}

/// Branches as the agent left them, else the one that HEAD is on; remote branch and tags.
fn packed_refs(repo: &Repository, head: &Head) -> Result<String, git2::Error> {
    let mut lines = String::new();
    let mut branch_is_there = false;
    for reference in repo.references()? {
        let reference = reference?;
        let (Ok(name), Some(id)) = (reference.name(), reference.target()) else {
            continue;
        };
        if let Some(branch) = name.strip_prefix("refs/agent/heads/") {
            branch_is_there |= head.branch.as_deref() == Some(branch);
            lines.push_str(&format!("{id} refs/heads/{branch}\n"));
        } else if name.starts_with("refs/remotes/origin/") || name.starts_with("refs/tags/") {
            lines.push_str(&format!("{id} {name}\n"));
        }
    }
    if let (Some(branch), Some(commit), false) = (&head.branch, &head.commit, branch_is_there) {
        lines.push_str(&format!("{commit} refs/heads/{branch}\n"));
    }
    Ok(lines)
}

fn config(record: &Record) -> String {
    let url = quoted(&record.url);
    let tracking = record.tracked.as_ref().map(|branch| {
        format!(
            "[branch {}]\n\tremote = origin\n\tmerge = {}\n",
            quoted(branch),
            quoted(&format!("refs/heads/{branch}"))
        )
    });
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\
         \tlogallrefupdates = true\n\
         [remote \"origin\"]\n\turl = {url}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n{}",
        tracking.unwrap_or_default(),
    )
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
}
