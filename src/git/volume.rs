//! Reading what a hostile hand has laid out: each step is opened relative to the folder before it,
//! never through a symlink, never waiting on a FIFO, and only regular files are read, up to a bound.
//! Writing there is no different.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

/// A file of `.git` that is being written; git takes such a name for a lock, and removes none.
const DRAFT: &[u8] = b"runledger.lock";

/// What a name turned out to be.
#[derive(Debug)]
pub(super) enum Found<T> {
    /// What was asked for.
    Here(T),
    /// Nothing has this name.
    Absent,
    /// Something has this name, but it is not what was asked for: a symlink, a FIFO, unreadable.
    Odd,
}

impl<T> Found<T> {
    /// What was asked for; nothing in all other cases.
    pub(super) fn here(self) -> Option<T> {
        match self {
            Found::Here(it) => Some(it),
            Found::Absent | Found::Odd => None,
        }
    }

    fn map<U>(self, f: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Found::Here(it) => Found::Here(f(it)),
            Found::Absent => Found::Absent,
            Found::Odd => Found::Odd,
        }
    }
}

/// An open folder of the volume.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens a mount point, whose path is ours.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(path, flags, Mode::empty())?))
    }

    /// The folder of this name, one step down.
    pub(super) fn folder(&self, name: impl AsRef<[u8]>) -> io::Result<Found<Folder>> {
        Ok(self.step(name.as_ref(), OFlag::O_DIRECTORY)?.map(Folder))
    }

    /// The regular file of this name, one step down.
    pub(super) fn file(&self, name: impl AsRef<[u8]>) -> io::Result<Found<File>> {
        // Without O_NONBLOCK the open of a FIFO would wait for a writer.
        let file = match self.step(name.as_ref(), OFlag::O_NONBLOCK)?.map(File::from) {
            Found::Here(file) => file,
            Found::Absent => return Ok(Found::Absent),
            Found::Odd => return Ok(Found::Odd),
        };
        Ok(if file.metadata()?.is_file() {
            Found::Here(file)
        } else {
            Found::Odd
        })
    }

    /// Takes away what has this name, one step down, whatever it is but a folder; a symlink itself.
    pub(super) fn remove(&self, name: impl AsRef<[u8]>) -> io::Result<()> {
        match unlinkat(&self.0, checked(name.as_ref())?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::EISDIR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes away the folder of this name, if it is one and empty; says whether it was.
    pub(super) fn remove_empty(&self, name: impl AsRef<[u8]>) -> io::Result<bool> {
        match unlinkat(&self.0, checked(name.as_ref())?, UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes away what has this name, a folder with all that is in it.
    pub(super) fn remove_all(&self, name: impl AsRef<[u8]>) -> io::Result<()> {
        let name = name.as_ref();
        if let Found::Here(folder) = self.folder(name)? {
            for (below, _) in folder.list(usize::MAX)? {
                folder.remove_all(below)?;
            }
            self.remove_empty(name)?;
        }
        self.remove(name)
    }

    /// The folder of this name, made where there is nothing of that name.
    pub(super) fn make_folder(&self, name: impl AsRef<[u8]>) -> io::Result<Folder> {
        let name = name.as_ref();
        match mkdirat(&self.0, checked(name)?, Mode::from_bits_truncate(0o777)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        match self.folder(name)? {
            Found::Here(folder) => Ok(folder),
            Found::Absent | Found::Odd => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Makes a file; there must be nothing of this name.
    pub(super) fn create(&self, name: &[u8], mode: u32, from: &mut dyn Read) -> io::Result<()> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let mut file = File::from(openat(&self.0, checked(name)?, flags, mode)?);
        io::copy(from, &mut file).map(drop)
    }

    /// Makes a symlink; there must be nothing of this name.
    pub(super) fn create_link(&self, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(symlinkat(target, &self.0, checked(name)?)?)
    }

    /// Puts a file in the place of what has this name, whole or not at all.
    pub(super) fn put(&self, name: &[u8], mode: u32, from: &mut dyn Read) -> io::Result<()> {
        self.remove(DRAFT)?;
        self.create(DRAFT, mode, from)?;
        self.remove_empty(name)?;
        Ok(renameat(&self.0, DRAFT, &self.0, checked(name)?)?)
    }

    fn step(&self, name: &[u8], extra: OFlag) -> io::Result<Found<OwnedFd>> {
        if !is_step(name) {
            return Ok(Found::Odd);
        }
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | extra;
        match openat(&self.0, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Found::Here(fd)),
            Err(Errno::ENOENT) => Ok(Found::Absent),
            Err(
                Errno::ELOOP
                | Errno::ENOTDIR
                | Errno::ENXIO
                | Errno::ENODEV
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ENAMETOOLONG
                | Errno::EINVAL,
            ) => Ok(Found::Odd),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The folder at the end of a path of such steps, each made where there is nothing.
    pub(super) fn descend_making(&self, path: &[u8]) -> io::Result<Folder> {
        let mut here = Folder(self.0.try_clone()?);
        for step in path.split(|&b| b == b'/').filter(|step| !step.is_empty()) {
            here = here.make_folder(step)?;
        }
        Ok(here)
    }

    /// The folder at the end of a path of such steps.
    pub(super) fn descend(&self, path: &[u8]) -> io::Result<Found<Folder>> {
        let mut here = Folder(self.0.try_clone()?);
        for step in path.split(|&b| b == b'/').filter(|step| !step.is_empty()) {
            match here.folder(step)? {
                Found::Here(next) => here = next,
                other => return Ok(other),
            }
        }
        Ok(Found::Here(here))
    }

    /// What a name of this folder is, itself and not what it points to; nothing where it is not there.
    pub(super) fn look(&self, name: &[u8]) -> io::Result<Option<FileStat>> {
        if !is_step(name) {
            return Ok(None);
        }
        match fstatat(&self.0, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where the symlink of this name leads, as text.
    pub(super) fn link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.0, name)?.into_vec())
    }

    /// Every name in this folder with its kind, but for `.` and `..`; no more than `most`.
    pub(super) fn list(&self, most: usize) -> io::Result<Vec<(Vec<u8>, Option<Type>)>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.0, ".", flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if names.len() == most {
                return Err(io::Error::other(format!(
                    "a folder holds more than {most} names"
                )));
            }
            names.push((name.to_vec(), entry.file_type()));
        }
        Ok(names)
    }

    /// The names in this folder, but for `.`, `..` and those that are not UTF-8; no more than `most`.
    pub(super) fn names(&self, most: usize) -> io::Result<Vec<String>> {
        let names = self.list(most)?.into_iter();
        Ok(names
            .filter_map(|(name, _)| String::from_utf8(name).ok())
            .collect())
    }
}

fn checked(name: &[u8]) -> io::Result<&[u8]> {
    if is_step(name) {
        Ok(name)
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

/// Whether a name is one step down, and nowhere else.
fn is_step(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && !name.contains(&0)
}

/// The whole of a file, or nothing if it is longer than `most`.
pub(super) fn read_all(file: File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn symlinks_fifos_and_steps_outside_are_never_opened() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("key"), "s3cr3t").unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        symlink(&secret, work.join("folder")).unwrap();
        symlink(secret.join("key"), work.join("file")).unwrap();
        nix::unistd::mkfifo(&work.join("fifo"), Mode::S_IRWXU).unwrap();
        std::fs::write(work.join("plain"), "hello").unwrap();

        let root = Folder::open(&work).unwrap();
        assert!(matches!(root.folder("folder").unwrap(), Found::Odd));
        assert!(matches!(root.file("file").unwrap(), Found::Odd));
        assert!(matches!(root.file("fifo").unwrap(), Found::Odd));
        assert!(matches!(root.folder("..").unwrap(), Found::Odd));
        assert!(matches!(root.file("folder/key").unwrap(), Found::Odd));
        assert!(matches!(root.file("nothing").unwrap(), Found::Absent));
        let plain = root.file("plain").unwrap().here().unwrap();
        assert_eq!(read_all(plain, 5).unwrap().unwrap(), b"hello");
        let plain = root.file("plain").unwrap().here().unwrap();
        assert!(read_all(plain, 4).unwrap().is_none());
    }
}
