//! What is in the worktree and in no commit: staged, unstaged, untracked, in conflict, as `git status`
//! tells them apart. The index and the worktree may be hostile; nothing that they name is run.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use git2::{ObjectType, Oid};

use super::Error;
use super::attributes::{self, Attributes, LineEnds};
use super::changes;
use super::content::{Content, OnDisk};
use super::index_file::{Entry, Index, MAX_INDEX};
use super::line_ends;
use super::lines::MAX_READ;
use super::objects::{Objects, SUBMODULE, SYMLINK};
use super::tree_diff::{self, Change, Side};
use super::volume::{Folder, Found, read_all};
use super::worktree::{self, Fate};
use crate::report::{PathName, Paths, Uncommitted};

mod whole;

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
    let tree = head
        .map(|id| ground.objects.commit(id).map(|commit| commit.tree))
        .transpose()?;
    let plain = Content {
        objects: ground.objects,
        on_disk: None,
    };
    let staged = staged(ground.objects, tree, &index)?;
    let staged = changes::count(&plain, &attributes, staged)?;

    let exclude = info(ground.common, "exclude")?;
    let findings = worktree::walk(ground.work, &index, &exclude)?;
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

/// The files of the worktree, as they would be committed.
struct Disk<'d> {
    objects: &'d Objects<'d>,
    work: &'d Folder,
    /// Files whose line ends are treated, and what the index has of them.
    treated: HashMap<Vec<u8>, (LineEnds, Oid)>,
}

impl<'d> Disk<'d> {
    /// With the line ends that the attributes ask for in files that may differ.
    fn new(
        ground: &Ground<'d>,
        attributes: &Attributes<'_>,
        index: &Index,
        known: &[(usize, Fate)],
    ) -> Self {
        let mut treated = HashMap::new();
        for (at, fate) in known {
            if let Fate::Suspect(mode) = fate
                && *mode != SYMLINK
            {
                let entry = &index.entries()[*at];
                let path = index.path(entry);
                match attributes.line_ends(path) {
                    LineEnds::Keep => {}
                    ends => drop(treated.insert(path.to_vec(), (ends, entry.id))),
                }
            }
        }
        Self {
            objects: ground.objects,
            work: ground.work,
            treated,
        }
    }

    /// The name that each content would have as a blob; nothing where it can't be read.
    fn hash_all(&self, sides: &[Side]) -> Result<Vec<Option<Oid>>, Error> {
        let threads = match sides.len() {
            0..8 => 1,
            _ => thread::available_parallelism()
                .map_or(1, usize::from)
                .min(4),
        };
        let next = AtomicUsize::new(0);
        let ids = Mutex::new(vec![None; sides.len()]);
        let work = || -> Result<(), Error> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(side) = sides.get(at) else {
                    return Ok(());
                };
                let id = self.hash(side)?;
                ids.lock().unwrap_or_else(PoisonError::into_inner)[at] = id;
            }
        };
        thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            work()?;
            others.into_iter().try_for_each(|other| {
                other
                    .join()
                    .map_err(|_| Error::checkout("a thread that reads the worktree has died"))?
            })
        })?;
        Ok(ids.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn hash(&self, side: &Side) -> Result<Option<Oid>, Error> {
        let id = |done: Result<Oid, git2::Error>| {
            done.map(Some).map_err(|e| Error::local(told(side), &e))
        };
        if side.mode == SYMLINK {
            return id(Oid::hash_object(ObjectType::Blob, &self.read(side)?));
        }
        let Some(file) = self.open(side)? else {
            return Ok(None);
        };
        let size = file.metadata().map_err(|e| Error::file(told(side), &e))?;
        if size.len() > MAX_READ {
            // By its descriptor: the name could be another file's by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            return id(Oid::hash_file(ObjectType::Blob, path));
        }
        id(Oid::hash_object(
            ObjectType::Blob,
            &self.content(side, file)?,
        ))
    }

    fn folder_of<'s>(&self, side: &'s Side) -> Result<Option<(Folder, &'s [u8])>, Error> {
        let name = side.base_name();
        let folder = &side.path[..side.path.len() - name.len()];
        let folder = self.work.descend(folder);
        let folder = folder.map_err(|e| Error::file(told(side), &e))?;
        Ok(folder.here().map(|folder| (folder, name)))
    }

    /// Nothing where it is no file, or gone, or not to be read by us.
    fn open(&self, side: &Side) -> Result<Option<File>, Error> {
        let Some((folder, name)) = self.folder_of(side)? else {
            return Ok(None);
        };
        let file = folder.file(name);
        Ok(file.map_err(|e| Error::file(told(side), &e))?.here())
    }

    fn content(&self, side: &Side, file: File) -> Result<Vec<u8>, Error> {
        let bytes = read_all(file, MAX_READ).map_err(|e| Error::file(told(side), &e))?;
        let bytes = bytes.unwrap_or_default();
        let Some((ends, indexed)) = self.treated.get(&side.path) else {
            return Ok(bytes);
        };
        let keeps =
            *ends == LineEnds::Auto && (line_ends::is_binary(&bytes) || self.has_crlf(*indexed));
        Ok(if keeps {
            bytes
        } else {
            line_ends::without_crlf(bytes)
        })
    }

    /// Whether the index has the file with CRLF, which then stay.
    fn has_crlf(&self, id: Oid) -> bool {
        let is_small = self
            .objects
            .blob_size(id)
            .is_ok_and(|size| size <= MAX_READ);
        let blob = is_small.then(|| self.objects.blob(id).ok()).flatten();
        blob.is_some_and(|blob| {
            !line_ends::is_binary(blob.data()) && line_ends::has_crlf(blob.data())
        })
    }
}

impl OnDisk for Disk<'_> {
    fn read(&self, side: &Side) -> Result<Vec<u8>, Error> {
        if side.mode == SYMLINK {
            let link = self
                .folder_of(side)?
                .map(|(folder, name)| folder.link(name));
            let link = link.transpose().map_err(|e| Error::file(told(side), &e))?;
            return Ok(link.unwrap_or_default());
        }
        match self.open(side)? {
            Some(file) => self.content(side, file),
            None => Ok(Vec::new()),
        }
    }

    fn size(&self, side: &Side) -> Result<u64, Error> {
        let stat = self
            .folder_of(side)?
            .map(|(folder, name)| folder.look(name));
        let stat = stat.transpose().map_err(|e| Error::file(told(side), &e))?;
        Ok(stat.flatten().map_or(0, |stat| stat.st_size.unsigned_abs()))
    }
}

fn told(side: &Side) -> String {
    format!(
        "read {:?} in the worktree",
        String::from_utf8_lossy(&side.path)
    )
}
