//! Attributes of paths, as git reads them from `.gitattributes`: which files are text, and how their
//! lines end. No driver or filter that they name is ever run, since no configuration is read.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::wildmatch::Pattern;

/// Longest line that is heeded, as in git.
const MAX_LINE: usize = 2048;
/// Longest file of attributes that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1024 * 1024;
/// Macros within macros.
const MAX_NESTING: u32 = 8;

/// What an attribute says of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Set,
    Unset,
    Is(Vec<u8>),
}

/// How a file's lines are treated on their way into the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineEnds {
    /// They are left alone.
    Keep,
    /// CRLF becomes LF.
    Text,
    /// CRLF becomes LF, if the content looks like text and the index has none.
    Auto,
}

/// Gives the `.gitattributes` of a folder (`""` or `a/b`).
pub(super) type Source<'s> = Box<dyn Fn(&[u8]) -> Option<Vec<u8>> + 's>;

/// The attributes of one state of a repository.
pub(super) struct Attributes<'s> {
    source: Source<'s>,
    folders: RefCell<HashMap<Vec<u8>, Rc<Vec<Rule>>>>,
    /// `info/attributes`, which wins over all.
    info: Rc<Vec<Rule>>,
    macros: RefCell<HashMap<Vec<u8>, Vec<State>>>,
}

type State = (Vec<u8>, Option<Value>);

struct Rule {
    pattern: Pattern,
    states: Vec<State>,
}

impl<'s> Attributes<'s> {
    /// From the files that `source` gives, and `info/attributes`.
    pub(super) fn new(source: Source<'s>, info: Option<&[u8]>) -> Self {
        let mut macros = HashMap::new();
        let unset = |name: &[u8]| (name.to_vec(), Some(Value::Unset));
        macros.insert(
            b"binary".to_vec(),
            vec![unset(b"diff"), unset(b"merge"), unset(b"text")],
        );
        let info = Rc::new(parse(info.unwrap_or_default(), Some(&mut macros)));
        Self {
            source,
            folders: RefCell::default(),
            info,
            macros: RefCell::new(macros),
        }
    }

    /// Whether the attribute `diff` calls a path text or binary; nothing where its content decides.
    pub(super) fn is_text(&self, path: &[u8]) -> Option<bool> {
        match self.value(path, b"diff")? {
            Value::Set => Some(true),
            Value::Unset => Some(false),
            Value::Is(_) => None,
        }
    }

    /// What happens to a path's line ends on their way into the repository.
    pub(super) fn line_ends(&self, path: &[u8]) -> LineEnds {
        let text = match self.value(path, b"text") {
            Some(Value::Is(word)) if word != b"auto" && word != b"input" => None,
            value => value,
        };
        let text = text.or_else(|| self.value(path, b"crlf"));
        match text {
            Some(Value::Unset) => LineEnds::Keep,
            Some(Value::Set) => LineEnds::Text,
            Some(Value::Is(word)) if word == b"input" => LineEnds::Text,
            Some(Value::Is(word)) if word == b"auto" => LineEnds::Auto,
            _ => match self.value(path, b"eol") {
                Some(Value::Is(word)) if word == b"lf" || word == b"crlf" => LineEnds::Text,
                _ => LineEnds::Keep,
            },
        }
    }

    fn value(&self, path: &[u8], name: &[u8]) -> Option<Value> {
        let mut all: Vec<(usize, Rc<Vec<Rule>>)> = vec![(0, self.folder(b""))];
        for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            all.push((at + 1, self.folder(&path[..at])));
        }
        all.push((0, self.info.clone()));
        let mut said = HashMap::new();
        for (base, rules) in all.iter().rev() {
            for rule in rules.iter().rev() {
                if !rule.pattern.folders_only && rule.pattern.fits(&path[*base..]) {
                    self.note(&rule.states, &mut said, 0);
                }
            }
        }
        said.remove(name).flatten()
    }

    /// Notes what these states say, by themselves and by macros, of attributes of which nothing that
    /// wins over them has said anything; nothing is what `!name` says.
    fn note(&self, states: &[State], said: &mut HashMap<Vec<u8>, Option<Value>>, nesting: u32) {
        for (attribute, value) in states.iter().rev() {
            if said.contains_key(attribute) {
                continue;
            }
            said.insert(attribute.clone(), value.clone());
            if *value == Some(Value::Set) && nesting < MAX_NESTING {
                let body = self.macros.borrow().get(attribute).cloned();
                self.note(&body.unwrap_or_default(), said, nesting + 1);
            }
        }
    }

    fn folder(&self, folder: &[u8]) -> Rc<Vec<Rule>> {
        if let Some(known) = self.folders.borrow().get(folder) {
            return known.clone();
        }
        let text = (self.source)(folder).unwrap_or_default();
        // Macros are defined at the top only.
        let rules = if folder.is_empty() {
            parse(&text, Some(&mut *self.macros.borrow_mut()))
        } else {
            parse(&text, None)
        };
        let rules = Rc::new(rules);
        self.folders
            .borrow_mut()
            .insert(folder.to_vec(), rules.clone());
        rules
    }
}

