//! Differences, of which most of a pack is made.

use super::MAX_SMALL;

/// What a difference makes of what it starts from: `git help pack-format`, "Deltified representation".
pub(super) fn apply(base: &[u8], delta: &[u8]) -> Option<Vec<u8>> {
    let mut rest = delta;
    if small(&mut rest)? != base.len() {
        return None;
    }
    let size = small(&mut rest)?;
    let mut content = Vec::with_capacity(size);
    while let Some((&code, after)) = rest.split_first() {
        rest = after;
        let piece = if code & 128 != 0 {
            let mut take = |bits: u8| {
                let mut value = 0;
                for bit in (0..8).filter(|bit| bits & 1 << bit != 0) {
                    let (&byte, after) = rest.split_first()?;
                    rest = after;
                    value |= usize::from(byte) << (8 * (bit & 3));
                }
                Some(value)
            };
            let (from, length) = (take(code & 15)?, take(code & 0x70)?);
            let length = if length == 0 { 0x10000 } else { length };
            base.get(from..from.checked_add(length)?)?
        } else {
            let (piece, after) = rest
                .split_at_checked(usize::from(code))
                .filter(|_| code > 0)?;
            rest = after;
            piece
        };
        if content.len() + piece.len() > size {
            return None;
        }
        content.extend_from_slice(piece);
    }
    (content.len() == size).then_some(content)
}

/// A size, where it is one of what is read here.
fn small(rest: &mut &[u8]) -> Option<usize> {
    let size = usize::try_from(varying(rest)?).ok()?;
    (size <= MAX_SMALL).then_some(size)
}

/// A number of seven bits a byte, the lowest first; nothing where it has no end, or more than 63 bits.
pub(in crate::git) fn varying(rest: &mut &[u8]) -> Option<u64> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (&byte, after) = rest.split_first().filter(|_| shift < 63)?;
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        shift += 7;
        if byte & 128 == 0 {
            return Some(value);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_may_not_reach_out_of_what_it_starts_from_nor_grow_beyond_what_it_says() {
        let base = b"0123456789";
        assert_eq!(
            apply(base, &[10, 6, 0x91, 2, 4, 2, b'a', b'b']).unwrap(),
            b"2345ab"
        );
        for bad in [
            &[][..],
            &[9, 4, 0x91, 2, 4],
            &[10, 4, 0x91, 7, 4],
            &[10, 4, 0x91, 2],
            &[10, 3, 0x91, 2, 4],
            &[10, 5, 0x91, 2, 4],
            &[10, 4, 0],
            &[10, 4, 5, b'a'],
            &[10, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
            &[0x80; 20],
        ] {
            assert!(apply(base, bad).is_none(), "{bad:?}");
        }
    }
}
