//! The index file, read without trust: versions 2 to 4, bounded, in order. Extensions are passed over;
//! those without which the entries can't be understood make it unreadable, with a sentence.

use git2::Oid;

use super::Error;
use super::objects::{SUBMODULE, SYMLINK, TYPE};

/// Longest index that is read, in bytes: some six million files.
pub(super) const MAX_INDEX: u64 = 1024 * 1024 * 1024;
/// Bytes of an entry before its flags.
const FIXED: usize = 60;

const ASSUME_VALID: u16 = 0x8000;
const EXTENDED: u16 = 0x4000;
const SKIP_WORKTREE: u16 = 0x4000;
const INTENT_TO_ADD: u16 = 0x2000;

/// What the index knows of the files.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: Vec<Entry>,
    paths: Vec<u8>,
    /// When it was written, in seconds of UNIX time: what was modified since may look unmodified.
    pub(super) written: i64,
}

/// One file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    path: (usize, usize),
    /// Seconds and nanoseconds.
    pub(super) changed: (u32, u32),
    /// Seconds and nanoseconds.
    pub(super) modified: (u32, u32),
    pub(super) inode: u32,
    pub(super) owner: (u32, u32),
    pub(super) size: u32,
    pub(super) mode: u32,
    pub(super) id: Oid,
    /// Zero, but for the sides of a conflict.
    pub(super) stage: u8,
    /// The worktree is not to be looked at for it.
    pub(super) is_exempt: bool,
    /// It is announced only, and its content in no commit to come.
    pub(super) is_announced: bool,
}

impl Index {
    /// Reads an index that was written at that time.
    pub(super) fn parse(data: &[u8], written: i64) -> Result<Self, Error> {
        let mut index = Self {
            written,
            ..Self::default()
        };
        let mut reader = Reader { data, at: 0 };
        index
            .fill(&mut reader)
            .ok_or_else(|| Error::checkout("the index of the repository is malformed"))??;
        Ok(index)
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn path(&self, entry: &Entry) -> &[u8] {
        self.paths
            .get(entry.path.0..entry.path.1)
            .unwrap_or_default()
    }

    fn fill(&mut self, reader: &mut Reader<'_>) -> Option<Result<(), Error>> {
        let magic = reader.take(4)?;
        let (version, count) = (reader.u32()?, reader.u32()? as usize);
        if magic != b"DIRC" || !(2..=4).contains(&version) {
            return None;
        }
        // No more than fit: a number alone takes no memory.
        self.entries
            .reserve(count.min(reader.data.len() / (FIXED + 4)));
        self.paths.reserve(reader.data.len() / 2);
        for _ in 0..count {
            let entry = self.entry(reader, version)?;
            if let Some(before) = self.entries.last() {
                let key = |entry: &Entry| (self.path(entry), entry.stage);
                if key(before) >= key(&entry) {
                    return None;
                }
            }
            self.entries.push(entry);
        }
        while reader.data.len() - reader.at > 20 {
            let name = reader.take(4)?;
            let size = reader.u32()? as usize;
            reader.take(size)?;
            if name[0].is_ascii_lowercase() {
                let what = match name {
                    b"link" => "is split in two files",
                    b"sdir" => "is a sparse one",
                    _ => "is of a kind that is not known here",
                };
                return Some(Err(Error::checkout(format!(
                    "the index of the repository {what}"
                ))));
            }
        }
        Some(Ok(()))
    }

    fn entry(&mut self, reader: &mut Reader<'_>, version: u32) -> Option<Entry> {
        let start = reader.at;
        let mut number = || reader.u32();
        let (changed, modified) = ((number()?, number()?), (number()?, number()?));
        let (_device, inode, mode) = (number()?, number()?, number()?);
        let (owner, size) = ((number()?, number()?), number()?);
        let id = Oid::from_bytes(reader.take(20)?).ok()?;
        let flags = reader.u16()?;
        let more = match flags & EXTENDED != 0 && version > 2 {
            true => reader.u16()?,
            false => 0,
        };
        let from = self.paths.len();
        if version == 4 {
            let strip = reader.offset()?;
            let before = self.entries.last().map_or((0, 0), |entry| entry.path);
            let kept = (before.1 - before.0).checked_sub(strip)?;
            self.paths.extend_from_within(before.0..before.0 + kept);
            let rest = reader.until_nul()?;
            self.paths.extend_from_slice(rest);
        } else {
            let name = reader.until_nul()?;
            self.paths.extend_from_slice(name);
            let whole = (reader.at - start).next_multiple_of(8);
            reader.at = start + whole;
        }
        let mode = match mode & TYPE {
            0o100_000 if mode & 0o100 != 0 => 0o100_755,
            0o100_000 => 0o100_644,
            SYMLINK => SYMLINK,
            SUBMODULE => SUBMODULE,
            _ => return None,
        };
        (self.paths.len() > from).then_some(Entry {
            path: (from, self.paths.len()),
            changed,
            modified,
            inode,
            owner,
            size,
            mode,
            id,
            stage: (flags >> 12 & 3) as u8,
            is_exempt: flags & ASSUME_VALID != 0 || more & SKIP_WORKTREE != 0,
            is_announced: more & INTENT_TO_ADD != 0,
        })
    }
}

struct Reader<'d> {
    data: &'d [u8],
    at: usize,
}

impl<'d> Reader<'d> {
    fn take(&mut self, count: usize) -> Option<&'d [u8]> {
        let bytes = self.data.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn until_nul(&mut self) -> Option<&'d [u8]> {
        let length = self.data.get(self.at..)?.iter().position(|&b| b == 0)?;
        let text = self.take(length)?;
        self.at += 1;
        Some(text)
    }

    /// A number of variable length, as in packs' offsets.
    fn offset(&mut self) -> Option<usize> {
        let mut byte = self.take(1)?[0];
        let mut value = usize::from(byte & 127);
        while byte & 128 != 0 {
            byte = self.take(1)?[0];
            value =
                (value.checked_add(1)?.checked_mul(128)?).checked_add(usize::from(byte & 127))?;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rubbish_is_no_index() {
        for bad in [
            &b""[..],
            b"DIRC",
            b"DIRC\0\0\0\x02\xff\xff\xff\xff",
            b"DIRC\0\0\0\x09\0\0\0\0",
            b"XXXX\0\0\0\x02\0\0\0\0",
        ] {
            assert!(Index::parse(bad, 0).is_err());
        }
        assert!(Index::parse(b"DIRC\0\0\0\x02\0\0\0\0", 0).is_ok());
    }
}
