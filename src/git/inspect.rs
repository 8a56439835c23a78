//! Any repository on disk, found and read as git would, but for its configuration, which is never read:
//! a folder with `.git`, a linked worktree, a submodule, a bare one.

use std::io;
use std::path::{Path, PathBuf};

use git2::Oid;

use super::history::Boundary;
use super::objects::Objects;
use super::refs::packed_line;
use super::trusted::parse_id;
use super::uncommitted::{self, Ground};
use super::volume::{Folder, Found, read_all};
use super::{Error, Limits, patch, survey};
use crate::report::Report;
use crate::wire::patch::{Patch, PatchText};

/// Longest ref or pointer to another folder, in bytes.
const MAX_REF: u64 = 4096;
/// Longest `packed-refs` and `shallow`, in bytes.
const MAX_LIST: u64 = 64 * 1024 * 1024;
/// Most symbolic refs in a row.
const MAX_HOPS: usize = 5;
/// Most loose objects with the same first byte, and packs.
const MAX_NAMES: usize = 1_000_000;

/// See [`super::inspect`].
pub(super) fn inspect(path: &Path, since: &str) -> Result<Report, Error> {
    report(path, since, None)
}

/// See [`super::compare`].
pub(super) fn compare(path: &Path, from: &str, to: &str) -> Result<Report, Error> {
    report(path, from, Some(to))
}

/// See [`super::inspect_patch`].
pub(super) fn patches(path: &Path, since: &str, limits: Limits) -> Result<Patch, Error> {
    look(path, |view| {
        let (_, head) = view.refs.head()?;
        let initial = view.refs.revision(since)?;
        let (objects, first) = (view.objects, Some(initial));
        let committed = match view.ground {
            Some(ground) => uncommitted::with_attributes(ground, |attributes| {
                patch::between(objects, first, head, limits, Some(attributes))
            }),
            None => patch::between(objects, first, head, limits, None),
        };
        let uncommitted = match view.ground {
            Some(ground) => patch::told(patch::of_worktree(ground, head, limits)),
            None => PatchText::default(),
        };
        Ok(Patch {
            initial_commit: Some(initial.to_string()),
            final_commit: head.map(|id| id.to_string()),
            committed: committed?,
            uncommitted,
        })
    })
}

/// Up to HEAD and what is not committed on it, or up to another commit.
fn report(path: &Path, since: &str, until: Option<&str>) -> Result<Report, Error> {
    look(path, |view| {
        let (branch, head) = match until {
            None => view.refs.head()?,
            Some(until) => (None, Some(view.refs.revision(until)?)),
        };
        let initial = view.refs.revision(since)?;
        let boundary = view.refs.boundary()?;
        let (objects, first) = (view.objects, Some(initial));
        let mut report = match view.ground {
            Some(ground) => uncommitted::with_attributes(ground, |attributes| {
                survey::between(objects, first, head, &boundary, Some(attributes))
            })?,
            None => survey::between(objects, first, head, &boundary, None)?,
        };
        report.branch = branch;
        if until.is_none() {
            survey::add_uncommitted(&mut report, view.ground, head);
        }
        Ok(report)
    })
}

/// A repository, opened.
struct View<'v> {
    objects: &'v Objects<'v>,
    refs: &'v Refs<'v>,
    /// Nothing where it is bare.
    ground: Option<&'v Ground<'v>>,
}

