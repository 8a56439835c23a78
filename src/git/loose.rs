//! Loose objects, inflated here: libgit2's own reader loops for ever over a stream
//! that has been cut, and git2 panics over a kind that is none.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use flate2::read::ZlibDecoder;
use git2::{ObjectType, Oid};
use nix::fcntl::OFlag;

use super::Error;
use super::objects::MAX_META;

/// Largest loose object that is read, in bytes of its content.
pub(super) const MAX_OBJECT: u64 = 2 * 1024 * 1024 * 1024;

/// How many objects are kept open: more than there are threads that read.
const MOST_OPEN: usize = 16;

/// Somebody else's loose objects. Whoever reads one has looked at its size just before, so it is kept open
/// from the one to the other: inflating it twice would be a good part of what a report costs.
pub(super) struct Foreign {
    folder: PathBuf,
    /// Those that were looked at last, and nothing in the place of one that is not loose.
    seen: Mutex<VecDeque<(Oid, Option<Opened>)>>,
}

impl Foreign {
    /// Those in a folder `objects`.
    pub(super) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            seen: Mutex::default(),
        }
    }

    /// Kind and size of an object; nothing where it is not loose.
    pub(super) fn header(&self, id: Oid) -> Result<Option<(ObjectType, u64)>, Error> {
        let opened = self.find(id)?;
        let header = opened.as_ref().map(|own| (own.kind, own.size as u64));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.truncate(MOST_OPEN - 1);
        seen.push_front((id, opened));
        Ok(header)
    }

    /// The content of an object; nothing where it is not loose.
    pub(super) fn read(&self, id: Oid) -> Result<Option<Vec<u8>>, Error> {
        let seen = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let at = seen.iter().position(|(of, _)| *of == id);
            at.and_then(|at| seen.remove(at))
        };
        let opened = match seen {
            Some((_, opened)) => opened,
            None => self.find(id)?,
        };
        let content = opened.map(Opened::read).transpose();
        content.map_err(|e| unreadable(id, &e))
    }

    fn find(&self, id: Oid) -> Result<Option<Opened>, Error> {
        Opened::find(&self.folder, id).map_err(|e| unreadable(id, &e))
    }
}

fn unreadable(id: Oid, error: &std::io::Error) -> Error {
    Error::file(format_args!("read object {id}"), error)
}

/// An object of which only the head has been read.
struct Opened {
    kind: ObjectType,
    size: usize,
    id: Oid,
    content: BufReader<ZlibDecoder<File>>,
}

impl Opened {
    /// The object of this name in a folder `objects`; nothing where it is not loose there.
    ///
    /// # Errors
    /// When the file is none, can't be read, or begins with no head of git's.
    fn find(objects: &Path, id: Oid) -> io::Result<Option<Self>> {
        let Some(mut content) = open(objects, id)? else {
            return Ok(None);
        };
        let (kind, size) = object_head(&mut content)?;
        Ok(Some(Self {
            kind,
            size,
            id,
            content,
        }))
    }

    /// Its content.
    ///
    /// # Errors
    /// When the file can't be read or is not what its name says.
    fn read(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content
            .take(self.size as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() != self.size {
            return Err(io::Error::other("it has not the size that it claims"));
        }
        is_named(
            self.id,
            Oid::hash_object(self.kind, &bytes).map_err(io::Error::other)?,
        )?;
        Ok(bytes)
    }
}

/// An error where an object's content has another hash than its name.
pub(super) fn is_named(name: Oid, is: Oid) -> io::Result<()> {
    if is == name {
        Ok(())
    } else {
        Err(io::Error::other(format!("its content is that of {is}")))
    }
}

fn open(objects: &Path, id: Oid) -> io::Result<Option<BufReader<ZlibDecoder<File>>>> {
    let name = id.to_string();
    let (folder, rest) = name.split_at(2);
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits())
        .open(objects.join(folder).join(rest));
    let file = match file {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Ok(Some(BufReader::new(ZlibDecoder::new(file))))
}

/// Reads what stands before an object's content: its kind and size, ended by a NUL.
pub(super) fn object_head(content: &mut impl BufRead) -> io::Result<(ObjectType, usize)> {
    let mut head = Vec::new();
    content.take(32).read_until(0, &mut head)?;
    let text = head
        .strip_suffix(b"\0")
        .and_then(|head| std::str::from_utf8(head).ok());
    let (kind, size) = text
        .and_then(|text| text.split_once(' '))
        .unwrap_or_default();
    match (ObjectType::from_str(kind), size.parse::<usize>()) {
        // As git itself writes it, without leading zeros.
        (Some(kind), Ok(size))
            if kind.is_loose()
                && size as u64 <= most(kind)
                && head == format!("{} {size}\0", kind.str()).as_bytes() =>
        {
            Ok((kind, size))
        }
        (Some(_), Ok(size)) => Err(io::Error::other(format!("its size is {size} bytes"))),
        _ => Err(io::Error::other("it is no object of git's")),
    }
}

/// Largest object of a kind.
fn most(kind: ObjectType) -> u64 {
    match kind {
        ObjectType::Blob => MAX_OBJECT,
        _ => MAX_META,
    }
}
