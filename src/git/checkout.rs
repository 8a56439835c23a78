//! Making a workspace ready: a fresh checkout, or what an earlier run left, of which `reuse` decides
//! what becomes. A first checkout goes through the trusted git dir; the agent is then given an ordinary `.git` of its own,
//! made of plain files and copies, so that nothing it does there reaches ours.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use git2::build::CheckoutBuilder;
use git2::{CheckoutNotificationType, Oid, Repository};

use super::error::Kind;
use super::handover::{self, Handover};
use super::record::Record;
use super::remote::Host;
use super::trusted::{self, commit_id, is_branch_name};
use super::{Access, CheckedOut, Error, Head, Place, Wanted, locks, notes, reuse, take_over};

/// See [`super::checkout`].
pub(super) fn checkout(
    place: &Place,
    wanted: &Wanted,
    access: &Access,
    cancel: &AtomicBool,
) -> Result<CheckedOut, Error> {
    let host = Host::new(&wanted.url, access, Some(cancel))?;
    if let Some(name) = wanted.reference.as_ref().filter(|n| !is_branch_name(n)) {
        return Err(Error::checkout(format!(
            "repository.branch is {name:?}, which is no name of a branch, a tag or a commit"
        )));
    }
    fs::create_dir_all(&place.trusted)
        .map_err(|e| Error::file(format_args!("make {}", place.trusted.display()), &e))?;
    locks::clear_ours(place)?;
    match Record::read(place)? {
        Some(record) if record.ready => reuse::reuse(place, &host, wanted, record, cancel),
        half_made => fresh(place, &host, wanted, cancel, half_made.is_some()),
    }
}

/// A checkout into a worktree that holds nothing, or the half of one that we made ourselves.
fn fresh(
    place: &Place,
    host: &Host<'_>,
    wanted: &Wanted,
    cancel: &AtomicBool,
    half_made: bool,
) -> Result<CheckedOut, Error> {
    if !half_made {
        must_be_empty(&place.worktree)?;
    }
    let repo = trusted::make(place)?;
    let fetched = host.fetch(&repo, wanted)?;
    let head = Head {
        branch: fetched.branch.clone(),
        commit: fetched.commit.map(|id| id.to_string()),
    };
    let mut record = Record {
        url: host.url.clone(),
        ready: false,
        tracked: fetched.branch,
        branch: None,
        commit: None,
        run: wanted.run,
        notes: Vec::new(),
        before_fetch: None,
        moving: None,
    };
    record.set_head(&head);
    // From here on the worktree is being written to: should we be killed, what is in it is ours.
    record.write(place)?;
    if half_made {
        clear(&place.worktree)?;
    }
    if let Some(commit) = fetched.commit {
        write_files(&repo, commit, &place.worktree, cancel)?;
        record.notes = notes::of(&repo, commit)?;
    }
    handover::make_git_dir(
        place,
        &repo,
        &Handover {
            record: &record,
            head: &head,
        },
    )?;
    flush(&place.worktree)?;
    record.ready = true;
    record.write(place)?;
    Ok(CheckedOut {
        branch: head.branch,
        initial_commit: head.commit,
        notes: record.notes,
    })
}

/// HEAD as an earlier run, or attempt, left it; nothing of the worktree is touched.
pub(super) fn as_left(place: &Place, record: &Record) -> Result<Head, Error> {
    let git = place.worktree.join(".git");
    match fs::symlink_metadata(&git) {
        Ok(_) => {
            let head = take_over::take_over(place)?;
            locks::clear_theirs(place)?;
            Ok(head)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => restore(place, record),
        Err(e) => Err(Error::file(format_args!("look at {}", git.display()), &e)),
    }
}

/// Gives back a `.git` that was deleted, at the last HEAD that we know of. The files stay as they
/// are: what differs shows as changes.
fn restore(place: &Place, record: &Record) -> Result<Head, Error> {
    let repo = trusted::open(place)?;
    let head = record.head();
    if let Some(commit) = &head.commit {
        let tree = repo
            .find_commit(commit_id(commit)?)
            .and_then(|commit| commit.tree())
            .map_err(|e| Error::local(format_args!("read commit {commit}"), &e))?;
        let mut index = repo
            .index()
            .map_err(|e| Error::local("open our index", &e))?;
        index
            .read_tree(&tree)
            .and_then(|()| index.write())
            .map_err(|e| Error::local("write our index", &e))?;
    }
    handover::make_git_dir(
        place,
        &repo,
        &Handover {
            record,
            head: &head,
        },
    )?;
    Ok(head)
}

fn write_files(
    repo: &Repository,
    commit: Oid,
    worktree: &Path,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let why = |e: &git2::Error| Error::local(format_args!("check out {commit}"), e);
    repo.set_workdir(worktree, false).map_err(|e| why(&e))?;
    let object = repo.find_object(commit, None).map_err(|e| why(&e))?;
    let stopped = || cancel.load(Ordering::Relaxed);
    let mut options = CheckoutBuilder::new();
    // Line endings and LFS are left as they are in the repository: git counts such files as clean.
    options
        .force()
        .disable_filters(true)
        .notify_on(CheckoutNotificationType::UPDATED)
        .notify(move |_, _, _, _, _| !stopped());
    let done = repo.checkout_tree(&object, Some(&mut options));
    match done {
        Err(_) if stopped() => Err(Error::new(Kind::Cancelled, "the checkout was cancelled")),
        Err(e) => Err(why(&e)),
        Ok(()) => Ok(()),
    }
}

/// The names in a worktree, but for what a file system itself puts there.
fn contents(worktree: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    let list = || -> io::Result<Vec<fs::DirEntry>> {
        let entries = fs::read_dir(worktree)?.collect::<io::Result<Vec<_>>>()?;
        Ok(entries
            .into_iter()
            .filter(|entry| entry.file_name() != "lost+found")
            .collect())
    };
    list().map_err(|e| Error::file(format_args!("list {}", worktree.display()), &e))
}

fn must_be_empty(worktree: &Path) -> Result<(), Error> {
    match contents(worktree)?.first() {
        None => Ok(()),
        Some(entry) => Err(Error::checkout(format!(
            "the workspace already holds files that no checkout of ours has put there ({:?} is one): use another workspace",
            entry.file_name()
        ))),
    }
}

/// Removes what is in a worktree. Symlinks are removed, never followed.
fn clear(worktree: &Path) -> Result<(), Error> {
    for entry in contents(worktree)? {
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let gone = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        gone.map_err(|e| Error::file(format_args!("remove {}", path.display()), &e))?;
    }
    Ok(())
}

/// Brings the files onto the disk before the record says that they are there.
pub(super) fn flush(worktree: &Path) -> Result<(), Error> {
    let flush = || -> io::Result<()> { Ok(nix::unistd::syncfs(fs::File::open(worktree)?)?) };
    flush().map_err(|e| Error::file(format_args!("flush {}", worktree.display()), &e))
}
