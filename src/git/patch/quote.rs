//! Names of files in patches, quoted as git quotes them (`quote.c`, with `core.quotePath`).

/// A path as git writes it: in C quotes where it holds anything unusual.
pub(super) fn quoted(path: &[u8]) -> Vec<u8> {
    prefixed(b"", path)
}

/// A path behind `a/` or `b/`.
pub(super) fn prefixed(prefix: &[u8], path: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| (b' '..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\');
    if path.iter().all(is_plain) {
        return [prefix, path].concat();
    }
    let mut text = vec![b'"'];
    text.extend_from_slice(prefix);
    for &byte in path {
        let letter = match byte {
            7 => b'a',
            8 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            11 => b'v',
            12 => b'f',
            b'\r' => b'r',
            b'"' | b'\\' => byte,
            byte if is_plain(&byte) => {
                text.push(byte);
                continue;
            }
            byte => {
                text.extend_from_slice(format!("\\{byte:03o}").as_bytes());
                continue;
            }
        };
        text.extend_from_slice(&[b'\\', letter]);
    }
    text.push(b'"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unusual_names_are_quoted() {
        assert_eq!(prefixed(b"a/", b"x y"), b"a/x y");
        assert_eq!(
            prefixed(b"a/", b"\xc3\xbc\n\"\\\x01"),
            br#""a/\303\274\n\"\\\001""#
        );
    }
}
