//! Which files differ between two trees, as `git diff-tree -r` says. Folders of the same name are not
//! entered, so that the cost is that of what differs.

use git2::Oid;

use super::Error;
use super::objects::{Entry, Objects, SUBMODULE, SYMLINK};

/// Deepest folder. A path of the worktree can't be deeper.
const MAX_DEPTH: usize = 1024;
/// Most files that may differ: a few kilobytes of trees can name more files than there are atoms.
pub(super) const MAX_FILES: usize = 2_000_000;

/// One side of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Side {
    pub(super) path: Vec<u8>,
    pub(super) mode: u32,
    /// Of its content, as it is or would be in the repository.
    pub(super) id: Oid,
    /// What the attribute `diff` says, if anything.
    pub(super) is_text: Option<bool>,
    /// Its content is in the worktree and need not be in the repository.
    pub(super) on_disk: bool,
}

impl Side {
    pub(super) fn is_regular(&self) -> bool {
        self.mode != SYMLINK && self.mode != SUBMODULE
    }

    pub(super) fn base_name(&self) -> &[u8] {
        self.path.rsplit(|&b| b == b'/').next().unwrap_or_default()
    }
}

/// A file that differs; at least one side is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) old: Option<Side>,
    pub(super) new: Option<Side>,
}

/// The files that differ, in git's order. No tree is an empty one.
pub(super) fn diff(
    objects: &Objects<'_>,
    old: Option<Oid>,
    new: Option<Oid>,
) -> Result<Vec<Change>, Error> {
    let mut walk = Walk {
        objects,
        changes: Vec::new(),
        path: Vec::new(),
        depth: 0,
        folders: 0,
    };
    if old != new {
        walk.trees(old, new)?;
    }
    Ok(walk.changes)
}

/// Every file of a tree, in the order of whole paths.
pub(super) fn files(
    objects: &Objects<'_>,
    tree: Oid,
    take: &mut dyn FnMut(&[u8], u32, Oid),
) -> Result<(), Error> {
    let mut folders = 0;
    enter(objects, tree, &mut Vec::new(), (0, &mut folders), take)
}

fn enter(
    objects: &Objects<'_>,
    tree: Oid,
    path: &mut Vec<u8>,
    (depth, folders): (usize, &mut usize),
    take: &mut dyn FnMut(&[u8], u32, Oid),
) -> Result<(), Error> {
    *folders += 1;
    if depth == MAX_DEPTH || *folders > MAX_FILES {
        return Err(Error::checkout(
            "a commit has more folders than a worktree could hold",
        ));
    }
    for entry in objects.tree(tree)?.entries()? {
        let length = path.len();
        path.extend_from_slice(entry.name);
        if entry.is_folder() {
            path.push(b'/');
            enter(objects, entry.id(), path, (depth + 1, folders), take)?;
        } else {
            take(path, entry.mode, entry.id());
        }
        path.truncate(length);
    }
    Ok(())
}

struct Walk<'a, 'r> {
    objects: &'a Objects<'r>,
    changes: Vec<Change>,
    path: Vec<u8>,
    depth: usize,
    folders: usize,
}

impl Walk<'_, '_> {
    fn trees(&mut self, old: Option<Oid>, new: Option<Oid>) -> Result<(), Error> {
        if self.depth == MAX_DEPTH {
            return Err(Error::checkout(format!(
                "a commit has folders that are nested deeper than {MAX_DEPTH}"
            )));
        }
        self.depth += 1;
        self.folders += 1;
        self.is_bearable(self.folders)?;
        let old = old.map(|id| self.objects.tree(id)).transpose()?;
        let new = new.map(|id| self.objects.tree(id)).transpose()?;
        let old = old.as_ref().map(|tree| tree.entries()).transpose()?;
        let new = new.as_ref().map(|tree| tree.entries()).transpose()?;
        let mut old = old.unwrap_or_default().into_iter().peekable();
        let mut new = new.unwrap_or_default().into_iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(old), Some(new)) => old.order(new),
            };
            let old = old.next_if(|_| order.is_le());
            let new = new.next_if(|_| order.is_ge());
            if old != new {
                self.entries(old, new)?;
            }
        }
        self.depth -= 1;
        Ok(())
    }

    /// Two entries of one name and kind, or one alone.
    fn entries(&mut self, old: Option<Entry<'_>>, new: Option<Entry<'_>>) -> Result<(), Error> {
        let length = self.path.len();
        let name = old.or(new).map(|entry| entry.name).unwrap_or_default();
        self.path.extend_from_slice(name);
        if old.or(new).is_some_and(|entry| entry.is_folder()) {
            self.path.push(b'/');
            self.trees(old.map(|entry| entry.id()), new.map(|entry| entry.id()))?;
        } else {
            let side = |entry: Entry<'_>| Side {
                path: self.path.clone(),
                mode: entry.mode,
                id: entry.id(),
                is_text: None,
                on_disk: false,
            };
            let change = Change {
                old: old.map(side),
                new: new.map(side),
            };
            self.changes.push(change);
            self.is_bearable(self.changes.len())?;
        }
        self.path.truncate(length);
        Ok(())
    }

    fn is_bearable(&self, files: usize) -> Result<(), Error> {
        if files > MAX_FILES {
            return Err(Error::checkout(format!(
                "more than {MAX_FILES} files differ between the commits"
            )));
        }
        Ok(())
    }
}
