//! Patterns of `.gitignore` and `.gitattributes`, matched as git's `wildmatch.c` and `dir.c` do, quirks
//! included. A pattern may be hostile: its work is bounded.

use std::cell::Cell;

/// Steps after which a match is given up as none.
const FUEL: u32 = 1_000_000;
/// Most stars in a pattern that are followed.
const MAX_STARS: u32 = 128;

/// A pattern below a folder.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: Vec<u8>,
    /// Length of what stands before the first special character.
    literal: usize,
    /// It has no slash, so that it is held against the last part of a path.
    base_name_only: bool,
    /// It ends with a slash.
    pub(super) folders_only: bool,
}

impl Pattern {
    /// Reads a pattern, without the `!` of a negation.
    pub(super) fn new(text: &[u8]) -> Self {
        let (text, folders_only) = match text.strip_suffix(b"/") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let base_name_only = !text.contains(&b'/');
        let text = text.strip_prefix(b"/").unwrap_or(text);
        let is_special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
        Self {
            literal: text.iter().position(is_special).unwrap_or(text.len()),
            text: text.to_vec(),
            base_name_only,
            folders_only,
        }
    }

    /// Whether it fits a path, which is given from the folder of the pattern's file.
    pub(super) fn fits(&self, path: &[u8]) -> bool {
        if self.base_name_only {
            let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
            if self.literal == self.text.len() {
                return name == self.text;
            }
            return is_match(&self.text, name, false);
        }
        // git cuts the literal beginning off first, which a `**` behind it can tell.
        let Some(rest) = path.strip_prefix(&self.text[..self.literal]) else {
            return false;
        };
        match &self.text[self.literal..] {
            b"" => rest.is_empty(),
            pattern => is_match(pattern, rest, true),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Yes,
    No,
    /// No longer text can match either.
    Never,
    /// No match before the next `**`.
    NotBeforeStars,
}

fn is_match(pattern: &[u8], text: &[u8], path: bool) -> bool {
    let matcher = Matcher {
        pattern,
        text,
        path,
        fuel: Cell::new(FUEL),
        depth: Cell::new(0),
    };
    matcher.run(0, 0, 0) == Outcome::Yes
}

struct Matcher<'a> {
    pattern: &'a [u8],
    text: &'a [u8],
    /// A slash is matched by `/` and `**` only.
    path: bool,
    fuel: Cell<u32>,
    depth: Cell<u32>,
}

impl Matcher<'_> {
    /// NUL past the end: neither names nor patterns hold one.
    fn p(&self, at: usize) -> u8 {
        self.pattern.get(at).copied().unwrap_or(0)
    }

    fn t(&self, at: usize) -> u8 {
        self.text.get(at).copied().unwrap_or(0)
    }

    /// From here on; `start` is where this pattern begins for the sake of a leading `**`.
    fn run(&self, p: usize, t: usize, start: usize) -> Outcome {
        let depth = self.depth.get();
        if depth == MAX_STARS {
            return Outcome::Never;
        }
        self.depth.set(depth + 1);
        let outcome = self.walk(p, t, start);
        self.depth.set(depth);
        outcome
    }

    fn walk(&self, mut p: usize, mut t: usize, start: usize) -> Outcome {
        while self.p(p) != 0 {
            let Some(left) = self.fuel.get().checked_sub(1) else {
                return Outcome::Never;
            };
            self.fuel.set(left);
            let here = self.t(t);
            if here == 0 && self.p(p) != b'*' {
                return Outcome::Never;
            }
            match self.p(p) {
                b'?' if self.path && here == b'/' => return Outcome::No,
                b'?' => {}
                b'*' => match self.stars(p, t, start) {
                    Step::On(next_p, next_t) => (p, t) = (next_p, next_t),
                    Step::Done(outcome) => return outcome,
                },
                b'[' => match self.set(p, here) {
                    None => return Outcome::Never,
                    Some((_, false)) => return Outcome::No,
                    Some((_, true)) if self.path && here == b'/' => return Outcome::No,
                    Some((end, true)) => p = end,
                },
                mut byte => {
                    if byte == b'\\' {
                        p += 1;
                        byte = self.p(p);
                    }
                    if byte != here {
                        return Outcome::No;
                    }
                }
            }
            p += 1;
            t += 1;
        }
        if self.t(t) == 0 {
            Outcome::Yes
        } else {
            Outcome::No
        }
    }

