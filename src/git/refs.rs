//! The agent's refs, read as text: HEAD, loose and packed branches, each name checked before it is
//! used for anything. Bounded, and blind to everything else that a `.git` may hold.

use std::collections::{BTreeMap, HashMap};
use std::io;

use git2::Oid;

use super::Error;
use super::trusted::{is_branch_name, parse_id};
use super::volume::{Folder, Found, read_all};

/// Most branches that are taken over.
const MAX_BRANCHES: usize = 10_000;
/// Deepest folder below `refs/heads`.
const MAX_DEPTH: usize = 32;
/// Longest HEAD or loose ref, in bytes.
const MAX_REF: u64 = 4096;
/// Longest packed-refs, in bytes.
const MAX_PACKED: u64 = 64 * 1024 * 1024;
/// Most symbolic refs in a row.
const MAX_HOPS: usize = 5;

/// What a ref says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Commit(Oid),
    Branch(String),
}

/// The refs of an agent's repository.
#[derive(Debug)]
pub(super) struct AgentRefs {
    /// Branch that HEAD is on; nothing where it is detached.
    pub(super) branch: Option<String>,
    /// Commit of HEAD; nothing where its branch has none yet.
    pub(super) commit: Option<Oid>,
    /// All branches.
    pub(super) heads: BTreeMap<String, Oid>,
}

/// Reads the refs of the `.git` that is open as `git`.
pub(super) fn read(git: &Folder) -> Result<AgentRefs, Error> {
    let unreadable = |e: io::Error| Error::file("read the refs in the workspace's .git", &e);
    let head = match git.file("HEAD").map_err(unreadable)? {
        Found::Here(file) => read_all(file, MAX_REF)
            .map_err(unreadable)?
            .and_then(|b| parse(&b)),
        Found::Absent | Found::Odd => None,
    };
    let head = head.ok_or_else(|| {
        Error::checkout("HEAD in the workspace's .git is no branch and no SHA-1 commit")
    })?;
    let mut targets = BTreeMap::new();
    if let Some(file) = git.file("packed-refs").map_err(unreadable)?.here() {
        let bytes = read_all(file, MAX_PACKED).map_err(unreadable)?;
        packed(&bytes.ok_or_else(too_many)?, &mut targets)?;
    }
    let heads = git.folder("refs").map_err(unreadable)?.here();
    let heads = heads
        .map(|refs| refs.folder("heads"))
        .transpose()
        .map_err(unreadable)?;
    if let Some(heads) = heads.and_then(Found::here) {
        loose(&heads, "", 0, &mut targets)?;
    }
    let (branch, commit) = match head {
        Target::Commit(id) => (None, Some(id)),
        Target::Branch(name) => {
            let id = resolve(&targets, &name);
            (Some(name), id)
        }
    };
    let heads = targets
        .keys()
        .filter_map(|n| Some((n.clone(), resolve(&targets, n)?)))
        .collect();
    Ok(AgentRefs {
        branch,
        commit,
        heads,
    })
}

/// Any refs of a `.git`, by their full names. Those that are packed are read once for all.
pub(super) struct Named<'g> {
    git: &'g Folder,
    packed: HashMap<String, Oid>,
}

impl<'g> Named<'g> {
    /// Those of the `.git` that is open as `git`.
    pub(super) fn of(git: &'g Folder) -> io::Result<Self> {
        let mut packed = HashMap::new();
        if let Found::Here(file) = git.file("packed-refs")? {
            let bytes = read_all(file, MAX_PACKED)?.unwrap_or_default();
            for (id, name) in bytes.split(|&b| b == b'\n').filter_map(packed_line) {
                if let Some(id) = parse_id(id) {
                    packed.entry(name.to_owned()).or_insert(id);
                }
            }
        }
        Ok(Self { git, packed })
    }

    /// The commit that a ref names itself; nothing where it is symbolic or odd.
    pub(super) fn commit_at(&self, name: &str) -> io::Result<Option<Oid>> {
        let (folder, last) = name.rsplit_once('/').unwrap_or(("", name));
        if let Found::Here(folder) = self.git.descend(folder.as_bytes())?
            && let Found::Here(file) = folder.file(last)?
        {
            let text = read_all(file, MAX_REF)?;
            return Ok(match text.as_deref().and_then(parse) {
                Some(Target::Commit(id)) => Some(id),
                _ => None,
            });
        }
        Ok(self.packed.get(name).copied())
    }
}

