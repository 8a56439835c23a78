//! Looking through a foreign pack before libgit2 does: every object's kind and size, by inflating it.
//! What would take more memory than a supervisor has is found here, where nothing is held.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::ZlibDecoder;

use super::loose::MAX_OBJECT;
use super::objects::MAX_META;
use super::packs::{NAME_DELTA, OFFSET_DELTA, varying};

/// Largest object that is stored as a difference, in bytes: libgit2 holds it and what it is made from
/// in memory. git itself makes none of more than 512 MiB.
const MAX_DELTA: u64 = 256 * 1024 * 1024;
/// Least bytes that an object takes.
const MIN_OBJECT: u64 = 9;
/// Bytes before the first object, and of the hash behind the last.
const HEAD: u64 = 12;
const TAIL: u64 = 20;

const BLOB: u8 = 3;
/// Stands for what a difference to an object of another pack comes to.
const UNKNOWN: u8 = 0;

/// Looks through a pack of so many bytes; an error says what is wrong with it.
pub(super) fn check(file: File, length: u64) -> io::Result<()> {
    let mut pack = Pack {
        file: BufReader::with_capacity(256 * 1024, file),
        at: 0,
        kinds: Vec::new(),
    };
    let mut head = [0; HEAD as usize];
    pack.read_exact(&mut head)?;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if &head[..4] != b"PACK" || !matches!(word(4), 2 | 3) {
        return Err(io::Error::other("it is no pack"));
    }
    let count = u64::from(word(8));
    if count > length.saturating_sub(HEAD + TAIL) / MIN_OBJECT {
        return Err(io::Error::other(format!(
            "it is too short for the {count} objects that it claims to hold"
        )));
    }
    for _ in 0..count {
        pack.object()?;
    }
    if pack.at + TAIL != length {
        return Err(io::Error::other("something stands behind its last object"));
    }
    Ok(())
}

struct Pack {
    file: BufReader<File>,
    at: u64,
    /// Where each object begins, and its kind in the end.
    kinds: Vec<(u64, u8)>,
}

impl Pack {
    fn object(&mut self) -> io::Result<()> {
        let start = self.at;
        let mut byte = self.byte()?;
        let kind = byte >> 4 & 7;
        let mut size = u64::from(byte & 15);
        let mut shift = 4;
        while byte & 128 != 0 {
            byte = self.byte()?;
            if shift > 56 {
                return Err(io::Error::other("the size of an object is malformed"));
            }
            size |= u64::from(byte & 127) << shift;
            shift += 7;
        }
        let kind = match kind {
            1..=4 => {
                let most = if kind == BLOB { MAX_OBJECT } else { MAX_META };
                bounded(size, most)?;
                self.inflate(size)?;
                kind
            }
            OFFSET_DELTA => {
                let kind = self.base(start)?;
                self.delta(size, kind)?;
                kind
            }
            NAME_DELTA => {
                self.read_exact(&mut [0; 20])?;
                self.delta(size, UNKNOWN)?;
                UNKNOWN
            }
            _ => return Err(io::Error::other("an object is of no known kind")),
        };
        self.kinds.push((start, kind));
        Ok(())
    }

    /// The kind of the object that a difference starts from, which stands before it.
    fn base(&mut self, start: u64) -> io::Result<u8> {
        let malformed = || io::Error::other("an object is made from one that is not there");
        let mut byte = self.byte()?;
        let mut back = u64::from(byte & 127);
        while byte & 128 != 0 {
            byte = self.byte()?;
            back = back
                .checked_add(1)
                .and_then(|back| back.checked_mul(128))
                .ok_or_else(malformed)?
                + u64::from(byte & 127);
        }
        let base = start.checked_sub(back).ok_or_else(malformed)?;
        let at = self.kinds.binary_search_by_key(&base, |(at, _)| *at);
        at.map(|at| self.kinds[at].1).map_err(|_| malformed())
    }

    /// A difference: what it says of the sizes before and after it.
    fn delta(&mut self, size: u64, kind: u8) -> io::Result<()> {
        let most = match kind {
            BLOB | UNKNOWN => MAX_DELTA,
            _ => MAX_META,
        };
        bounded(size, MAX_DELTA)?;
        let head = self.inflate(size)?;
        let mut rest = head.as_slice();
        for _ in 0..2 {
            let size = varying(&mut rest);
            let size = size.ok_or_else(|| io::Error::other("a difference is malformed"))?;
            bounded(size, most)?;
        }
        Ok(())
    }

    /// Passes over an object's content, which must have that size, and gives its first bytes.
    fn inflate(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut content = ZlibDecoder::new(self);
        let mut head = Vec::new();
        content.by_ref().take(size.min(20)).read_to_end(&mut head)?;
        let rest = io::copy(&mut content.by_ref().take(size), &mut io::sink())?;
        if head.len() as u64 + rest != size || content.read(&mut [0])? != 0 {
            return Err(io::Error::other(
                "an object has not the size that it claims",
            ));
        }
        Ok(head)
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

impl Read for Pack {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl BufRead for Pack {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.file.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.file.consume(count);
        self.at += count as u64;
    }
}

fn bounded(size: u64, most: u64) -> io::Result<()> {
    if size <= most {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "one of its objects has {size} bytes, and {most} are taken"
    )))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Seek, Write};

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    /// A pack of these objects: kind, claimed size, content.
    fn pack(objects: &[(u8, u64, &[u8])], claims: u32) -> io::Result<()> {
        let mut bytes = b"PACK\0\0\0\x02".to_vec();
        bytes.extend(claims.to_be_bytes());
        for (kind, size, content) in objects {
            let mut left = size >> 4;
            let more = |left: u64| if left > 0 { 128 } else { 0 };
            bytes.push(kind << 4 | (size & 15) as u8 | more(left));
            while left > 0 {
                let byte = (left & 127) as u8;
                left >>= 7;
                bytes.push(byte | more(left));
            }
            if *kind == NAME_DELTA {
                bytes.extend([7; 20]);
            }
            let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
            deflate.write_all(content).unwrap();
            bytes.extend(deflate.finish().unwrap());
        }
        bytes.extend([0; 20]);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        check(file, bytes.len() as u64)
    }

    #[test]
    fn a_sound_pack_is_passed_and_lies_about_sizes_and_numbers_are_not() {
        pack(&[(3, 5, b"hello"), (1, 2, b"ab")], 2).unwrap();
        assert!(pack(&[(3, 5, b"hello")], u32::MAX).is_err());
        assert!(pack(&[(3, 5, b"hello")], 2).is_err());
        assert!(pack(&[(3, 4, b"hello")], 1).is_err());
        assert!(pack(&[(3, 6, b"hello")], 1).is_err());
        assert!(pack(&[(5, 5, b"hello")], 1).is_err());
        assert!(pack(&[(3, 5, b"hello"), (3, 5, b"hello")], 1).is_err());
    }

    #[test]
    fn commits_and_differences_out_of_all_proportion_are_named_by_their_size() {
        let why = pack(&[(1, MAX_META + 1, b"x")], 1).unwrap_err();
        assert!(why.to_string().contains("16777217 bytes"), "{why}");
        // Four bytes that come to four gigabytes.
        let head = [1, 0x80, 0x80, 0x80, 0x80, 0x10];
        let why = pack(&[(NAME_DELTA, head.len() as u64, &head)], 1).unwrap_err();
        assert!(why.to_string().contains("4294967296 bytes"), "{why}");
        pack(&[(NAME_DELTA, 3, &[1, 0x80, 1])], 1).unwrap();
    }
}
