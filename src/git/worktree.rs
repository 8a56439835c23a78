//! Walking a worktree beside its index: which files may differ, which nobody knows. Each folder is
//! opened step by step and never through a link; nothing but names and their stat is read here. Many
//! folders are walked side by side.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering as Memory};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use git2::Oid;
use nix::dir::Type;
use nix::sys::stat::{FileStat, SFlag};

use super::ignore::{self, Rules};
use super::index_file::{Entry, Index};
use super::objects::{SUBMODULE, SYMLINK};
use super::volume::{Folder, Found, read_all};
use super::{Error, threads};

mod nested;

use self::nested::{is_repository, nested_head};

/// Most files and folders that are looked at.
const MAX_NAMES: usize = 5_000_000;
/// Deepest folder.
const MAX_DEPTH: usize = 1024;

/// What became of a file that the index knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Gone,
    /// Its stat is not the index's: it is there with that mode, and its content has to be compared.
    Suspect(u32),
    /// It is of a kind that git can't hold: a FIFO, a socket, a device.
    Special,
    /// A nested repository, at that commit; it was something else, or at another commit.
    Repository(Oid),
}

/// What a walk has found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Numbers of index entries and their fate; those that are as the index says are left out.
    pub(super) known: Vec<(usize, Fate)>,
    /// Paths that the index does not know and no rule ignores.
    pub(super) untracked: Vec<Vec<u8>>,
}

/// Walks the whole worktree. `exclude` is the text of `info/exclude`.
pub(super) fn walk(root: &Folder, index: &Index, exclude: &[u8]) -> Result<Findings, Error> {
    let rules = Rules::new(None, 0, exclude);
    let walk = Walk {
        root,
        index,
        names: AtomicUsize::new(0),
        tasks: Mutex::new(Tasks {
            waiting: vec![Task {
                folder: Vec::new(),
                known: (0, index.entries().len()),
                rules: Some(rules),
            }],
            busy: 0,
            failed: false,
        }),
        news: Condvar::new(),
    };
    let mut all = Findings::default();
    thread::scope(|scope| -> Result<(), Error> {
        let others: Vec<_> = (1..threads::worth(index.entries().len()))
            .map(|_| scope.spawn(|| walk.work()))
            .collect();
        let mut found = vec![walk.work()];
        for other in others {
            found.push(threads::joined(other)?);
        }
        for found in found {
            let found = found?;
            all.known.extend(found.known);
            all.untracked.extend(found.untracked);
        }
        Ok(())
    })?;
    all.known.sort_unstable_by_key(|(at, _)| *at);
    all.untracked.sort_unstable();
    Ok(all)
}

/// A folder to look at.
struct Task {
    /// Its path with a slash at the end; empty for the root.
    folder: Vec<u8>,
    /// The entries below it.
    known: (usize, usize),
    /// Nothing where all that is untracked in it is ignored.
    rules: Option<Arc<Rules>>,
}

struct Tasks {
    waiting: Vec<Task>,
    busy: usize,
    failed: bool,
}

struct Walk<'w> {
    root: &'w Folder,
    index: &'w Index,
    names: AtomicUsize,
    tasks: Mutex<Tasks>,
    news: Condvar,
}

