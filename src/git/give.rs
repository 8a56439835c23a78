//! Bringing what came by a later fetch into the agent's `.git`, file by file: objects, then refs, so
//! that no ref there names what is missing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use git2::{Oid, Repository};

use super::refs::Named;
use super::trusted::parse_id;
use super::volume::{Folder, Found};

/// The names of our packs.
pub(super) fn packs(ours: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in fs::read_dir(ours.join("pack"))? {
        let name = file?.file_name().into_string().unwrap_or_default();
        names.extend(name.strip_suffix(".pack").map(str::to_owned));
    }
    Ok(names)
}

/// Copies packs of ours, but for those that the agent's `.git` was given before.
pub(super) fn objects(ours: &Path, git: &Folder, but: &[String]) -> io::Result<()> {
    let folder = git.make_folder("objects")?.make_folder("pack")?;
    for name in packs(ours)? {
        if but.contains(&name) {
            continue;
        }
        // The index last: git looks for a pack by it.
        for extension in ["pack", "idx"] {
            let file = format!("{name}.{extension}");
            let from = ours.join("pack").join(&file);
            if from.is_file() && matches!(folder.file(&file)?, Found::Absent) {
                folder.put(file.as_bytes(), 0o444, &mut File::open(from)?)?;
            }
        }
    }
    Ok(())
}

/// Copies loose objects of ours whose files are not there.
pub(super) fn loose_objects(ours: &Path, git: &Folder) -> io::Result<()> {
    let theirs = git.make_folder("objects")?;
    for byte in 0..=u8::MAX {
        let prefix = format!("{byte:02x}");
        let names = match fs::read_dir(ours.join(&prefix)) {
            Ok(names) => names,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let folder = theirs.make_folder(&prefix)?;
        for file in names {
            let file = file?;
            let name = file.file_name().into_string().unwrap_or_default();
            if parse_id(&format!("{prefix}{name}")).is_some()
                && matches!(folder.file(&name)?, Found::Absent)
            {
                folder.put(name.as_bytes(), 0o444, &mut File::open(file.path())?)?;
            }
        }
    }
    Ok(())
}

/// Points a ref of the agent's at a commit whose objects are there.
pub(super) fn reference(git: &Folder, name: &str, id: Oid) -> io::Result<()> {
    let (folder, last) = name.rsplit_once('/').unwrap_or(("", name));
    let folder = git.descend_making(folder.as_bytes())?;
    // A git that was killed may have left it.
    folder.remove(format!("{last}.lock"))?;
    folder.put(last.as_bytes(), 0o666, &mut format!("{id}\n").as_bytes())
}

/// Gives tags of ours that are not there.
pub(super) fn tags(
    repo: &Repository,
    git: &Folder,
    theirs: &Named<'_>,
    before: &HashSet<String>,
) -> io::Result<()> {
    for (name, id) in tags_of(repo).map_err(io::Error::other)? {
        if !before.contains(&name) && theirs.commit_at(&name)?.is_none() {
            reference(git, &name, id)?;
        }
    }
    Ok(())
}

/// Our tags.
pub(super) fn tags_of(repo: &Repository) -> Result<Vec<(String, Oid)>, git2::Error> {
    let mut tags = Vec::new();
    for tag in repo.references_glob("refs/tags/*")? {
        let tag = tag?;
        if let (Ok(name), Some(id)) = (tag.name(), tag.target()) {
            tags.push((name.to_owned(), id));
        }
    }
    Ok(tags)
}
