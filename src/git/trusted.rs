//! The trusted git dir: the only repository that libgit2 ever opens. Its configuration is ours, line
//! by line, and nobody but the supervisor can write to it.

use std::ffi::OsStr;
use std::fs;
use std::io;

use git2::{Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags};

use super::{Error, Place};

/// Redirects to another host are refused: the password must not follow them. Names that other file
/// systems take for `.git` are refused in trees.
const CONFIG: &str = "\
[core]
\trepositoryformatversion = 0
\tbare = true
\tfilemode = true
\tsymlinks = true
\tlogallrefupdates = false
\tprotectHFS = true
\tprotectNTFS = true
[http]
\tfollowRedirects = false
";

/// Makes an empty trusted git dir in place of whatever half-made one is there.
pub(super) fn make(place: &Place) -> Result<Repository, Error> {
    let dir = place.git_dir();
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::file(format_args!("clear {}", dir.display()), &e));
        }
        _ => {}
    }
    fs::create_dir_all(&dir)
        .map_err(|e| Error::file(format_args!("make {}", dir.display()), &e))?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).external_template(false);
    Repository::init_opts(&dir, &options).map_err(|e| Error::local("make our git dir", &e))?;
    fs::write(dir.join("config"), CONFIG).map_err(|e| Error::file("configure our git dir", &e))?;
    open(place)
}

/// Opens the trusted git dir.
pub(super) fn open(place: &Place) -> Result<Repository, Error> {
    // `open_bare` would do, but that it leaves out where history was cut off.
    let flags =
        RepositoryOpenFlags::NO_SEARCH | RepositoryOpenFlags::NO_DOTGIT | RepositoryOpenFlags::BARE;
    let ceilings: [&OsStr; 0] = [];
    Repository::open_ext(place.git_dir(), flags, ceilings)
        .map_err(|e| Error::local("open our git dir", &e))
}

/// Reads a commit's full hexadecimal name.
pub(super) fn commit_id(commit: &str) -> Result<Oid, Error> {
    parse_id(commit).ok_or_else(|| {
        Error::checkout(format!("{commit:?} is not the full SHA-1 name of a commit"))
    })
}

/// A full hexadecimal SHA-1 name, or nothing.
pub(super) fn parse_id(text: &str) -> Option<Oid> {
    let whole = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
    whole
        .then(|| Oid::from_str(text).ok())
        .flatten()
        .filter(|id| !id.is_zero())
}

/// Whether this may be the name of a branch, here or on a remote.
pub(super) fn is_branch_name(name: &str) -> bool {
    !name.starts_with('-')
        && name != "HEAD"
        && name.len() <= 255
        && git2::Reference::is_valid_name(&format!("refs/heads/{name}"))
}
