//! Reading objects: small ones of packs by ourselves, all others by libgit2, and understood here. Sizes
//! are looked at before content, and trees and commits are parsed without trust, since anybody may have
//! written them.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;

use git2::{ErrorCode, ObjectType, Odb, OdbObject, Oid, Repository};

use super::packs::Packs;
use super::trusted::parse_id;
use super::{Error, loose};

/// Largest commit, tree or tag, in bytes. Git's own are far below; a larger one would only be there to
/// exhaust whoever reads it.
pub(super) const MAX_META: u64 = 16 * 1024 * 1024;

/// Mode of a folder.
pub(super) const FOLDER: u32 = 0o040_000;
/// Mode of a symlink.
pub(super) const SYMLINK: u32 = 0o120_000;
/// Mode of a submodule.
pub(super) const SUBMODULE: u32 = 0o160_000;
/// The bits of a mode that say what it is.
pub(super) const TYPE: u32 = 0o170_000;

/// The objects of a repository.
pub(super) struct Objects<'r> {
    odb: Odb<'r>,
    packs: Packs,
    /// Somebody else's: loose ones are not left to libgit2 there.
    foreign: Option<loose::Foreign>,
}

/// An object's content.
pub(super) enum Stored<'o> {
    Library(OdbObject<'o>),
    Loose(Vec<u8>),
    Packed(Arc<Vec<u8>>),
}

impl Stored<'_> {
    /// Its bytes, without the header.
    pub(super) fn data(&self) -> &[u8] {
        match self {
            Self::Library(object) => object.data(),
            Self::Loose(bytes) => bytes,
            Self::Packed(bytes) => bytes,
        }
    }
}

impl<'r> Objects<'r> {
    /// Those of our git dir.
    pub(super) fn of(repo: &'r Repository) -> Result<Self, Error> {
        let odb = repo
            .odb()
            .map_err(|e| Error::local("open our objects", &e))?;
        Ok(Self {
            odb,
            packs: Packs::open(&repo.path().join("objects")),
            foreign: None,
        })
    }

    /// Those in a folder `objects`, and nothing of the repository around it.
    pub(super) fn on_disk(folder: &Path) -> Result<Self, Error> {
        let path = folder.to_str().ok_or_else(|| {
            Error::checkout(format!("the path {} is not UTF-8", folder.display()))
        })?;
        let odb = Odb::new()
            .and_then(|odb| odb.add_disk_alternate(path).map(|()| odb))
            .map_err(|e| Error::local(format_args!("open {path}"), &e))?;
        Ok(Self {
            odb,
            packs: Packs::open(folder),
            foreign: Some(loose::Foreign::new(folder)),
        })
    }

    /// Kind and size of an object; nothing where it is missing.
    pub(super) fn header(&self, id: Oid) -> Result<Option<(ObjectType, u64)>, Error> {
        if let Some((kind, content)) = self.packs.read(id) {
            return Ok(Some((kind, content.len() as u64)));
        }
        if let Some(foreign) = &self.foreign
            && let Some(own) = foreign.header(id)?
        {
            return Ok(Some(own));
        }
        // git2 panics over a kind that is none, after libgit2 has returned: nothing is left half done.
        let told = panic::catch_unwind(AssertUnwindSafe(|| self.odb.read_header(id)))
            .map_err(|_| Error::checkout(format!("object {id} is of no kind that git knows")))?;
        match told {
            Ok((size, kind)) => Ok(Some((kind, size as u64))),
            Err(e) if e.code() == ErrorCode::NotFound => Ok(None),
            Err(e) => Err(Error::local(format_args!("read object {id}"), &e)),
        }
    }

    /// The size of a blob.
    pub(super) fn blob_size(&self, id: Oid) -> Result<u64, Error> {
        match self.header(id)? {
            Some((ObjectType::Blob, size)) => Ok(size),
            Some((kind, _)) => Err(unexpected(id, kind, ObjectType::Blob)),
            None => Err(missing(id)),
        }
    }

