//! Line ends on their way into the repository, as git's `convert.c` treats them where no configuration
//! says otherwise.

/// Whether content looks binary to someone who is to convert its line ends: another test than that for
/// showing it.
pub(super) fn is_binary(content: &[u8]) -> bool {
    let (mut odd, mut plain) = (0u64, 0u64);
    for (at, &byte) in content.iter().enumerate() {
        match byte {
            b'\r' if content.get(at + 1) != Some(&b'\n') => return true,
            b'\r' | b'\n' => {}
            0 => return true,
            127 => odd += 1,
            0x08 | b'\t' | 0x0c | 0x1b => plain += 1,
            1..32 => odd += 1,
            _ => plain += 1,
        }
    }
    // An end-of-file mark of old.
    odd -= u64::from(content.last() == Some(&0x1a));
    plain >> 7 < odd
}

/// Whether any line ends with CRLF.
pub(super) fn has_crlf(content: &[u8]) -> bool {
    content.windows(2).any(|pair| pair == b"\r\n")
}

/// With LF in the place of each CRLF.
pub(super) fn without_crlf(content: Vec<u8>) -> Vec<u8> {
    if !has_crlf(&content) {
        return content;
    }
    let is_kept = |(at, byte): (usize, &u8)| {
        (*byte != b'\r' || content.get(at + 1) != Some(&b'\n')).then_some(*byte)
    };
    content.iter().enumerate().filter_map(is_kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cr_before_a_lf_goes() {
        assert_eq!(without_crlf(b"a\r\nb\rc\r\r\n".to_vec()), b"a\nb\rc\r\n");
        assert!(is_binary(b"a\rb") && is_binary(b"\0") && !is_binary(b"a\r\nb\x1a"));
    }
}