impl Walk<'_> {
    fn work(&self) -> Result<Findings, Error> {
        let mut findings = Findings::default();
        while let Some(task) = self.next() {
            let done = self.folder(&task, &mut findings).map_err(|why| match why {
                Trouble::Ours(error) => error,
                Trouble::Io(error) => {
                    let name = String::from_utf8_lossy(&task.folder);
                    Error::file(format_args!("read {name:?} in the worktree"), &error)
                }
            });
            let mut tasks = self.lock();
            tasks.busy -= 1;
            tasks.failed |= done.is_err();
            if tasks.failed || tasks.busy == 0 {
                self.news.notify_all();
            }
            drop(tasks);
            done?;
        }
        Ok(findings)
    }

    /// The next folder; nothing when there will be none any more.
    fn next(&self) -> Option<Task> {
        let mut tasks = self.lock();
        loop {
            if tasks.failed {
                return None;
            }
            if let Some(task) = tasks.waiting.pop() {
                tasks.busy += 1;
                return Some(task);
            }
            if tasks.busy == 0 {
                return None;
            }
            tasks = self
                .news
                .wait(tasks)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, task: Task) -> Result<(), Error> {
        if task.folder.iter().filter(|&&b| b == b'/').count() > MAX_DEPTH {
            return Err(Error::checkout(format!(
                "the worktree has folders that are nested deeper than {MAX_DEPTH}"
            )));
        }
        self.lock().waiting.push(task);
        self.news.notify_one();
        Ok(())
    }

    fn folder(&self, task: &Task, findings: &mut Findings) -> Result<(), Trouble> {
        let Found::Here(here) = self.root.descend(&task.folder)? else {
            let (from, to) = task.known;
            let gone = (from..to).filter(|at| self.can_be_gone(*at));
            findings.known.extend(gone.map(|at| (at, Fate::Gone)));
            return Ok(());
        };
        let names = here.list(MAX_NAMES)?;
        if self.names.fetch_add(names.len(), Memory::Relaxed) > MAX_NAMES {
            return Err(Trouble::Ours(Error::checkout(format!(
                "the worktree holds more than {MAX_NAMES} files"
            ))));
        }
        let mut rules = task.rules.clone();
        if names.iter().any(|(name, _)| name == b".gitignore") {
            rules = rules
                .map(|rules| own_rules(&here, task, rules))
                .transpose()?;
        }
        let place = Here {
            folder: &here,
            path: &task.folder,
            rules: rules.as_ref(),
        };
        let known = self.known(&place, task.known, findings)?;
        for (name, kind) in &names {
            if !known.contains(name.as_slice()) && name != b".git" {
                self.unknown(&place, name, *kind, findings)?;
            }
        }
        Ok(())
    }

    /// Files, and folders with files, that the index knows here: their names.
    fn known(
        &self,
        place: &Here<'_>,
        (mut at, to): (usize, usize),
        findings: &mut Findings,
    ) -> Result<HashSet<&[u8]>, Trouble> {
        let skip = place.path.len();
        let mut known = HashSet::new();
        while at < to {
            let below = &self.index.path(&self.index.entries()[at])[skip..];
            let Some(end) = below.iter().position(|&b| b == b'/') else {
                known.insert(below);
                if let Some(fate) = self.fate(place.folder, below, at)? {
                    findings.known.push((at, fate));
                    if fate == Fate::Gone && place.has_folder(below)? {
                        self.unknown(place, below, None, findings)?;
                    }
                }
                at += 1;
                continue;
            };
            let name = &below[..end];
            known.insert(name);
            let next = self.end_of(at, to, &below[..=end], skip);
            let path = [place.path, name].concat();
            if !place.has_folder(name)? {
                self.unknown(place, name, None, findings)?;
            }
            self.add(Task {
                folder: [path.as_slice(), b"/"].concat(),
                known: (at, next),
                rules: place
                    .rules
                    .filter(|rules| !rules.ignore(&path, true))
                    .cloned(),
            })?;
            at = next;
        }
        Ok(known)
    }

    /// Where the entries below a folder end: it is the first whose path goes on otherwise.
    fn end_of(&self, from: usize, to: usize, name: &[u8], skip: usize) -> usize {
        let entries = &self.index.entries()[from..to];
        from + entries.partition_point(|entry| self.index.path(entry)[skip..].starts_with(name))
    }

    /// A name that the index does not know.
    fn unknown(
        &self,
        place: &Here<'_>,
        name: &[u8],
        kind: Option<Type>,
        findings: &mut Findings,
    ) -> Result<(), Trouble> {
        let Some(rules) = place.rules else {
            return Ok(());
        };
        let kind = match kind {
            Some(kind) => Some(kind),
            None => place.folder.look(name)?.and_then(|stat| kind_of(&stat)),
        };
        let mut path = [place.path, name].concat();
        match kind {
            Some(Type::File | Type::Symlink) if !rules.ignore(&path, false) => {
                findings.untracked.push(path);
            }
            Some(Type::Directory) if !rules.ignore(&path, true) => {
                path.push(b'/');
                if is_repository(place.folder, name)? {
                    findings.untracked.push(path);
                } else {
                    self.add(Task {
                        folder: path,
                        known: (0, 0),
                        rules: Some(rules.clone()),
                    })?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether the worktree is looked at for an entry at all.
    fn can_be_gone(&self, at: usize) -> bool {
        let entry = &self.index.entries()[at];
        entry.stage == 0 && !entry.is_exempt
    }

    fn fate(&self, here: &Folder, name: &[u8], at: usize) -> std::io::Result<Option<Fate>> {
        let entry = &self.index.entries()[at];
        if !self.can_be_gone(at) {
            return Ok(None);
        }
        let Some(stat) = here.look(name)? else {
            return Ok(Some(Fate::Gone));
        };
        if is(&stat, SFlag::S_IFDIR) {
            let commit = match is_repository(here, name)? {
                true => nested_head(here, name)?,
                false => None,
            };
            return Ok(match (entry.mode == SUBMODULE, commit) {
                // One that was never initialized is as it should be.
                (true, None) => None,
                (true, Some(id)) if id == entry.id => None,
                (_, Some(id)) => Some(Fate::Repository(id)),
                (false, None) => Some(Fate::Gone),
            });
        }
        let mode = if is(&stat, SFlag::S_IFLNK) {
            SYMLINK
        } else if !is(&stat, SFlag::S_IFREG) {
            return Ok(Some(Fate::Special));
        } else if stat.st_mode & 0o100 != 0 {
            0o100_755
        } else {
            0o100_644
        };
        let as_known = mode == entry.mode && is_as_known(entry, &stat, self.index.written);
        Ok((!as_known).then_some(Fate::Suspect(mode)))
    }
}

/// The folder that is being looked at.
struct Here<'h> {
    folder: &'h Folder,
    /// With a slash at the end.
    path: &'h [u8],
    rules: Option<&'h Arc<Rules>>,
}

impl Here<'_> {
    fn has_folder(&self, name: &[u8]) -> std::io::Result<bool> {
        let stat = self.folder.look(name)?;
        Ok(stat.is_some_and(|stat| is(&stat, SFlag::S_IFDIR)))
    }
}

/// Whose fault it is.
enum Trouble {
    Io(std::io::Error),
    Ours(Error),
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// The rules of a folder on top of those above it.
fn own_rules(here: &Folder, task: &Task, above: Arc<Rules>) -> std::io::Result<Arc<Rules>> {
    let Some(file) = here.file(".gitignore")?.here() else {
        return Ok(above);
    };
    let text = read_all(file, ignore::MAX_FILE)?.unwrap_or_default();
    Ok(Rules::new(Some(above), task.folder.len(), &text))
}

/// Whether the index's stat is the file's, and can be believed: a file that was modified in the second
/// in which the index was written, or later, may have been so after it was looked at.
fn is_as_known(entry: &Entry, stat: &FileStat, index_written: i64) -> bool {
    let time = |(seconds, nanos): (u32, u32), is: i64, is_nanos: i64| {
        seconds == is as u32 && (nanos == 0 || nanos == is_nanos as u32)
    };
    entry.size == stat.st_size as u32
        && entry.size != 0
        && time(entry.modified, stat.st_mtime, stat.st_mtime_nsec)
        && time(entry.changed, stat.st_ctime, stat.st_ctime_nsec)
        && entry.inode == stat.st_ino as u32
        && entry.owner == (stat.st_uid, stat.st_gid)
        && i64::from(entry.modified.0).cmp(&index_written) == Ordering::Less
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn kind_of(stat: &FileStat) -> Option<Type> {
    if is(stat, SFlag::S_IFREG) {
        Some(Type::File)
    } else if is(stat, SFlag::S_IFLNK) {
        Some(Type::Symlink)
    } else if is(stat, SFlag::S_IFDIR) {
        Some(Type::Directory)
    } else {
        None
    }
}