    /// A blob of a size that the caller has looked at.
    pub(super) fn blob(&self, id: Oid) -> Result<Stored<'_>, Error> {
        self.read(id)
    }

    /// A tree.
    pub(super) fn tree(&self, id: Oid) -> Result<Tree<'_>, Error> {
        Ok(Tree {
            id,
            object: self.meta(id, ObjectType::Tree)?,
        })
    }

    /// A commit; nothing where it is missing.
    pub(super) fn find_commit(&self, id: Oid) -> Result<Option<Commit>, Error> {
        if self.header(id)?.is_none() {
            return Ok(None);
        }
        self.commit(id).map(Some)
    }

    /// A commit.
    pub(super) fn commit(&self, id: Oid) -> Result<Commit, Error> {
        let object = self.meta(id, ObjectType::Commit)?;
        Commit::parse(object.data())
            .ok_or_else(|| Error::checkout(format!("commit {id} is malformed")))
    }

    /// A tag's target, or the object itself: the commit that a name stands for.
    pub(super) fn peel(&self, id: Oid) -> Result<Oid, Error> {
        let mut id = id;
        for _ in 0..10 {
            match self.header(id)? {
                None => return Err(missing(id)),
                Some((ObjectType::Commit, _)) => return Ok(id),
                Some((ObjectType::Tag, _)) => {
                    let object = self.meta(id, ObjectType::Tag)?;
                    let target = object
                        .data()
                        .strip_prefix(b"object ")
                        .and_then(|rest| parse_id(std::str::from_utf8(rest.get(..40)?).ok()?));
                    id = target.ok_or_else(|| Error::checkout(format!("tag {id} is malformed")))?;
                }
                Some((kind, _)) => return Err(unexpected(id, kind, ObjectType::Commit)),
            }
        }
        Err(Error::checkout(format!(
            "{id} is a tag of tags without end"
        )))
    }

    /// The object whose name begins like this.
    pub(super) fn by_prefix(&self, prefix: &str) -> Option<Oid> {
        let mut whole = prefix.to_owned();
        whole.extend(std::iter::repeat_n('0', 40 - prefix.len()));
        let short = Oid::from_str(&whole).ok()?;
        self.odb.exists_prefix(short, prefix.len()).ok()
    }

    /// A commit, tree or tag, unless it is out of all proportion.
    fn meta(&self, id: Oid, kind: ObjectType) -> Result<Stored<'_>, Error> {
        match self.header(id)? {
            None => Err(missing(id)),
            Some((is, _)) if is != kind => Err(unexpected(id, is, kind)),
            Some((_, size)) if size > MAX_META => Err(Error::checkout(format!(
                "the {kind} {id} has {size} bytes, more than any of git's own"
            ))),
            Some(_) => self.read(id),
        }
    }

    fn read(&self, id: Oid) -> Result<Stored<'_>, Error> {
        if let Some((_, content)) = self.packs.read(id) {
            return Ok(Stored::Packed(content));
        }
        if let Some(foreign) = &self.foreign
            && let Some(bytes) = foreign.read(id)?
        {
            return Ok(Stored::Loose(bytes));
        }
        self.odb
            .read(id)
            .map(Stored::Library)
            .map_err(|e| Error::local(format_args!("read object {id}"), &e))
    }
}

fn missing(id: Oid) -> Error {
    Error::checkout(format!("object {id} is missing"))
}

fn unexpected(id: Oid, is: ObjectType, wanted: ObjectType) -> Error {
    Error::checkout(format!("object {id} is a {is} where a {wanted} belongs"))
}

/// A tree's content.
pub(super) struct Tree<'o> {
    id: Oid,
    object: Stored<'o>,
}

/// One entry of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'t> {
    pub(super) mode: u32,
    pub(super) name: &'t [u8],
    id: &'t [u8],
}

impl Entry<'_> {
    pub(super) fn is_folder(&self) -> bool {
        self.mode & TYPE == FOLDER
    }

    pub(super) fn id(&self) -> Oid {
        // Always 20 bytes.
        Oid::from_bytes(self.id).unwrap_or(Oid::ZERO_SHA1)
    }

    /// Git's order, in which a folder's name ends with a slash.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        let common = self.name.len().min(other.name.len());
        let end = |entry: &Self| match entry.name.get(common) {
            Some(byte) => *byte,
            None if entry.is_folder() => b'/',
            None => 0,
        };
        self.name[..common]
            .cmp(&other.name[..common])
            .then_with(|| end(self).cmp(&end(other)))
    }
}

impl Tree<'_> {
    /// Its entries, in the order in which they stand.
    pub(super) fn entries(&self) -> Result<Vec<Entry<'_>>, Error> {
        let mut rest = self.object.data();
        let mut entries = Vec::with_capacity(rest.len() / 32);
        while !rest.is_empty() {
            let entry = entry(&mut rest)
                .ok_or_else(|| Error::checkout(format!("tree {} is malformed", self.id)))?;
            entries.push(entry);
        }
        Ok(entries)
    }
}

fn entry<'t>(rest: &mut &'t [u8]) -> Option<Entry<'t>> {
    let space = rest.iter().take(8).position(|&b| b == b' ')?;
    let mut mode = 0;
    for digit in &rest[..space] {
        mode = mode * 8 + u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 8)?);
    }
    let name = &rest[space + 1..];
    let end = name.iter().position(|&b| b == 0).filter(|end| *end > 0)?;
    let id = name.get(end + 1..end + 21)?;
    *rest = &name[end + 21..];
    Some(Entry {
        mode: canonical(mode),
        name: &name[..end],
        id,
    })
}

