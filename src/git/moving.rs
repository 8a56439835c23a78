//! Bringing a worktree that was in use to another commit. What is lost by it is saved before; from
//! the record of the move on, it is gone on with until it is done, however often we are killed. No
//! git library enters the worktree: files are compared, removed and written one by one.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use git2::{Oid, Repository};

use super::disk::{self, There, lossy, split};
use super::error::Kind;
use super::give;
use super::leftover::{Files, Leftover, files_of};
use super::objects::{Objects, SUBMODULE, SYMLINK};
use super::record::{Moving, Record};
use super::trusted::{self, commit_id};
use super::volume::Folder;
use super::{Error, Head, Place, checkout};

/// What git leaves in mid-merge, mid-rebase and the like: they speak of a HEAD that is no more.
const UNFINISHED: &[&str] = &[
    "MERGE_HEAD",
    "MERGE_MSG",
    "MERGE_MODE",
    "AUTO_MERGE",
    "CHERRY_PICK_HEAD",
    "REVERT_HEAD",
    "REBASE_HEAD",
    "SQUASH_MSG",
    "BISECT_START",
    "BISECT_LOG",
    "BISECT_NAMES",
    "BISECT_TERMS",
    "rebase-merge",
    "rebase-apply",
    "sequencer",
];

/// What git was in the middle of in that `.git`, if anything.
pub(super) fn unfinished(git: &Folder) -> io::Result<Option<&'static str>> {
    let states = UNFINISHED.iter().filter(|name| !name.ends_with("_MSG"));
    for name in states {
        if git.look(name.as_bytes())?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Whether all paths of a commit are such that a worktree can hold them.
pub(super) fn is_possible(repo: &Repository, commit: Oid) -> Result<(), Error> {
    index_of(repo, commit).map(drop)
}

/// Writes down what will be done. From here on it is done.
pub(super) fn begin(
    place: &Place,
    record: &mut Record,
    left: &Leftover,
    moving: Moving,
) -> Result<(), Error> {
    let mut text = Vec::new();
    for path in &left.removals {
        text.extend_from_slice(path);
        text.push(0);
    }
    fs::write(place.removals(), text).map_err(|e| Error::file("list what is removed", &e))?;
    // The backup, too, is on the disk before anything is taken away.
    checkout::flush(&place.trusted)?;
    record.moving = Some(moving);
    record.write(place)
}

/// Does, or goes on with, what is written down.
pub(super) fn finish(place: &Place, record: &mut Record, cancel: &AtomicBool) -> Result<(), Error> {
    let Some(moving) = record.moving.clone() else {
        return Ok(());
    };
    let repo = trusted::open(place)?;
    let commit = commit_id(&moving.commit)?;
    let objects = Objects::of(&repo)?;
    let open = |e: io::Error| Error::file("open the workspace", &e);
    let work = Folder::open(&place.worktree).map_err(open)?;

    let removals =
        fs::read(place.removals()).map_err(|e| Error::file("read what is to be removed", &e))?;
    for path in removals.split(|&b| b == 0).filter(|path| !path.is_empty()) {
        remove(&work, path)
            .map_err(|e| Error::file(format_args!("remove {:?}", lossy(path)), &e))?;
    }
    write(&repo, &work, &files_of(&objects, commit)?, cancel)?;
    // Fills in our own index file.
    index_of(&repo, commit)?
        .write()
        .map_err(|e| Error::local("write our index", &e))?;
    point(place, &repo, &work, &moving)
        .map_err(|e| Error::file("bring the workspace's .git to its new commit", &e))?;
    checkout::flush(&place.worktree)?;

    record.set_head(&Head {
        branch: moving.branch,
        commit: Some(moving.commit),
    });
    record.run = moving.run;
    record.notes = moving.notes;
    record.moving = None;
    record.write(place)?;
    fs::remove_file(place.removals()).map_err(|e| Error::file("forget what was removed", &e))
}

/// The index of a commit; refused where a path of it leads out of the worktree or into `.git`.
fn index_of(repo: &Repository, commit: Oid) -> Result<git2::Index, Error> {
    let fill = || -> Result<git2::Index, git2::Error> {
        let mut index = repo.index()?;
        index.read_tree(&repo.find_commit(commit)?.tree()?)?;
        Ok(index)
    };
    fill().map_err(|e| Error::local(format_args!("check out {commit}"), &e))
}

/// Takes a file away, and the folders that are empty without it.
fn remove(work: &Folder, path: &[u8]) -> io::Result<()> {
    let (mut above, name) = split(path);
    let Some(folder) = work.descend(above)?.here() else {
        return Ok(());
    };
    folder.remove(name)?;
    // Of a submodule that was never initialized, an empty folder is left.
    folder.remove_empty(name)?;
    while !above.is_empty() {
        let (parent, name) = split(above);
        match work.descend(parent)?.here() {
            Some(folder) if folder.remove_empty(name)? => above = parent,
            _ => break,
        }
    }
    Ok(())
}

/// Writes the files that are not there yet as they should be.
fn write(
    repo: &Repository,
    work: &Folder,
    files: &Files,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    for (path, (mode, id)) in files {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Cancelled, "the checkout was cancelled"));
        }
        let there = disk::at(work, path)?;
        if there == There::File(*mode, *id) || (*mode, there) == (SUBMODULE, There::Folder) {
            continue;
        }
        let make = || -> io::Result<()> {
            let (folder, name) = split(path);
            let folder = work.descend_making(folder)?;
            folder.remove(name)?;
            folder.remove_empty(name)?;
            if *mode == SUBMODULE {
                return folder.make_folder(name).map(drop);
            }
            let blob = repo.find_blob(*id).map_err(io::Error::other)?;
            match *mode {
                SYMLINK => folder.create_link(name, blob.content()),
                0o100_755 => folder.create(name, 0o777, &mut blob.content()),
                _ => folder.create(name, 0o666, &mut blob.content()),
            }
        };
        make().map_err(|e| Error::file(format_args!("write {:?}", lossy(path)), &e))?;
    }
    Ok(())
}

/// Objects first, HEAD last.
fn point(place: &Place, repo: &Repository, work: &Folder, moving: &Moving) -> io::Result<()> {
    let git = work.make_folder(".git")?;
    // What was fetched is there since it was.
    if let Some(name) = &moving.backup {
        give::loose_objects(&place.git_dir().join("objects"), &git)?;
        let id = repo.refname_to_id(name).map_err(io::Error::other)?;
        give::reference(&git, name, id)?;
    }
    for name in UNFINISHED {
        git.remove_all(name)?;
    }
    let id = Oid::from_str(&moving.commit).map_err(io::Error::other)?;
    if let Some(branch) = &moving.branch {
        give::reference(&git, &format!("refs/heads/{branch}"), id)?;
    }
    let index = place.git_dir().join("index");
    git.put(b"index", 0o666, &mut fs::File::open(index)?)?;
    let head = match &moving.branch {
        Some(branch) => format!("ref: refs/heads/{branch}\n"),
        None => format!("{id}\n"),
    };
    git.put(b"HEAD", 0o666, &mut head.as_bytes())
}
