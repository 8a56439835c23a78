//! What is in the worktree and in no commit: staged, unstaged, untracked, in conflict, as `git status`
//! tells them apart. The index and the worktree may be hostile; nothing that they name is run.

use std::thread;

use git2::Oid;

use super::attributes::{self, Attributes};
use super::changes;
use super::content::Content;
use super::index_file::{Entry, Index, MAX_INDEX};
use super::objects::{Objects, SUBMODULE};
use super::tree_diff::{self, Change, Side};
use super::volume::{Folder, Found, read_all};
use super::worktree::{self, Fate, Findings};
use super::{Error, threads};
use crate::report::{PathName, Paths, Uncommitted};

mod disk;
mod whole;

use self::disk::Disk;
pub(super) use self::whole::with_all;

/// Where to look.
pub(super) struct Ground<'g> {
    pub(super) objects: &'g Objects<'g>,
    /// What holds HEAD and index.
    pub(super) git: &'g Folder,
    /// What holds `info`.
    pub(super) common: &'g Folder,
    pub(super) work: &'g Folder,
}

impl<'g> Ground<'g> {
    /// A workspace: the agent's `.git` and its worktree, with our objects.
    pub(super) fn of_workspace(
        objects: &'g Objects<'g>,
        (git, work): &'g (Folder, Folder),
    ) -> Self {
        Self {
            objects,
            git,
            common: git,
            work,
        }
    }
}

/// Compares HEAD's tree, index and worktree.
pub(super) fn look(ground: &Ground<'_>, head: Option<Oid>) -> Result<Uncommitted, Error> {
    let index = read_index(ground.git)?;
    let attributes = attributes_of(ground, &index)?;
    let (staged, findings) = differing(ground, head, &index)?;
    let plain = Content {
        objects: ground.objects,
        on_disk: None,
    };
    let staged = changes::count(&plain, &attributes, staged)?;
    let disk = Disk::new(ground, &attributes, &index, &findings.known);
    let unstaged = unstaged(&disk, &index, &findings.known)?;
    let on_disk = Content {
        objects: ground.objects,
        on_disk: Some(&disk),
    };
    let mut unmerged = Paths::default();
    for entry in index.entries().iter().filter(|entry| entry.stage != 0) {
        let name = PathName::from(index.path(entry));
        if unmerged.paths.last() != Some(&name) {
            unmerged.paths.push(name);
        }
    }
    unmerged.count = unmerged.paths.len() as u64;
    Ok(Uncommitted {
        staged,
        unstaged: changes::count(&on_disk, &attributes, unstaged)?,
        untracked: Paths {
            count: findings.untracked.len() as u64,
            paths: findings
                .untracked
                .iter()
                .map(|path| PathName::from(path.as_slice()))
                .collect(),
        },
        unmerged,
    })
}

/// What differs between HEAD's tree and the index, and what a walk through the worktree finds: both side
/// by side, since the one waits for the disk and the other unpacks.
fn differing(
    ground: &Ground<'_>,
    head: Option<Oid>,
    index: &Index,
) -> Result<(Vec<Change>, Findings), Error> {
    let exclude = info(ground.common, "exclude")?;
    let (objects, work) = (ground.objects, ground.work);
    let staged = || {
        let tree = head.map(|id| objects.commit(id).map(|commit| commit.tree));
        staged(objects, tree.transpose()?, index)
    };
    thread::scope(|scope| {
        let staged = scope.spawn(staged);
        let findings = worktree::walk(work, index, &exclude);
        Ok((threads::joined(staged)??, findings?))
    })
}

pub(super) fn read_index(git: &Folder) -> Result<Index, Error> {
    let unreadable = |e: std::io::Error| Error::file("read the index of the repository", &e);
    let file = match git.file("index").map_err(unreadable)? {
        Found::Here(file) => file,
        Found::Absent => return Ok(Index::default()),
        Found::Odd => {
            return Err(Error::checkout(
                "the index of the repository is no file that can be read",
            ));
        }
    };
    let written = file.metadata().map_err(unreadable)?;
    let written = std::os::unix::fs::MetadataExt::mtime(&written);
    let data = read_all(file, MAX_INDEX)
        .map_err(unreadable)?
        .ok_or_else(|| Error::checkout("the index of the repository is too large"))?;
    Index::parse(&data, written)
}

/// A file of `info`; empty where there is none.
pub(super) fn info(common: &Folder, name: &str) -> Result<Vec<u8>, Error> {
    let read = || {
        let Some(info) = common.folder("info")?.here() else {
            return Ok(None);
        };
        let Some(file) = info.file(name)?.here() else {
            return Ok(None);
        };
        read_all(file, attributes::MAX_FILE)
    };
    read()
        .map(Option::unwrap_or_default)
        .map_err(|e| Error::file(format_args!("read info/{name} of the repository"), &e))
}

