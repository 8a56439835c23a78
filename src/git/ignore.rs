//! Ignore rules: `.gitignore` of each folder and `info/exclude`, as git reads them. A person's own
//! rules (`core.excludesFile`) are configuration, which is never read.

use std::sync::Arc;

use super::wildmatch::Pattern;

/// Longest file of rules that is read, in bytes.
pub(super) const MAX_FILE: u64 = 1024 * 1024;

/// The rules that hold in a folder: its own, then those of the folders above it.
#[derive(Debug)]
pub(super) struct Rules {
    above: Option<Arc<Rules>>,
    /// Length of the folder's path, its slash included.
    base: usize,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    pattern: Pattern,
    ignores: bool,
}

impl Rules {
    /// What a file of rules says, below the folder whose path (with its slash) has that length.
    pub(super) fn new(above: Option<Arc<Self>>, base: usize, text: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            above,
            base,
            rules: parse(text),
        })
    }

    /// Whether a path is ignored, given that no folder above it is.
    pub(super) fn ignore(&self, path: &[u8], is_folder: bool) -> bool {
        let mut level = Some(self);
        while let Some(rules) = level {
            let below = path.get(rules.base..).unwrap_or_default();
            for rule in rules.rules.iter().rev() {
                if (is_folder || !rule.pattern.folders_only) && rule.pattern.fits(below) {
                    return rule.ignores;
                }
            }
            level = rules.above.as_deref();
        }
        false
    }
}

fn parse(text: &[u8]) -> Vec<Rule> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut rules = Vec::new();
    for line in text.split(|&b| b == b'\n') {
        let line = trimmed(line.strip_suffix(b"\r").unwrap_or(line));
        if line.is_empty() || line[0] == b'#' {
            continue;
        }
        let (line, ignores) = match line.strip_prefix(b"!") {
            Some(rest) => (rest, false),
            None => (line, true),
        };
        rules.push(Rule {
            pattern: Pattern::new(line),
            ignores,
        });
    }
    rules
}

/// Without the spaces at the end, unless a backslash keeps them.
fn trimmed(line: &[u8]) -> &[u8] {
    let (mut end, mut at) = (0, 0);
    while at < line.len() {
        match line[at] {
            b' ' => {}
            b'\\' => {
                at += 1;
                end = at + 1;
            }
            _ => end = at + 1,
        }
        at += 1;
    }
    &line[..end.min(line.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_of_the_nearest_folder_decides() {
        let top = Rules::new(
            None,
            0,
            b"# x\n*.log\n!keep.log\nbuild/\n/only\nend  \nkept\\ \n",
        );
        let below = Rules::new(Some(top.clone()), 2, b"!a.log\n/x\n");
        assert!(top.ignore(b"a.log", false));
        assert!(!top.ignore(b"keep.log", false));
        assert!(top.ignore(b"build", true));
        assert!(!top.ignore(b"build", false));
        assert!(top.ignore(b"only", false));
        assert!(!top.ignore(b"d/only", false));
        assert!(top.ignore(b"end", false));
        assert!(top.ignore(b"kept ", false));
        assert!(!below.ignore(b"d/a.log", false));
        assert!(below.ignore(b"d/b.log", false));
        assert!(below.ignore(b"d/x", false));
        assert!(!below.ignore(b"d/e/x", false));
    }
}
