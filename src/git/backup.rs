//! What a reset would lose, kept as a commit under a ref of ours: HEAD, index, files and untracked
//! files in the form of `git stash`, so that `git stash apply` brings it back. A clean worktree's
//! commits are kept as they are.

use git2::{ErrorCode, IndexEntry, IndexTime, Odb, Oid, Repository, Signature};
use uuid::Uuid;

use super::leftover::{Files, Leftover, files_of};
use super::objects::{Objects, SUBMODULE};
use super::volume::Folder;
use super::{Error, disk};

/// What is to be kept.
pub(super) struct Kept<'k> {
    /// HEAD's commit.
    pub(super) head: Option<Oid>,
    /// Commits that the remote does not have.
    pub(super) lost: Vec<Oid>,
    /// The worktree.
    pub(super) left: &'k Leftover,
    /// Whom it is kept from, for a person.
    pub(super) before: Uuid,
}

/// The ref under which it is kept; one for a run.
pub(super) fn reference(run: Uuid) -> String {
    format!("refs/runledger/backup/{run}")
}

/// Keeps it; nothing where there is nothing to lose. Done twice, it is one backup.
pub(super) fn keep(
    repo: &Repository,
    objects: &Objects<'_>,
    work: &Folder,
    kept: &Kept<'_>,
) -> Result<Option<String>, Error> {
    let why = |e: git2::Error| Error::local("save what a reset would lose", &e);
    let (left, head) = (kept.left, kept.head);
    let committed = head.map(|id| files_of(objects, id)).transpose()?;
    let is_clean = left.staged == committed.unwrap_or_default()
        && left.on_disk == left.staged
        && left.unknown.is_empty();
    let odb = repo.odb().map_err(why)?;
    let tip = if is_clean {
        match kept.lost.as_slice() {
            [] => return Ok(None),
            [one] => *one,
            all => {
                let tree = tree(repo, &odb, &left.staged).map_err(why)?;
                commit(repo, kept, "commits", tree, all).map_err(why)?
            }
        }
    } else {
        for (path, (mode, id)) in left.on_disk.iter().chain(&left.unknown) {
            if *mode != SUBMODULE {
                disk::keep(&odb, work, path, *id)?;
            }
        }
        whole(repo, &odb, kept).map_err(why)?
    };
    let name = reference(kept.before);
    repo.reference(&name, tip, true, "").map_err(why)?;
    Ok(Some(name))
}

fn whole(repo: &Repository, odb: &Odb<'_>, kept: &Kept<'_>) -> Result<Oid, git2::Error> {
    let left = kept.left;
    let others: Vec<Oid> = (kept.lost.iter().copied())
        .filter(|id| Some(*id) != kept.head)
        .collect();
    let Some(head) = kept.head else {
        // Without a commit there is no stash.
        let mut all = left.on_disk.clone();
        all.extend(left.unknown.clone());
        return commit(repo, kept, "files", tree(repo, odb, &all)?, &others);
    };
    let staged = commit(repo, kept, "index", tree(repo, odb, &left.staged)?, &[head])?;
    let mut parents = vec![head, staged];
    // In its place, `git stash` would take another commit for the untracked files.
    if !left.unknown.is_empty() || !others.is_empty() {
        let unknown = tree(repo, odb, &left.unknown)?;
        parents.push(commit(repo, kept, "untracked files", unknown, &[])?);
    }
    parents.extend(others);
    let files = tree(repo, odb, &left.on_disk)?;
    commit(repo, kept, "files", files, &parents)
}

fn commit(
    repo: &Repository,
    kept: &Kept<'_>,
    what: &str,
    tree: Oid,
    parents: &[Oid],
) -> Result<Oid, git2::Error> {
    let by = Signature::now("Runledger", "noreply@runledger.dev")?;
    let message = format!("Saved before run {}: {what}\n", kept.before);
    let parents = (parents.iter().map(|id| repo.find_commit(*id)))
        .collect::<Result<Vec<_>, git2::Error>>()?;
    let parents: Vec<_> = parents.iter().collect();
    repo.commit(None, &by, &by, &message, &repo.find_tree(tree)?, &parents)
}

/// A tree of these files. What an index claims and nobody has is lost already.
fn tree(repo: &Repository, odb: &Odb<'_>, files: &Files) -> Result<Oid, git2::Error> {
    let mut index = git2::Index::new()?;
    for (path, (mode, id)) in files {
        if *mode != SUBMODULE && !odb.exists(*id) {
            tracing::warn!(
                path = disk::lossy(path),
                "content that is not there is not saved"
            );
            continue;
        }
        if let Err(why) = index.add(&entry(path, *mode, *id)) {
            tracing::warn!(path = disk::lossy(path), %why, "a path that git does not take is not saved");
        }
    }
    match index.write_tree_to(repo) {
        Err(e) if e.code() == ErrorCode::Unmerged => Err(git2::Error::from_str(
            "the index holds a path both as file and folder",
        )),
        done => done,
    }
}

fn entry(path: &[u8], mode: u32, id: Oid) -> IndexEntry {
    IndexEntry {
        ctime: IndexTime::new(0, 0),
        mtime: IndexTime::new(0, 0),
        dev: 0,
        ino: 0,
        mode,
        uid: 0,
        gid: 0,
        file_size: 0,
        id,
        flags: 0,
        flags_extended: 0,
        path: path.to_vec(),
    }
}
