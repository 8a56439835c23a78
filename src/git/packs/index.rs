//! Where in a pack an object is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use git2::Oid;

/// Where the names begin in an index, after its head and the table by first bytes.
const NAMES: u64 = 8 + 1024;

/// A pack and its index.
pub(super) struct Pack {
    index: File,
    pub(super) pack: File,
    /// How many names begin with this byte or a lower one.
    by_first: Vec<u32>,
}

impl Pack {
    /// Nothing where the index is of an older kind, or too short for what it claims to hold.
    pub(super) fn new(index: File, pack: File) -> Option<Self> {
        let mut head = [0; NAMES as usize];
        index.read_exact_at(&mut head, 0).ok()?;
        let (magic, table) = head.split_at(8);
        let by_first: Vec<u32> = table.chunks_exact(4).map(number).collect();
        let count = u64::from(*by_first.last()?);
        let is_sound = magic == b"\xfftOc\0\0\0\x02"
            && by_first.is_sorted()
            && index.metadata().ok()?.len() >= NAMES + count * 28 + 40;
        is_sound.then_some(Self {
            index,
            pack,
            by_first,
        })
    }

    /// Where in the pack an object begins.
    pub(super) fn find(&self, id: Oid) -> Option<u64> {
        let name = id.as_bytes();
        let first = usize::from(name[0]);
        let mut low = match first {
            0 => 0,
            _ => self.by_first[first - 1],
        };
        let mut high = self.by_first[first];
        // By halves, until the rest is read at once.
        while high - low > 256 {
            let middle = low + (high - low) / 2;
            let mut other = [0; 20];
            self.read(&mut other, NAMES + u64::from(middle) * 20)?;
            match other.as_slice() <= name {
                true => low = middle,
                false => high = middle,
            }
        }
        let mut names = [0; 256 * 20];
        let names = &mut names[..(high - low) as usize * 20];
        self.read(names, NAMES + u64::from(low) * 20)?;
        let at = names.chunks_exact(20).position(|other| other == name)?;
        let (at, count) = (
            u64::from(low) + at as u64,
            u64::from(*self.by_first.last()?),
        );
        let mut offset = [0; 4];
        self.read(&mut offset, NAMES + count * 24 + at * 4)?;
        let offset = u64::from(number(&offset));
        if offset < 1 << 31 {
            return Some(offset);
        }
        let mut far = [0; 8];
        let at = offset - (1 << 31);
        self.read(&mut far, NAMES + count * 28 + at * 8)?;
        Some(u64::from_be_bytes(far))
    }

    fn read(&self, into: &mut [u8], at: u64) -> Option<()> {
        self.index.read_exact_at(into, at).ok()
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}