fn look<T>(path: &Path, then: impl FnOnce(&View<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let found = find(path)?;
    let open = |path: &Path| {
        Folder::open(path).map_err(|e| Error::file(format_args!("open {}", path.display()), &e))
    };
    let common_path = common_of(&found.git)?;
    let (git, common) = (open(&found.git)?, open(&common_path)?);
    only_files(&common)?;
    let objects = Objects::on_disk(&common_path.join("objects"))?;
    let refs = Refs {
        git: &git,
        common: &common,
        objects: &objects,
    };
    let work = found.work.as_deref().map(open).transpose()?;
    let ground = work.as_ref().map(|work| Ground {
        objects: &objects,
        git: &git,
        common: &common,
        work,
    });
    then(&View {
        objects: &objects,
        refs: &refs,
        ground: ground.as_ref(),
    })
}

/// A repository that was found.
struct Place {
    git: PathBuf,
    /// Nothing where it is bare.
    work: Option<PathBuf>,
}

/// Looks in a folder and those above it, as git does.
fn find(path: &Path) -> Result<Place, Error> {
    let start = path
        .canonicalize()
        .map_err(|e| Error::file(format_args!("open {}", path.display()), &e))?;
    for folder in start.ancestors() {
        let dot = folder.join(".git");
        if looks_like_git(&dot) {
            return Ok(Place {
                git: dot,
                work: Some(folder.to_owned()),
            });
        }
        if dot.is_file() {
            let git = pointer(folder, ".git", b"gitdir: ")?.filter(|git| git.is_dir());
            let git = git.ok_or_else(|| {
                Error::checkout(format!("{} points to no repository", dot.display()))
            })?;
            return Ok(Place {
                git,
                work: Some(folder.to_owned()),
            });
        }
        if looks_like_git(folder) {
            return Ok(Place {
                git: folder.to_owned(),
                work: None,
            });
        }
    }
    Err(Error::checkout(format!(
        "{} is not in a git repository",
        path.display()
    )))
}

fn looks_like_git(path: &Path) -> bool {
    let is = |name: &str| path.join(name).exists();
    is("HEAD") && (is("commondir") || is("objects") && is("refs"))
}

/// Where refs, objects and `info` are: elsewhere for a linked worktree.
fn common_of(git: &Path) -> Result<PathBuf, Error> {
    Ok(pointer(git, "commondir", b"")?.unwrap_or_else(|| git.to_owned()))
}

/// The folder that a file of one line points to.
fn pointer(folder: &Path, name: &str, prefix: &[u8]) -> Result<Option<PathBuf>, Error> {
    use std::os::unix::ffi::OsStrExt;

    let read = || -> io::Result<Option<PathBuf>> {
        let Some(file) = Folder::open(folder)?.file(name)?.here() else {
            return Ok(None);
        };
        let text = read_all(file, MAX_REF)?.unwrap_or_default();
        let target = text.strip_prefix(prefix).map(<[u8]>::trim_ascii_end);
        Ok(target.map(|target| folder.join(std::ffi::OsStr::from_bytes(target))))
    };
    read().map_err(|e| Error::file(format_args!("read {}", folder.join(name).display()), &e))
}

/// What is in the object store is files: whoever opens them would wait on a FIFO.
fn only_files(common: &Folder) -> Result<(), Error> {
    use nix::dir::Type;

    let look = || -> io::Result<Option<String>> {
        let Some(objects) = common.folder("objects")?.here() else {
            return Ok(None);
        };
        for (name, _) in objects.list(MAX_NAMES)? {
            let Some(folder) = objects.folder(&name)?.here() else {
                continue;
            };
            for (file, kind) in folder.list(MAX_NAMES)? {
                let is_sound = match kind {
                    Some(kind) => matches!(kind, Type::File | Type::Directory),
                    None => matches!(folder.file(&file)?, Found::Here(_)),
                };
                if !is_sound {
                    let names = [name.as_slice(), b"/", &file].concat();
                    return Ok(Some(String::from_utf8_lossy(&names).into_owned()));
                }
            }
        }
        Ok(None)
    };
    match look() {
        Ok(None) => Ok(()),
        Ok(Some(odd)) => Err(Error::checkout(format!(
            "{odd:?} among the repository's objects is no file: it is not read"
        ))),
        Err(e) => Err(Error::file("list the repository's objects", &e)),
    }
}

/// Names of commits.
struct Refs<'r> {
    git: &'r Folder,
    common: &'r Folder,
    objects: &'r Objects<'r>,
}

enum Target {
    Object(Oid),
    Name(String),
}