/// A line of packed-refs: what it says of an id, and the ref's name.
pub(super) fn packed_line(line: &[u8]) -> Option<(&str, &str)> {
    let (id, name) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    Some((id, name.trim_end()))
}

fn too_many() -> Error {
    Error::checkout(format!(
        "the workspace's .git has more than {MAX_BRANCHES} branches"
    ))
}

/// A ref's text: a commit, or the name of a branch.
fn parse(bytes: &[u8]) -> Option<Target> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end();
    match text.strip_prefix("ref:") {
        None => parse_id(text).map(Target::Commit),
        Some(name) => {
            let name = name.trim_start().strip_prefix("refs/heads/")?;
            is_branch_name(name).then(|| Target::Branch(name.to_owned()))
        }
    }
}

fn packed(bytes: &[u8], into: &mut BTreeMap<String, Target>) -> Result<(), Error> {
    for (id, name) in bytes.split(|&b| b == b'\n').filter_map(packed_line) {
        let Some(name) = name.strip_prefix("refs/heads/") else {
            continue;
        };
        let Some(id) = parse_id(id).filter(|_| is_branch_name(name)) else {
            continue;
        };
        insert(into, name, Target::Commit(id))?;
    }
    Ok(())
}

fn loose(
    folder: &Folder,
    prefix: &str,
    depth: usize,
    into: &mut BTreeMap<String, Target>,
) -> Result<(), Error> {
    let unreadable = |e: io::Error| Error::file("read the refs in the workspace's .git", &e);
    for name in folder.names(MAX_BRANCHES).map_err(unreadable)? {
        let path = format!("{prefix}{name}");
        if let Some(file) = folder.file(&name).map_err(unreadable)?.here() {
            let target = read_all(file, MAX_REF)
                .map_err(unreadable)?
                .and_then(|b| parse(&b));
            if let Some(target) = target.filter(|_| is_branch_name(&path)) {
                insert(into, &path, target)?;
            }
        } else if let Some(below) = folder.folder(&name).map_err(unreadable)?.here()
            && depth < MAX_DEPTH
        {
            loose(&below, &format!("{path}/"), depth + 1, into)?;
        }
    }
    Ok(())
}

fn insert(into: &mut BTreeMap<String, Target>, name: &str, target: Target) -> Result<(), Error> {
    into.insert(name.to_owned(), target);
    if into.len() > MAX_BRANCHES {
        Err(too_many())
    } else {
        Ok(())
    }
}

fn resolve(targets: &BTreeMap<String, Target>, name: &str) -> Option<Oid> {
    let mut name = name;
    for _ in 0..MAX_HOPS {
        match targets.get(name)? {
            Target::Commit(id) => return Some(*id),
            Target::Branch(next) => name = next,
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn only_commits_and_branches_are_understood() {
        let id = Oid::from_str(ID).unwrap();
        assert_eq!(
            parse(format!("{ID}\n").as_bytes()),
            Some(Target::Commit(id))
        );
        assert_eq!(
            parse(b"ref: refs/heads/a/b\n"),
            Some(Target::Branch("a/b".to_owned()))
        );
        for bad in [
            "",
            "ref:",
            "ref: ",
            "ref: refs/heads/",
            "ref: refs/heads/../../x",
            "ref: ../../../x",
            "ref: refs/heads/.invalid",
            "ref: refs/remotes/origin/main",
            "ref: refs/heads/-x",
            "ref: refs/heads/a.lock",
            "ref: refs/heads/a\0b",
            "xyz",
            &ID[1..],
            &format!("{ID}00"),
            "0000000000000000000000000000000000000000",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn symbolic_branches_end_even_in_a_circle() {
        let mut targets = BTreeMap::new();
        targets.insert("a".to_owned(), Target::Branch("b".to_owned()));
        targets.insert("b".to_owned(), Target::Branch("a".to_owned()));
        assert_eq!(resolve(&targets, "a"), None);
    }

    #[test]
    fn packed_refs_with_rubbish_in_them_give_what_is_sound() {
        let text = format!(
            "# pack-refs with: peeled\n{ID} refs/heads/good\n^{ID}\n{ID} refs/heads/../x\n\
             {ID} refs/tags/t\nzz refs/heads/bad\n\u{1}\n{ID}\n"
        );
        let mut targets = BTreeMap::new();
        packed(text.as_bytes(), &mut targets).unwrap();
        assert_eq!(targets.keys().collect::<Vec<_>>(), ["good"]);
    }
}
