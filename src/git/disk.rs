//! What is on the disk at a path of the worktree, by its content alone: no stat is believed, no line
//! ending treated, no link followed.

use std::io::Read;
use std::os::fd::AsRawFd;

use git2::{ObjectType, Odb, Oid};
use nix::sys::stat::SFlag;

use super::Error;
use super::objects::SYMLINK;
use super::volume::{Folder, Found};

/// What a path turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Nothing,
    /// A file or a symlink: its mode, and the name of its content.
    File(u32, Oid),
    Folder,
    /// What git can't hold: a FIFO, a socket, a device.
    Special,
}

/// A path as its folder and its last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Looks at a path.
pub(super) fn at(work: &Folder, path: &[u8]) -> Result<There, Error> {
    let (folder, name) = split(path);
    let why = |e| Error::file(told(path), &e);
    let Found::Here(folder) = work.descend(folder).map_err(why)? else {
        return Ok(There::Nothing);
    };
    let Some(stat) = folder.look(name).map_err(why)? else {
        return Ok(There::Nothing);
    };
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    if kind == SFlag::S_IFDIR {
        return Ok(There::Folder);
    }
    if kind == SFlag::S_IFLNK {
        let link = folder.link(name).map_err(why)?;
        let id = Oid::hash_object(ObjectType::Blob, &link);
        return Ok(There::File(
            SYMLINK,
            id.map_err(|e| Error::local(told(path), &e))?,
        ));
    }
    if kind != SFlag::S_IFREG {
        return Ok(There::Special);
    }
    let Found::Here(file) = folder.file(name).map_err(why)? else {
        return Err(Error::checkout(format!(
            "can't {}: it is not to be opened",
            told(path)
        )));
    };
    // By its descriptor: the path is not gone along twice.
    let id = Oid::hash_file(
        ObjectType::Blob,
        format!("/proc/self/fd/{}", file.as_raw_fd()),
    );
    let mode = match stat.st_mode & 0o100 {
        0 => 0o100_644,
        _ => 0o100_755,
    };
    Ok(There::File(
        mode,
        id.map_err(|e| Error::local(told(path), &e))?,
    ))
}

/// Whether there is a folder at a path.
pub(super) fn is_folder(work: &Folder, path: &[u8]) -> Result<bool, Error> {
    let found = work
        .descend(path)
        .map_err(|e| Error::file(told(path), &e))?;
    Ok(found.here().is_some())
}

/// Keeps the content at a path as a blob, which is to have that name.
pub(super) fn keep(odb: &Odb<'_>, work: &Folder, path: &[u8], id: Oid) -> Result<(), Error> {
    if odb.exists(id) {
        return Ok(());
    }
    let why = |e| Error::file(told(path), &e);
    let ours = |e: git2::Error| Error::local(format_args!("keep {:?}", lossy(path)), &e);
    let (folder, name) = split(path);
    let changed = || Error::checkout(format!("{:?} changes while it is looked at", lossy(path)));
    let Found::Here(folder) = work.descend(folder).map_err(why)? else {
        return Err(changed());
    };
    let kept = match folder.file(name).map_err(why)? {
        Found::Here(file) => {
            let size = file.metadata().map_err(why)?.len();
            let length = usize::try_from(size).map_err(|_| changed())?;
            let mut writer = odb.writer(length, ObjectType::Blob).map_err(ours)?;
            let copied = std::io::copy(&mut file.take(size), &mut writer).map_err(why)?;
            if copied != size {
                return Err(changed());
            }
            writer.finalize().map_err(ours)?
        }
        Found::Absent | Found::Odd => {
            let link = folder.link(name).map_err(why)?;
            odb.write(ObjectType::Blob, &link).map_err(ours)?
        }
    };
    if kept == id { Ok(()) } else { Err(changed()) }
}

/// A path for a person.
pub(super) fn lossy(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(200)
        .collect()
}

fn told(path: &[u8]) -> String {
    format!("read {:?} in the workspace", lossy(path))
}