    fn stars(&self, first: usize, mut t: usize, start: usize) -> Step {
        let mut p = first + 1;
        let mut over_slashes = !self.path;
        if self.p(p) == b'*' {
            while self.p(p) == b'*' {
                p += 1;
            }
            let begins = first == start || self.p(first - 1) == b'/';
            let ends = matches!(self.p(p), 0 | b'/') || self.p(p) == b'\\' && self.p(p + 1) == b'/';
            if self.path && begins && ends {
                if self.p(p) == b'/' && self.run(p + 1, t, p + 1) == Outcome::Yes {
                    return Step::Done(Outcome::Yes);
                }
                over_slashes = true;
            }
        }
        let next_slash = || self.text[t..].iter().position(|&b| b == b'/');
        if self.p(p) == 0 {
            let stops = !over_slashes && next_slash().is_some();
            return Step::Done(if stops { Outcome::No } else { Outcome::Yes });
        }
        if !over_slashes && self.p(p) == b'/' {
            return match next_slash() {
                None => Step::Done(Outcome::No),
                Some(far) => Step::On(p, t + far),
            };
        }
        let literal = Some(self.p(p)).filter(|byte| !matches!(byte, b'*' | b'?' | b'[' | b'\\'));
        while self.t(t) != 0 {
            if let Some(literal) = literal {
                while self.t(t) != 0 && (over_slashes || self.t(t) != b'/') && self.t(t) != literal
                {
                    t += 1;
                }
                if self.t(t) != literal {
                    return Step::Done(Outcome::No);
                }
            }
            match self.run(p, t, p) {
                Outcome::No if !over_slashes && self.t(t) == b'/' => {
                    return Step::Done(Outcome::NotBeforeStars);
                }
                Outcome::No => {}
                Outcome::NotBeforeStars if over_slashes => {}
                outcome => return Step::Done(outcome),
            }
            t += 1;
        }
        Step::Done(Outcome::Never)
    }

    /// A set in brackets: where it ends and whether the byte is in it; nothing where it is malformed.
    fn set(&self, open: usize, byte: u8) -> Option<(usize, bool)> {
        let mut p = open + 1;
        let negated = matches!(self.p(p), b'!' | b'^');
        if negated {
            p += 1;
        }
        let (mut found, mut before) = (false, 0);
        loop {
            let mut this = self.p(p);
            match this {
                0 => return None,
                b'\\' => {
                    p += 1;
                    this = self.p(p);
                    if this == 0 {
                        return None;
                    }
                    found |= this == byte;
                }
                b'-' if before != 0 && !matches!(self.p(p + 1), 0 | b']') => {
                    p += 1;
                    if self.p(p) == b'\\' {
                        p += 1;
                    }
                    if self.p(p) == 0 {
                        return None;
                    }
                    found |= (before..=self.p(p)).contains(&byte);
                    this = 0;
                }
                b'[' if self.p(p + 1) == b':' => {
                    let name = p + 2;
                    let end = (name..).find(|&at| matches!(self.p(at), 0 | b']'))?;
                    if self.p(end) == 0 {
                        return None;
                    }
                    if end == name || self.p(end - 1) != b':' {
                        found |= byte == b'[';
                    } else {
                        found |= is_in_class(&self.pattern[name..end - 1], byte)?;
                        p = end;
                        this = 0;
                    }
                }
                _ => found |= this == byte,
            }
            before = this;
            p += 1;
            if self.p(p) == b']' {
                return Some((p, found != negated));
            }
        }
    }
}

enum Step {
    /// Go on from these places, which are matched.
    On(usize, usize),
    Done(Outcome),
}

fn is_in_class(name: &[u8], byte: u8) -> Option<bool> {
    Some(match name {
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"alpha" => byte.is_ascii_alphabetic(),
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"cntrl" => byte.is_ascii_control(),
        b"digit" => byte.is_ascii_digit(),
        b"graph" => byte.is_ascii_graphic(),
        b"lower" => byte.is_ascii_lowercase(),
        b"print" => byte.is_ascii_graphic() || byte == b' ',
        b"punct" => byte.is_ascii_punctuation(),
        b"space" => byte.is_ascii_whitespace() || byte == 0x0b,
        b"upper" => byte.is_ascii_uppercase(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern.as_bytes()).fits(path.as_bytes())
    }

    #[test]
    fn patterns_fit_what_git_says_they_fit() {
        for (pattern, path) in [
            ("*.o", "a.o"),
            ("*.o", "x/y/a.o"),
            ("/a", "a"),
            ("a/*", "a/b"),
            ("a/**", "a/b/c"),
            ("**/c", "a/b/c"),
            ("**/c", "c"),
            ("a/**/c", "a/c"),
            ("a/**/c", "a/b/b/c"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[[:digit:]]", "7"),
            ("[]-]", "]"),
            ("\\*", "*"),
            ("foo**/bar", "foo/x/bar"),
            ("a/*/c", "a/b/c"),
            ("b/", "a/b"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/a", "b/a"),
            ("a/*", "a/b/c"),
            ("a/*.o", "b/a/x.o"),
            ("[a-c]x", "dx"),
            ("a?c", "a/c"),
            ("a/b", "x/a/b"),
            ("[z", "z"),
            ("a\\", "a"),
            ("*/c", "a/b/c"),
        ] {
            // `?` without a slash in the pattern is held against the base name only.
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_made_to_take_for_ever_does_not() {
        let pattern = "**/".repeat(40) + "x" + &"*a".repeat(200) + "b";
        assert!(!fits(&pattern, &"a/".repeat(2000)));
        let pattern = "*a".repeat(500) + "b";
        assert!(!fits(&pattern, &"a".repeat(5000)));
    }
}
