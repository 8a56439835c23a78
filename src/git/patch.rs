//! What changed, as a patch that `git apply` takes: as `git diff -M --full-index` writes it, whole files
//! left out where it would grow too large, and binary ones only named, since `git apply` would refuse
//! all for one of them. What is not in it is said at its head, in lines that `git apply` skips.

use std::time::Instant;

use git2::Oid;

use super::attributes::Attributes;
use super::changes::{self, Paired};
use super::content::Content;
use super::objects::Objects;
use super::survey::{folders, in_tree};
use super::tree_diff::{self, Side};
use super::trusted::{self, commit_id};
use super::uncommitted::{self, Ground};
use super::{Error, Head, Place};
use crate::wire::patch::{Patch, PatchText};

mod file;
mod quote;

use self::file::Section;

/// Bytes of names of files that are left out.
const MAX_NOTES: usize = 64 * 1024;

/// How much a patch may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of it.
    pub bytes: usize,
    /// Bytes of contents that are read for it.
    pub read: u64,
    /// When to leave the rest out.
    pub until: Option<Instant>,
}

impl Limits {
    /// All of it.
    pub const NONE: Self = Self {
        bytes: usize::MAX,
        read: u64::MAX,
        until: None,
    };

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// See [`super::patch`].
pub(super) fn of_workspace(
    place: &Place,
    initial: Option<&str>,
    head: &Head,
    limits: Limits,
) -> Result<Patch, Error> {
    let first = initial.map(commit_id).transpose()?;
    let last = head.commit.as_deref().map(commit_id).transpose()?;
    let repo = trusted::open(place)?;
    let objects = Objects::of(&repo)?;
    let committed = told(between(&objects, first, last.or(first), limits, None));
    let rest = Limits {
        bytes: limits.bytes.saturating_sub(committed.text.len()),
        ..limits
    };
    let uncommitted = folders(place)
        .and_then(|folders| of_worktree(&Ground::of_workspace(&objects, &folders), last, rest));
    Ok(Patch {
        initial_commit: initial.map(str::to_owned),
        final_commit: last.or(first).map(|id| id.to_string()),
        committed,
        uncommitted: told(uncommitted),
    })
}

/// What is missing is said in its place: one half can be told without the other.
pub(super) fn told(part: Result<PatchText, Error>) -> PatchText {
    part.unwrap_or_else(|why| PatchText::unknown(why.to_string()))
}

/// Between two commits. Attributes are those of the later one, unless others are given.
pub(super) fn between(
    objects: &Objects<'_>,
    initial: Option<Oid>,
    last: Option<Oid>,
    limits: Limits,
    attributes: Option<&Attributes<'_>>,
) -> Result<PatchText, Error> {
    let Some(last) = last.filter(|last| Some(*last) != initial) else {
        return Ok(Builder::new(limits).done());
    };
    let old = initial.map(|id| objects.commit(id)).transpose()?;
    let (old, new) = (old.map(|commit| commit.tree), objects.commit(last)?.tree);
    let differ = tree_diff::diff(objects, old, Some(new))?;
    let content = Content {
        objects,
        on_disk: None,
    };
    let own = in_tree(objects, new);
    let files = changes::pair(&content, attributes.unwrap_or(&own), differ)?;
    Builder::new(limits).all_of(&files, &content)
}

/// Between a commit and the worktree.
pub(super) fn of_worktree(
    ground: &Ground<'_>,
    head: Option<Oid>,
    limits: Limits,
) -> Result<PatchText, Error> {
    uncommitted::with_all(ground, head, |all| {
        let mut builder = Builder::new(limits);
        for (path, why) in &all.odd {
            builder.leave_out(path, why);
        }
        let files = changes::pair(all.content, all.attributes, all.changes)?;
        builder.all_of(&files, all.content)
    })
}

/// A patch in the making.
struct Builder {
    limits: Limits,
    made: PatchText,
    /// Lines about what is not in it.
    notes: Vec<u8>,
    /// Files for which there was no line any more.
    unnamed: u64,
}

impl Builder {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            made: PatchText {
                size: Some(0),
                ..PatchText::default()
            },
            notes: Vec::new(),
            unnamed: 0,
        }
    }

    fn all_of(mut self, files: &[Paired], content: &Content<'_>) -> Result<PatchText, Error> {
        for file in files {
            self.take(file, content)?;
        }
        Ok(self.done())
    }

    fn take(&mut self, file: &Paired, content: &Content<'_>) -> Result<(), Error> {
        let (old, new) = (file.change.old.as_ref(), file.change.new.as_ref());
        let Some(shown) = new.or(old) else {
            return Ok(());
        };
        let mut bytes = 0;
        for side in [old, new].into_iter().flatten() {
            bytes += content.size(side)?;
        }
        if self.limits.is_over() || bytes > self.limits.read.min(file::MAX_READ) {
            self.made.size = None;
            self.leave_out(&shown.path, "too large, or too much, to be looked at");
            return Ok(());
        }
        self.limits.read -= bytes;
        let (mut text, mut is_binary) = (Vec::new(), false);
        for section in file::sections(content, file)? {
            match section {
                Section::Text(more) => text.extend_from_slice(&more),
                Section::Binary => is_binary = true,
                Section::Unmeasured => {
                    self.made.size = None;
                    self.leave_out(&shown.path, "too large, or too much, to be looked at");
                    return Ok(());
                }
            }
        }
        if let Some(size) = &mut self.made.size {
            *size += text.len() as u64;
        }
        if self.made.text.len().saturating_add(text.len()) > self.limits.bytes {
            let why = format!("{} bytes, too large for this patch", text.len());
            self.leave_out(&shown.path, &why);
            return Ok(());
        }
        self.made.text.append(&mut text);
        if is_binary {
            self.made.binary += 1;
            self.note(&binary(old, new));
        } else {
            self.made.files += 1;
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &[u8], why: &str) {
        self.made.left_out += 1;
        self.note(&[&quote::quoted(path)[..], b": ", why.as_bytes()].concat());
    }

    fn note(&mut self, line: &[u8]) {
        if self.notes.len() + line.len() > MAX_NOTES.min(self.limits.bytes) {
            self.unnamed += 1;
            return;
        }
        self.notes.extend_from_slice(b"#   ");
        self.notes.extend_from_slice(line);
        self.notes.push(b'\n');
    }

    fn done(mut self) -> PatchText {
        if self.made.binary + self.made.left_out > 0 {
            let mut head = b"# Not in this patch:\n".to_vec();
            head.append(&mut self.notes);
            if self.unnamed > 0 {
                head.extend_from_slice(format!("#   and {} more\n", self.unnamed).as_bytes());
            }
            head.append(&mut self.made.text);
            self.made.text = head;
        }
        self.made
    }
}

/// As git says it.
fn binary(old: Option<&Side>, new: Option<&Side>) -> Vec<u8> {
    let name = |side: Option<&Side>, prefix| {
        side.map_or(b"/dev/null".to_vec(), |side| {
            quote::prefixed(prefix, &side.path)
        })
    };
    let (old, new) = (name(old, b"a/"), name(new, b"b/"));
    [&b"Binary files "[..], &old, b" and ", &new, b" differ"].concat()
}
