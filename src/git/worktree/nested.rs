//! A repository within the worktree: looked at from outside, as far as git does.

use git2::Oid;

use crate::git::volume::{Folder, Found, read_all};

/// Whether a folder is a repository of its own.
pub(super) fn is_repository(here: &Folder, name: &[u8]) -> std::io::Result<bool> {
    let Some(folder) = here.folder(name)?.here() else {
        return Ok(false);
    };
    if let Some(file) = folder.file(".git")?.here() {
        let text = read_all(file, 4096)?.unwrap_or_default();
        return Ok(text.starts_with(b"gitdir: "));
    }
    let Some(git) = folder.folder(".git")?.here() else {
        return Ok(false);
    };
    Ok(git.file("HEAD")?.here().is_some()
        && git.folder("objects")?.here().is_some()
        && git.folder("refs")?.here().is_some())
}

/// The commit that a nested repository is at, if that can be read without leaving it.
pub(super) fn nested_head(here: &Folder, name: &[u8]) -> std::io::Result<Option<Oid>> {
    let git = here.folder(name)?.here().map(|inner| inner.folder(".git"));
    let Some(git) = git.transpose()?.and_then(Found::here) else {
        return Ok(None);
    };
    Ok(crate::git::refs::read(&git)
        .ok()
        .and_then(|refs| refs.commit))
}