/// Git knows two permissions, whatever a tree says.
fn canonical(mode: u32) -> u32 {
    match mode & TYPE {
        0o100_000 if mode & 0o100 != 0 => 0o100_755,
        0o100_000 => 0o100_644,
        SYMLINK => SYMLINK,
        FOLDER => FOLDER,
        _ => SUBMODULE,
    }
}

/// What matters of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) tree: Oid,
    pub(super) parents: Vec<Oid>,
    /// `Name <address>`.
    pub(super) author: String,
    /// When it was authored, in seconds of UNIX time.
    pub(super) authored: i64,
    /// When it was committed, in seconds of UNIX time.
    pub(super) committed: i64,
    /// First paragraph of the message, in one line.
    pub(super) subject: String,
}

impl Commit {
    fn parse(data: &[u8]) -> Option<Self> {
        let id = |text: &[u8]| parse_id(std::str::from_utf8(text).ok()?);
        let (head, message) = match data.windows(2).position(|pair| pair == b"\n\n") {
            Some(end) => (&data[..end], &data[end + 2..]),
            None => (data, &b""[..]),
        };
        let mut lines = head.split(|&b| b == b'\n');
        let tree = id(lines.next()?.strip_prefix(b"tree ")?)?;
        let (mut parents, mut author, mut committer, mut latin) = (Vec::new(), None, None, false);
        for line in lines {
            if let Some(parent) = line.strip_prefix(b"parent ") {
                parents.push(id(parent)?);
            } else if let Some(who) = line.strip_prefix(b"author ") {
                author.get_or_insert(who);
            } else if let Some(who) = line.strip_prefix(b"committer ") {
                committer.get_or_insert(who);
            } else if let Some(encoding) = line.strip_prefix(b"encoding ") {
                latin = [&b"iso-8859-1"[..], b"latin1", b"iso8859-1"]
                    .iter()
                    .any(|name| encoding.eq_ignore_ascii_case(name));
            }
        }
        let text = |bytes: &[u8]| match latin {
            true => bytes.iter().map(|&byte| char::from(byte)).collect(),
            false => String::from_utf8_lossy(bytes).into_owned(),
        };
        let (name, authored) = signature(author.unwrap_or_default());
        Some(Self {
            tree,
            parents,
            author: text(name),
            authored,
            committed: signature(committer.unwrap_or_default()).1,
            subject: text(&subject(message)),
        })
    }
}

/// `Name <address>` and the time behind it; 1970 where there is none.
fn signature(text: &[u8]) -> (&[u8], i64) {
    let Some(end) = text.iter().rposition(|&b| b == b'>') else {
        return (text, 0);
    };
    let time = text[end + 1..].trim_ascii_start();
    let digits = time.split(|&b| b == b' ').next().unwrap_or_default();
    let time = std::str::from_utf8(digits)
        .ok()
        .and_then(|t| t.parse().ok());
    (&text[..=end], time.unwrap_or(0))
}

/// The first paragraph, its lines joined by spaces.
fn subject(message: &[u8]) -> Vec<u8> {
    let mut subject = Vec::new();
    for line in message.split(|&b| b == b'\n') {
        let line = line.trim_ascii_end();
        match (line.is_empty(), subject.is_empty()) {
            (true, true) => {}
            (true, false) => break,
            (false, first) => {
                if !first {
                    subject.push(b' ');
                }
                subject.extend_from_slice(line);
            }
        }
    }
    subject
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_as_git_log_shows_it() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let text = format!(
            "tree {id}\nparent {id}\nauthor A <B> C <a@b> 12 +0100\ncommitter X <y> 34 +0000\n\
             gpgsig x\n y\n\n\nFirst\nline  \n\nBody\n"
        );
        let commit = Commit::parse(text.as_bytes()).unwrap();
        assert_eq!(commit.author, "A <B> C <a@b>");
        assert_eq!((commit.authored, commit.committed), (12, 34));
        assert_eq!(commit.subject, "First line");
        assert_eq!(commit.parents.len(), 1);
        for bad in ["", "tree x\n\n", &format!("tree {id}\nparent 1\n\n")] {
            assert_eq!(Commit::parse(bad.as_bytes()), None);
        }
    }

    #[test]
    fn malformed_trees_are_told_from_sound_ones() {
        for bad in [
            &b"100644"[..],
            b"100644 a",
            b"100644 a\x00123",
            b"9 a\0aaaaaaaaaaaaaaaaaaaa",
            b"100644 \0aaaaaaaaaaaaaaaaaaaa",
        ] {
            assert_eq!(entry(&mut &*bad), None);
        }
        let entry = entry(&mut &b"100664 a\0aaaaaaaaaaaaaaaaaaaa"[..]).unwrap();
        assert_eq!((entry.mode, entry.name), (0o100_644, &b"a"[..]));
    }
}
