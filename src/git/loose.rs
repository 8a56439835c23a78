//! Loose objects, inflated here: libgit2's own reader loops for ever over a stream
//! that has been cut, and git2 panics over a kind that is none.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use flate2::read::ZlibDecoder;
use git2::{ObjectType, Oid};
use nix::fcntl::OFlag;

use super::objects::MAX_META;

/// Largest loose object that is read, in bytes of its content.
pub(super) const MAX_OBJECT: u64 = 2 * 1024 * 1024 * 1024;

/// Kind and size of an object in a folder `objects`; nothing where it is not loose there.
///
/// # Errors
/// As [`read`].
pub(super) fn header(objects: &Path, id: Oid) -> io::Result<Option<(ObjectType, u64)>> {
    let Some(mut content) = open(objects, id)? else {
        return Ok(None);
    };
    object_head(&mut content).map(|(kind, size)| Some((kind, size as u64)))
}

/// The content of an object in a folder `objects`; nothing where it is not loose there.
///
/// # Errors
/// When the file is none, can't be read, or is not what its name says.
pub(super) fn read(objects: &Path, id: Oid) -> io::Result<Option<Vec<u8>>> {
    let Some(mut content) = open(objects, id)? else {
        return Ok(None);
    };
    let (kind, size) = object_head(&mut content)?;
    let mut bytes = Vec::new();
    content.take(size as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() != size {
        return Err(io::Error::other("it has not the size that it claims"));
    }
    is_named(
        id,
        Oid::hash_object(kind, &bytes).map_err(io::Error::other)?,
    )?;
    Ok(Some(bytes))
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
