//! What a process that was killed leaves in a git dir: locks, for which git and libgit2 refuse to write
//! what they lock, and drafts of objects. In our git dir we take our own away before each use; in the
//! workspace's those of the agent's git, once, before a run begins: nobody works there then.

use std::io;

use super::volume::{Folder, Found};
use super::{Error, Place};

/// Most names of a folder that are looked at.
const MAX_NAMES: usize = 100_000;
/// Deepest folder below `refs`.
const MAX_DEPTH: usize = 32;

/// Takes away what is left in our git dir, where there is one. Only one of us works on it at a time.
pub(super) fn clear_ours(place: &Place) -> Result<(), Error> {
    let clear = || -> io::Result<()> {
        let git = match Folder::open(&place.git_dir()) {
            Ok(git) => git,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        locks(&git)?;
        let Some(objects) = git.folder("objects")?.here() else {
            return Ok(());
        };
        remove(&objects, |name| name.starts_with("tmp_"))?;
        match objects.folder("pack")? {
            Found::Here(packs) => remove(&packs, |name| !name.starts_with("pack-")),
            Found::Absent | Found::Odd => Ok(()),
        }
    };
    clear().map_err(|e| Error::file("clear our git dir of what is left in it", &e))
}

/// Takes the locks away that a git of the agent's has left; the next commit would be refused for them.
pub(super) fn clear_theirs(place: &Place) -> Result<(), Error> {
    let clear = || match Folder::open(&place.worktree)?.folder(".git")? {
        Found::Here(git) => locks(&git),
        Found::Absent | Found::Odd => Ok(()),
    };
    clear().map_err(|e| Error::file("unlock the workspace's .git", &e))
}

/// No ref and no file of git's own ends with `.lock`.
fn locks(git: &Folder) -> io::Result<()> {
    let is_lock = |name: &str| name.ends_with(".lock");
    remove(git, is_lock)?;
    if let Some(info) = git.descend(b"objects/info")?.here() {
        remove(&info, is_lock)?;
    }
    match git.folder("refs")? {
        Found::Here(refs) => below(&refs, 0, &is_lock),
        Found::Absent | Found::Odd => Ok(()),
    }
}

fn below(folder: &Folder, depth: usize, is_lock: &dyn Fn(&str) -> bool) -> io::Result<()> {
    remove(folder, is_lock)?;
    for name in folder.names(MAX_NAMES)? {
        if let Found::Here(inner) = folder.folder(&name)?
            && depth < MAX_DEPTH
        {
            below(&inner, depth + 1, is_lock)?;
        }
    }
    Ok(())
}

/// Removes the files of these names; a link itself.
fn remove(folder: &Folder, which: impl Fn(&str) -> bool) -> io::Result<()> {
    let names = folder.names(MAX_NAMES)?;
    let mut those = names.iter().filter(|name| which(name));
    those.try_for_each(|name| folder.remove(name))
}
