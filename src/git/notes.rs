//! What a checkout leaves as it is, and somebody may have expected otherwise: submodules stay empty
//! folders, Git LFS pointers stay pointers. Told, not mended: both would bring in other hosts.

use git2::{ObjectType, Oid, Repository, TreeWalkMode, TreeWalkResult};

use super::Error;

/// Names that are told.
const TOLD: usize = 3;
/// Largest file that can be a pointer, in bytes.
const MAX_POINTER: usize = 1024;
/// What every pointer begins with.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Sentences about the files of a commit.
pub(super) fn of(repo: &Repository, commit: Oid) -> Result<Vec<String>, Error> {
    let why = |e: git2::Error| Error::local(format_args!("look through commit {commit}"), &e);
    let odb = repo.odb().map_err(why)?;
    let tree = repo
        .find_commit(commit)
        .and_then(|commit| commit.tree())
        .map_err(why)?;
    let (mut modules, mut small, mut uses_lfs) = (Vec::new(), Vec::new(), false);
    tree.walk(TreeWalkMode::PreOrder, |folder, entry| {
        let name = String::from_utf8_lossy(entry.name_bytes());
        match entry.kind() {
            Some(ObjectType::Commit) => modules.push(format!("{folder}{name}")),
            Some(ObjectType::Blob) => {
                uses_lfs |= name == ".gitattributes" && names_lfs(repo, entry.id());
                small.push((format!("{folder}{name}"), entry.id()));
            }
            _ => {}
        }
        TreeWalkResult::Ok
    })
    .map_err(why)?;
    // Only who has said so uses LFS: without, no file is opened.
    small.retain(|(_, id)| {
        uses_lfs
            && odb
                .read_header(*id)
                .is_ok_and(|(size, _)| size <= MAX_POINTER)
            && repo
                .find_blob(*id)
                .is_ok_and(|blob| blob.content().starts_with(POINTER))
    });
    let pointers: Vec<String> = small.into_iter().map(|(path, _)| path).collect();
    let mut notes = Vec::new();
    if !modules.is_empty() {
        let list = list(&modules);
        notes.push(format!("Submodules are left uninitialised: {list}."));
    }
    if !pointers.is_empty() {
        let list = list(&pointers);
        notes.push(format!(
            "Files kept in Git LFS are left as pointers: {list}."
        ));
    }
    Ok(notes)
}

fn names_lfs(repo: &Repository, id: Oid) -> bool {
    repo.find_blob(id).is_ok_and(|blob| {
        let needle = b"filter=lfs";
        blob.content().windows(needle.len()).any(|w| w == needle)
    })
}

fn list(paths: &[String]) -> String {
    let told: Vec<String> = paths
        .iter()
        .take(TOLD)
        .map(|path| {
            path.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .take(100)
                .collect()
        })
        .collect();
    match paths.len().saturating_sub(TOLD) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}
