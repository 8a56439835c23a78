//! What an earlier run left in the worktree, held against the commit that is to take its place: what
//! of it would be lost, and what has to go. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use git2::Oid;
use nix::dir::Type;

use super::disk::{self, There, lossy, split};
use super::index_file::Index;
use super::objects::{Objects, SUBMODULE};
use super::uncommitted::{self, Ground};
use super::volume::Folder;
use super::{Error, tree_diff, worktree};

/// Most names in a folder that is in the way.
const MAX_NAMES: usize = 1_000_000;

/// Files by path: mode and content.
pub(super) type Files = BTreeMap<Vec<u8>, (u32, Oid)>;

/// What is there.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// As the index has it.
    pub(super) staged: Files,
    /// The same files as they are on the disk.
    pub(super) on_disk: Files,
    /// Files that no commit and no index knows, and that are to go: untracked ones, and ignored ones
    /// that are in the way.
    pub(super) unknown: Files,
    /// All that is to go before the commit's files come.
    pub(super) removals: BTreeSet<Vec<u8>>,
}

/// Every file of a commit's tree.
pub(super) fn files_of(objects: &Objects<'_>, commit: Oid) -> Result<Files, Error> {
    let mut files = Files::new();
    let tree = objects.commit(commit)?.tree;
    tree_diff::files(objects, tree, &mut |path, mode, id| {
        if files.len() <= tree_diff::MAX_FILES {
            files.insert(path.to_vec(), (mode, id));
        }
    })?;
    if files.len() > tree_diff::MAX_FILES {
        return Err(Error::checkout(format!(
            "commit {commit} has more files than a worktree could hold"
        )));
    }
    Ok(files)
}

/// Looks. Where untracked files may stay, only those count that are in the way.
pub(super) fn look(
    ground: &Ground<'_>,
    target: &Files,
    untracked_may_stay: bool,
) -> Result<Leftover, Error> {
    let index = uncommitted::read_index(ground.git).unwrap_or_else(|why| {
        tracing::warn!(%why, "every file counts as untracked");
        Index::default()
    });
    let exclude = uncommitted::info(ground.common, "exclude")?;
    let found = worktree::walk(ground.work, &index, &exclude)?;
    let mut look = Look {
        work: ground.work,
        target,
        left: Leftover::default(),
    };
    look.tracked(&index)?;
    let folders = folders_of(target);
    let mut seen = BTreeSet::new();
    for path in found.untracked.iter().filter(|path| !path.ends_with(b"/")) {
        seen.insert(path.as_slice());
        let below_file = || parents(path).any(|above| target.contains_key(above));
        let is_in_the_way =
            || target.contains_key(path) || folders.contains(path.as_slice()) || below_file();
        if !untracked_may_stay || is_in_the_way() {
            look.unknown(path)?;
        }
    }
    // What is ignored stays, unless it is in the way.
    for path in target.keys() {
        if !look.left.staged.contains_key(path) && !seen.contains(path.as_slice()) {
            look.unknown(path)?;
        }
    }
    for folder in &folders {
        if !look.left.removals.contains(*folder) {
            look.unknown(folder)?;
        }
    }
    look.is_free()?;
    Ok(look.left)
}

/// The folders that files are in.
fn folders_of(files: &Files) -> BTreeSet<&[u8]> {
    files.keys().flat_map(|path| parents(path)).collect()
}

/// The folders above a path.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(split(path).0), |above| Some(split(above).0))
        .take_while(|above| !above.is_empty())
}

struct Look<'l> {
    work: &'l Folder,
    target: &'l Files,
    left: Leftover,
}

impl Look<'_> {
    fn tracked(&mut self, index: &Index) -> Result<(), Error> {
        for entry in index.entries() {
            // Of a conflict, our own side.
            if entry.stage > 2 || entry.is_announced {
                continue;
            }
            let path = index.path(entry).to_vec();
            let staged = (entry.mode, entry.id);
            self.left.staged.insert(path.clone(), staged);
            let is_wanted = |there| self.target.get(&path) == Some(&there);
            if entry.mode == SUBMODULE {
                self.left.on_disk.insert(path.clone(), staged);
                if !is_wanted(staged) {
                    self.left.removals.insert(path);
                }
                continue;
            }
            match disk::at(self.work, &path)? {
                There::File(mode, id) => {
                    if !is_wanted((mode, id)) {
                        self.left.removals.insert(path.clone());
                    }
                    self.left.on_disk.insert(path, (mode, id));
                }
                There::Special => drop(self.left.removals.insert(path)),
                There::Nothing | There::Folder => {}
            }
        }
        Ok(())
    }

    /// A file of which only the disk knows has to go, unless it is the one that is wanted.
    fn unknown(&mut self, path: &[u8]) -> Result<(), Error> {
        match disk::at(self.work, path)? {
            There::File(mode, id) if self.target.get(path) != Some(&(mode, id)) => {
                self.left.unknown.insert(path.to_vec(), (mode, id));
                self.left.removals.insert(path.to_vec());
            }
            There::Special => drop(self.left.removals.insert(path.to_vec())),
            There::Nothing | There::Folder | There::File(..) => {}
        }
        Ok(())
    }

    /// Whether no folder stays where a file is to be.
    fn is_free(&self) -> Result<(), Error> {
        for (path, (mode, _)) in self.target {
            if *mode == SUBMODULE || !disk::is_folder(self.work, path)? {
                continue;
            }
            if let Some(stays) = self.stays(path)? {
                return Err(Error::checkout(format!(
                    "{:?} is a file in the remote's branch and a folder in the workspace, in which {:?} is ignored or a repository of its own: \
                     remove it, or use another workspace",
                    lossy(path),
                    lossy(&stays),
                )));
            }
        }
        Ok(())
    }

    fn stays(&self, path: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let why = |e| Error::file(format_args!("list {:?}", lossy(path)), &e);
        let Some(folder) = self.work.descend(path).map_err(why)?.here() else {
            return Ok(Some(path.to_vec()));
        };
        for (name, kind) in folder.list(MAX_NAMES).map_err(why)? {
            let below = [path, b"/", &name].concat();
            if kind == Some(Type::Directory) {
                if let Some(stays) = self.stays(&below)? {
                    return Ok(Some(stays));
                }
            } else if !self.left.removals.contains(&below) {
                return Ok(Some(below));
            }
        }
        Ok(None)
    }
}