/// The attributes that hold in the worktree: its own files', else the index's.
pub(super) fn attributes_of<'g>(
    ground: &'g Ground<'g>,
    index: &'g Index,
) -> Result<Attributes<'g>, Error> {
    let info = info(ground.common, "attributes")?;
    let read = move |folder: &[u8]| {
        let on_disk = ground.work.descend(folder).ok().and_then(Found::here);
        let on_disk = on_disk.and_then(|folder| folder.file(".gitattributes").ok()?.here());
        if let Some(file) = on_disk {
            return read_all(file, attributes::MAX_FILE).ok().flatten();
        }
        let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
        let path = [folder, slash, b".gitattributes"].concat();
        let entries = index.entries();
        let at = entries
            .binary_search_by(|entry| index.path(entry).cmp(&path))
            .ok()?;
        let id = entries[at].id;
        if ground.objects.blob_size(id).ok()? > attributes::MAX_FILE {
            return None;
        }
        Some(ground.objects.blob(id).ok()?.data().to_vec())
    };
    Ok(Attributes::new(Box::new(read), Some(&info)))
}

/// The attributes that hold in a worktree, for comparing commits as `git diff` does there: it does not
/// look at the index then.
pub(super) fn with_attributes<T>(
    ground: &Ground<'_>,
    then: impl FnOnce(&Attributes<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    then(&attributes_of(ground, &Index::default())?)
}

fn side(index: &Index, entry: &Entry) -> Side {
    Side {
        path: index.path(entry).to_vec(),
        mode: entry.mode,
        id: entry.id,
        is_text: None,
        on_disk: false,
    }
}

/// What differs between HEAD's tree and the index. Files in conflict are told elsewhere.
fn staged(objects: &Objects<'_>, tree: Option<Oid>, index: &Index) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    let mut at = 0;
    let entries = index.entries();
    let added = |at: usize, changes: &mut Vec<Change>| {
        let entry = &entries[at];
        if entry.stage == 0 && !entry.is_announced {
            changes.push(Change {
                old: None,
                new: Some(side(index, entry)),
            });
        }
    };
    if let Some(tree) = tree {
        tree_diff::files(objects, tree, &mut |path, mode, id| {
            while at < entries.len() && index.path(&entries[at]) < path {
                added(at, &mut changes);
                at += 1;
            }
            let old = || {
                Some(Side {
                    path: path.to_vec(),
                    mode,
                    id,
                    is_text: None,
                    on_disk: false,
                })
            };
            match entries.get(at).filter(|entry| index.path(entry) == path) {
                None => changes.push(Change {
                    old: old(),
                    new: None,
                }),
                Some(entry) => {
                    if entry.stage == 0 && entry.is_announced {
                        changes.push(Change {
                            old: old(),
                            new: None,
                        });
                    } else if entry.stage == 0 && (entry.mode, entry.id) != (mode, id) {
                        changes.push(Change {
                            old: old(),
                            new: Some(side(index, entry)),
                        });
                    }
                    while at < entries.len() && index.path(&entries[at]) == path {
                        at += 1;
                    }
                }
            }
        })?;
    }
    for at in at..entries.len() {
        added(at, &mut changes);
    }
    Ok(changes)
}

/// What differs between the index and the worktree.
fn unstaged(disk: &Disk<'_>, index: &Index, known: &[(usize, Fate)]) -> Result<Vec<Change>, Error> {
    let on_disk = |at: usize, mode: u32| {
        let mut side = side(index, &index.entries()[at]);
        (side.mode, side.on_disk) = (mode, true);
        side
    };
    let suspects: Vec<Side> = known
        .iter()
        .filter_map(|(at, fate)| match fate {
            Fate::Suspect(mode) => Some(on_disk(*at, *mode)),
            _ => None,
        })
        .collect();
    let mut ids = disk.hash_all(&suspects)?.into_iter();
    let mut changes = Vec::new();
    for (at, fate) in known {
        let entry = &index.entries()[*at];
        let old = side(index, entry);
        let new = match fate {
            Fate::Gone => None,
            Fate::Suspect(mode) => {
                let mut new = on_disk(*at, *mode);
                let Some(id) = ids.next() else { continue };
                if (id, *mode) == (Some(old.id), old.mode) && !entry.is_announced {
                    continue;
                }
                new.id = id.unwrap_or(Oid::ZERO_SHA1);
                Some(new)
            }
            // Never opened; it stands as a file in which nothing is to be read.
            Fate::Special => Some(Side {
                id: Oid::ZERO_SHA1,
                ..on_disk(*at, 0o100_644)
            }),
            Fate::Repository(id) => Some(Side {
                mode: SUBMODULE,
                id: *id,
                ..old.clone()
            }),
        };
        let is_new = entry.is_announced && new.is_some();
        changes.push(Change {
            old: (!is_new).then_some(old),
            new,
        });
    }
    Ok(changes)
}
