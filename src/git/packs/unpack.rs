//! What stands at a place of a pack: the head of an object, and its content inflated.

use std::os::unix::fs::FileExt;

use flate2::{Decompress, FlushDecompress, Status};
use git2::{ObjectType, Oid};

use super::index::Pack;

/// Bytes that are read at once from a pack, and of these before what is looked for: what an object is made
/// from stands before it, and often close.
const WINDOW: usize = 32 * 1024;
const BEFORE: u64 = 24 * 1024;

/// Kinds of what is stored as a difference: the base is named by how far back it is, or by its name.
pub(in crate::git) const OFFSET_DELTA: u8 = 6;
pub(in crate::git) const NAME_DELTA: u8 = 7;

/// What stands before an object's content.
pub(super) struct Head {
    /// Nothing where it is a difference.
    pub(super) kind: Option<ObjectType>,
    /// Of what is inflated.
    pub(super) size: usize,
    /// Where that begins which a difference starts from.
    pub(super) base: Option<u64>,
    /// Where the content begins.
    pub(super) content: u64,
}

impl Head {
    pub(super) fn read(pack: &Pack, hands: &mut Hands, at: u64) -> Option<Self> {
        // Two numbers of seven bits a byte, or one and a name: no more than this.
        let bytes = hands.at(pack, at, 32)?;
        let mut rest = bytes.iter();
        let mut byte = *rest.next()?;
        let kind = byte >> 4 & 7;
        let (mut size, mut shift) = (u64::from(byte & 15), 4);
        while byte & 128 != 0 {
            byte = *rest.next().filter(|_| shift < 32)?;
            size |= u64::from(byte & 127) << shift;
            shift += 7;
        }
        let mut base = None;
        let kind = match kind {
            1 => Some(ObjectType::Commit),
            2 => Some(ObjectType::Tree),
            3 => Some(ObjectType::Blob),
            4 => Some(ObjectType::Tag),
            OFFSET_DELTA => {
                byte = *rest.next()?;
                let mut value = u64::from(byte & 127);
                while byte & 128 != 0 {
                    byte = *rest.next().filter(|_| value < 1 << 48)?;
                    value = (value + 1) << 7 | u64::from(byte & 127);
                }
                base = Some(at.checked_sub(value)?);
                None
            }
            NAME_DELTA => {
                let name = rest.as_slice().get(..20)?;
                rest = rest.as_slice()[20..].iter();
                base = Some(pack.find(Oid::from_bytes(name).ok()?)?);
                None
            }
            _ => return None,
        };
        Some(Self {
            kind,
            size: usize::try_from(size).ok()?,
            base,
            content: at + (bytes.len() - rest.len()) as u64,
        })
    }
}

/// What one thread reads with: made once, since making it takes as long as reading a small object.
pub(super) struct Hands {
    inflate: Decompress,
    /// A piece of a pack, and where it begins there.
    window: Vec<u8>,
    start: u64,
    /// Which pack that is.
    number: usize,
}

impl Hands {
    pub(super) fn new() -> Self {
        Self {
            inflate: Decompress::new(true),
            window: Vec::new(),
            start: 0,
            number: 0,
        }
    }

    /// Forgets what was read of another pack.
    pub(super) fn turn_to(&mut self, number: usize) {
        if self.number != number {
            self.window.clear();
        }
        self.number = number;
    }

    /// What stands at a place: at least so many bytes, unless the pack ends before.
    fn at(&mut self, pack: &Pack, at: u64, least: u64) -> Option<&[u8]> {
        let end = self.start + self.window.len() as u64;
        if at < self.start || at + least > end {
            self.fill(pack, at.saturating_sub(BEFORE))?;
        }
        let bytes = self.window.get((at - self.start) as usize..)?;
        Some(&bytes[..bytes.len().min(usize::try_from(least).ok()?)])
    }

    fn fill(&mut self, pack: &Pack, start: u64) -> Option<()> {
        self.window.resize(WINDOW, 0);
        self.start = start;
        let mut read = 0;
        while read < WINDOW {
            match pack
                .pack
                .read_at(&mut self.window[read..], start + read as u64)
            {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.window.clear();
                    return None;
                }
            }
        }
        self.window.truncate(read);
        Some(())
    }

    /// What is compressed at a place, which must come to that size.
    pub(super) fn inflate(&mut self, pack: &Pack, mut at: u64, size: usize) -> Option<Vec<u8>> {
        self.inflate.reset(true);
        let mut content = Vec::with_capacity(size.max(1));
        self.at(pack, at, 1)?;
        loop {
            let input = self.window.get(usize::try_from(at - self.start).ok()?..)?;
            let before = self.inflate.total_in();
            let flush = FlushDecompress::Finish;
            let status = self.inflate.decompress_vec(input, &mut content, flush);
            let read = self.inflate.total_in() - before;
            match status {
                Ok(Status::StreamEnd) => return (content.len() == size).then_some(content),
                // More of it stands behind the window.
                Ok(_) if read == input.len() as u64 && content.len() <= size => {
                    at += read;
                    self.fill(pack, at)?;
                    if self.window.is_empty() {
                        return None;
                    }
                }
                _ => return None,
            }
        }
    }
}