fn parse(text: &[u8], mut macros: Option<&mut HashMap<Vec<u8>, Vec<State>>>) -> Vec<Rule> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut rules = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        let line = line.trim_ascii_start();
        if line.is_empty() || line[0] == b'#' || line.len() >= MAX_LINE {
            continue;
        }
        let Some((pattern, rest)) = first_word(line) else {
            continue;
        };
        let states: Vec<State> = rest
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .map(state)
            .collect();
        if let Some(name) = pattern.strip_prefix(b"[attr]") {
            if let Some(macros) = &mut macros {
                macros.insert(name.to_vec(), states);
            }
        } else if !pattern.starts_with(b"!") {
            rules.push(Rule {
                pattern: Pattern::new(&pattern),
                states,
            });
        }
    }
    rules
}

/// The pattern of a line, which may be quoted, and what follows it.
fn first_word(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    if line[0] == b'"'
        && let Some((word, rest)) = unquoted(line)
    {
        return Some((word, rest));
    }
    let end = line.iter().position(u8::is_ascii_whitespace)?;
    Some((line[..end].to_vec(), &line[end..]))
}

/// What stands in C quotes at the beginning, and what follows.
fn unquoted(line: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (mut word, mut at) = (Vec::new(), 1);
    loop {
        let byte = *line.get(at)?;
        at += 1;
        match byte {
            b'"' => return Some((word, &line[at..])),
            b'\\' => {
                let escape = *line.get(at)?;
                at += 1;
                word.push(match escape {
                    b'a' => 7,
                    b'b' => 8,
                    b'f' => 12,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 11,
                    b'\\' | b'"' => escape,
                    b'0'..=b'3' => {
                        let digits = std::str::from_utf8(line.get(at - 1..at + 2)?).ok()?;
                        at += 2;
                        u8::from_str_radix(digits, 8).ok()?
                    }
                    _ => return None,
                });
            }
            byte => word.push(byte),
        }
    }
}

fn state(word: &[u8]) -> State {
    if let Some(name) = word.strip_prefix(b"-") {
        return (name.to_vec(), Some(Value::Unset));
    }
    if let Some(name) = word.strip_prefix(b"!") {
        return (name.to_vec(), None);
    }
    match word.iter().position(|&b| b == b'=') {
        None => (word.to_vec(), Some(Value::Set)),
        Some(at) => (
            word[..at].to_vec(),
            Some(Value::Is(word[at + 1..].to_vec())),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn attributes(top: &'static str, below: &'static str) -> Attributes<'static> {
        let source = move |folder: &[u8]| match folder {
            b"" => Some(top.as_bytes().to_vec()),
            b"a" => Some(below.as_bytes().to_vec()),
            _ => None,
        };
        Attributes::new(Box::new(source), Some(b"over -diff"))
    }

    #[test]
    fn the_nearest_file_and_the_last_line_win() {
        let all = attributes(
            "# why\n*.md -diff\n*.md diff\n*.bin binary\n\"x\\ty\" -diff\nover diff\n[attr]odd -diff\no odd\n",
            "*.md -diff\n*.bin !diff\n",
        );
        assert_eq!(all.is_text(b"b/x.md"), Some(true));
        assert_eq!(all.is_text(b"a/x.md"), Some(false));
        assert_eq!(all.is_text(b"x.bin"), Some(false));
        assert_eq!(all.is_text(b"a/x.bin"), None);
        assert_eq!(all.is_text(b"x\ty"), Some(false));
        assert_eq!(all.is_text(b"over"), Some(false));
        assert_eq!(all.is_text(b"o"), Some(false));
        assert_eq!(all.is_text(b"none"), None);
    }

    #[test]
    fn line_ends_are_what_text_and_eol_say() {
        let all = attributes(
            "a text\nb -text\nc text=auto\nd eol=crlf\ne binary eol=lf\nf crlf=input\n",
            "",
        );
        let of = |path: &str| all.line_ends(path.as_bytes());
        assert_eq!(of("a"), LineEnds::Text);
        assert_eq!(of("b"), LineEnds::Keep);
        assert_eq!(of("c"), LineEnds::Auto);
        assert_eq!(of("d"), LineEnds::Text);
        assert_eq!(of("e"), LineEnds::Keep);
        assert_eq!(of("f"), LineEnds::Text);
        assert_eq!(of("g"), LineEnds::Keep);
    }
}
