//! The files of the worktree as they would be committed: opened step by step, line ends as the attributes
//! ask for, named by the hash that they would have.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;

use git2::{ObjectType, Oid};

use super::Ground;
use crate::git::attributes::{Attributes, LineEnds};
use crate::git::content::OnDisk;
use crate::git::index_file::Index;
use crate::git::line_ends;
use crate::git::lines::MAX_READ;
use crate::git::objects::{Objects, SYMLINK};
use crate::git::tree_diff::Side;
use crate::git::volume::{Folder, read_all};
use crate::git::worktree::Fate;
use crate::git::{Error, threads};

/// The files of the worktree, as they would be committed.
pub(super) struct Disk<'d> {
    objects: &'d Objects<'d>,
    work: &'d Folder,
    /// Files whose line ends are treated, and what the index has of them.
    pub(super) treated: HashMap<Vec<u8>, (LineEnds, Oid)>,
}

impl<'d> Disk<'d> {
    /// With the line ends that the attributes ask for in files that may differ.
    pub(super) fn new(
        ground: &Ground<'d>,
        attributes: &Attributes<'_>,
        index: &Index,
        known: &[(usize, Fate)],
    ) -> Self {
        let mut treated = HashMap::new();
        for (at, fate) in known {
            if let Fate::Suspect(mode) = fate
                && *mode != SYMLINK
            {
                let entry = &index.entries()[*at];
                let path = index.path(entry);
                match attributes.line_ends(path) {
                    LineEnds::Keep => {}
                    ends => drop(treated.insert(path.to_vec(), (ends, entry.id))),
                }
            }
        }
        Self {
            objects: ground.objects,
            work: ground.work,
            treated,
        }
    }

    /// The name that each content would have as a blob; nothing where it can't be read.
    pub(super) fn hash_all(&self, sides: &[Side]) -> Result<Vec<Option<Oid>>, Error> {
        threads::each(sides, |side| self.hash(side))
    }

    fn hash(&self, side: &Side) -> Result<Option<Oid>, Error> {
        let id = |done: Result<Oid, git2::Error>| {
            done.map(Some).map_err(|e| Error::local(told(side), &e))
        };
        if side.mode == SYMLINK {
            return id(Oid::hash_object(ObjectType::Blob, &self.read(side)?));
        }
        let Some(file) = self.open(side)? else {
            return Ok(None);
        };
        let size = file.metadata().map_err(|e| Error::file(told(side), &e))?;
        if size.len() > MAX_READ {
            // By its descriptor: the name could be another file's by now.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            return id(Oid::hash_file(ObjectType::Blob, path));
        }
        id(Oid::hash_object(
            ObjectType::Blob,
            &self.content(side, file)?,
        ))
    }

    pub(super) fn folder_of<'s>(
        &self,
        side: &'s Side,
    ) -> Result<Option<(Folder, &'s [u8])>, Error> {
        let name = side.base_name();
        let folder = &side.path[..side.path.len() - name.len()];
        let folder = self.work.descend(folder);
        let folder = folder.map_err(|e| Error::file(told(side), &e))?;
        Ok(folder.here().map(|folder| (folder, name)))
    }

    /// Nothing where it is no file, or gone, or not to be read by us.
    fn open(&self, side: &Side) -> Result<Option<File>, Error> {
        let Some((folder, name)) = self.folder_of(side)? else {
            return Ok(None);
        };
        let file = folder.file(name);
        Ok(file.map_err(|e| Error::file(told(side), &e))?.here())
    }

    fn content(&self, side: &Side, file: File) -> Result<Vec<u8>, Error> {
        let bytes = read_all(file, MAX_READ).map_err(|e| Error::file(told(side), &e))?;
        let bytes = bytes.unwrap_or_default();
        let Some((ends, indexed)) = self.treated.get(&side.path) else {
            return Ok(bytes);
        };
        let keeps =
            *ends == LineEnds::Auto && (line_ends::is_binary(&bytes) || self.has_crlf(*indexed));
        Ok(if keeps {
            bytes
        } else {
            line_ends::without_crlf(bytes)
        })
    }

    /// Whether the index has the file with CRLF, which then stay.
    fn has_crlf(&self, id: Oid) -> bool {
        let is_small = self
            .objects
            .blob_size(id)
            .is_ok_and(|size| size <= MAX_READ);
        let blob = is_small.then(|| self.objects.blob(id).ok()).flatten();
        blob.is_some_and(|blob| {
            !line_ends::is_binary(blob.data()) && line_ends::has_crlf(blob.data())
        })
    }
}

impl OnDisk for Disk<'_> {
    fn read(&self, side: &Side) -> Result<Vec<u8>, Error> {
        if side.mode == SYMLINK {
            let link = self
                .folder_of(side)?
                .map(|(folder, name)| folder.link(name));
            let link = link.transpose().map_err(|e| Error::file(told(side), &e))?;
            return Ok(link.unwrap_or_default());
        }
        match self.open(side)? {
            Some(file) => self.content(side, file),
            None => Ok(Vec::new()),
        }
    }

    fn size(&self, side: &Side) -> Result<u64, Error> {
        let stat = self
            .folder_of(side)?
            .map(|(folder, name)| folder.look(name));
        let stat = stat.transpose().map_err(|e| Error::file(told(side), &e))?;
        Ok(stat.flatten().map_or(0, |stat| stat.st_size.unsigned_abs()))
    }
}

/// What is said to have failed.
pub(super) fn told(side: &Side) -> String {
    format!(
        "read {:?} in the worktree",
        String::from_utf8_lossy(&side.path)
    )
}