impl Refs<'_> {
    /// The branch of HEAD, and its commit.
    fn head(&self) -> Result<(Option<String>, Option<Oid>), Error> {
        match self.read(self.git, "HEAD")? {
            Some(Target::Object(id)) => Ok((None, Some(id))),
            Some(Target::Name(name)) => {
                let branch = name.strip_prefix("refs/heads/").unwrap_or(&name);
                Ok((Some(branch.to_owned()), self.resolve(&name, 0)?))
            }
            None => Err(Error::checkout(
                "HEAD of the repository is no branch and no SHA-1 commit",
            )),
        }
    }

    /// The commit that a person means: a name or its beginning, a branch, a tag, `HEAD~2`.
    fn revision(&self, text: &str) -> Result<Oid, Error> {
        let unknown = || Error::checkout(format!("{text:?} names no commit of the repository"));
        let end = text.find(['~', '^']).unwrap_or(text.len());
        let (base, mut steps) = text.split_at(end);
        let base = if matches!(base, "" | "@") {
            "HEAD"
        } else {
            base
        };
        let mut id = self.named(base)?.ok_or_else(unknown)?;
        id = self.objects.peel(id)?;
        while let Some(kind) = steps.chars().next() {
            let rest = &steps[1..];
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let count = match &rest[..digits] {
                "" => 1,
                number => number.parse::<usize>().map_err(|_| unknown())?,
            };
            steps = &rest[digits..];
            match kind {
                '~' => {
                    for _ in 0..count {
                        let parents = self.objects.commit(id)?.parents;
                        id = *parents.first().ok_or_else(unknown)?;
                    }
                }
                '^' if count > 0 => {
                    let parents = self.objects.commit(id)?.parents;
                    id = *parents.get(count - 1).ok_or_else(unknown)?;
                }
                '^' => {}
                _ => return Err(unknown()),
            }
        }
        Ok(id)
    }

    fn named(&self, name: &str) -> Result<Option<Oid>, Error> {
        if let Some(id) = parse_id(name) {
            return Ok(self.objects.header(id)?.map(|_| id));
        }
        if name == "HEAD" {
            return Ok(self.head()?.1);
        }
        for pattern in ["", "refs/", "refs/tags/", "refs/heads/", "refs/remotes/"] {
            let full = format!("{pattern}{name}");
            if git2::Reference::is_valid_name(&full)
                && let Some(id) = self.resolve(&full, 0)?
            {
                return Ok(Some(id));
            }
        }
        let is_prefix =
            (4..40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(is_prefix
            .then(|| self.objects.by_prefix(&name.to_ascii_lowercase()))
            .flatten())
    }

    fn resolve(&self, name: &str, hops: usize) -> Result<Option<Oid>, Error> {
        let target = match self.read(self.common, name)? {
            None => self.packed(name)?,
            target => target,
        };
        match target {
            Some(Target::Object(id)) => Ok(Some(id)),
            Some(Target::Name(next)) if hops < MAX_HOPS => self.resolve(&next, hops + 1),
            _ => Ok(None),
        }
    }

    /// A ref of a file of its own.
    fn read(&self, folder: &Folder, name: &str) -> Result<Option<Target>, Error> {
        let (above, file) = name.rsplit_once('/').unwrap_or(("", name));
        let read = || -> io::Result<Option<Vec<u8>>> {
            let Some(folder) = folder.descend(above.as_bytes())?.here() else {
                return Ok(None);
            };
            match folder.file(file)?.here() {
                Some(file) => read_all(file, MAX_REF),
                None => Ok(None),
            }
        };
        let bytes = read().map_err(|e| Error::file(format_args!("read the ref {name:?}"), &e))?;
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        Ok(text.and_then(|text| {
            let text = text.trim_end();
            match text.strip_prefix("ref:") {
                Some(name) => Some(name.trim_start())
                    .filter(|name| git2::Reference::is_valid_name(name))
                    .map(|name| Target::Name(name.to_owned())),
                None => parse_id(text).map(Target::Object),
            }
        }))
    }

    fn list(&self, name: &str) -> Result<Vec<u8>, Error> {
        let read = || match self.common.file(name)? {
            Found::Here(file) => read_all(file, MAX_LIST),
            Found::Absent | Found::Odd => Ok(None),
        };
        let bytes: io::Result<Option<Vec<u8>>> = read();
        bytes
            .map(Option::unwrap_or_default)
            .map_err(|e| Error::file(format_args!("read {name} of the repository"), &e))
    }

    fn packed(&self, name: &str) -> Result<Option<Target>, Error> {
        let text = self.list("packed-refs")?;
        let found = text.split(|&b| b == b'\n').find_map(|line| {
            let (id, is) = packed_line(line)?;
            (is == name).then(|| parse_id(id)).flatten()
        });
        Ok(found.map(Target::Object))
    }

    /// Commits at which a shallow clone ends.
    fn boundary(&self) -> Result<Boundary, Error> {
        let text = self.list("shallow")?;
        let lines = text.split(|&b| b == b'\n');
        Ok(lines
            .filter_map(|line| parse_id(std::str::from_utf8(line).ok()?.trim_end()))
            .collect())
    }
}
