//! One file of a patch: git's extended headers (`fill_metainfo` and `builtin_diff` in `diff.c`) and the
//! hunks, from the same comparison of lines that gives the figures.

use git2::{DiffLineType, DiffOptions, Oid, Patch};

use super::quote::{prefixed, quoted};
use crate::git::Error;
use crate::git::changes::Paired;
use crate::git::content::{Content, Text};
use crate::git::objects::TYPE;
use crate::git::tree_diff::Side;

/// Most bytes of both sides of a file that is shown. Its figures are counted from larger ones, but a
/// patch of it would take several times its size in memory.
pub(super) const MAX_READ: u64 = 32 * 1024 * 1024;
/// Most lines of both sides.
const MAX_LINES: usize = 1_000_000;
/// What stands behind a last line that has no end.
const NO_END: &[u8] = b"\n\\ No newline at end of file\n";

/// What a patch says of a file.
pub(super) enum Section {
    /// This.
    Text(Vec<u8>),
    /// That it is binary.
    Binary,
    /// That it is too large to be compared for it.
    Unmeasured,
}

/// What a patch says of a file, whose size the caller has looked at.
pub(super) fn sections(content: &Content<'_>, file: &Paired) -> Result<Vec<Section>, Error> {
    let (old, new) = (file.change.old.as_ref(), file.change.new.as_ref());
    if let (Some(one), Some(other)) = (old, new)
        && one.mode & TYPE != other.mode & TYPE
    {
        // As git does: what was there goes, and something else comes.
        let gone = section(content, old, None, 0)?;
        return Ok(vec![gone, section(content, None, new, 0)?]);
    }
    let section = section(content, old, new, file.similarity)?;
    if let (Section::Binary, Some(one), Some(other)) = (&section, old, new)
        && one.path != other.path
    {
        // What came of it can't be shown, but that it went can.
        return Ok(vec![Section::Text(binary_gone(one)), section]);
    }
    Ok(vec![section])
}

fn section(
    content: &Content<'_>,
    old: Option<&Side>,
    new: Option<&Side>,
    similarity: u8,
) -> Result<Section, Error> {
    let mut text = Vec::new();
    header(&mut text, old, new, similarity);
    if id(old) == id(new) && !id(old).is_zero() {
        return Ok(Section::Text(text));
    }
    let before = old.map(|side| content.text(side)).transpose()?;
    let after = new.map(|side| content.text(side)).transpose()?;
    let bytes = |text: &Option<Text<'_>>| text.as_ref().map_or(0, |text| text.bytes().len());
    if bytes(&before) + bytes(&after) == 0 {
        return Ok(Section::Text(text));
    }
    // No side is empty, no text is binary.
    let (Some(before), Some(after)) = (
        before
            .as_ref()
            .map_or(Some(&b""[..]), |text| text.as_text()),
        after.as_ref().map_or(Some(&b""[..]), |text| text.as_text()),
    ) else {
        return Ok(match (old, new) {
            (Some(old), None) => Section::Text(binary_gone(old)),
            _ => Section::Binary,
        });
    };
    if before != after {
        names(&mut text, old, new);
        if !hunks(&mut text, before, after)? {
            return Ok(Section::Unmeasured);
        }
    }
    Ok(Section::Text(text))
}

/// A binary file that goes: the one change of binary files that `git apply` makes without their
/// content.
fn binary_gone(old: &Side) -> Vec<u8> {
    let mut text = Vec::new();
    header(&mut text, Some(old), None, 0);
    let name = prefixed(b"a/", &old.path);
    text.extend_from_slice(&[b"Binary files ", &name[..], b" and /dev/null differ\n"].concat());
    text
}

fn id(side: Option<&Side>) -> Oid {
    side.map_or(Oid::ZERO_SHA1, |side| side.id)
}

fn header(text: &mut Vec<u8>, old: Option<&Side>, new: Option<&Side>, similarity: u8) {
    let mut line = |parts: &[&[u8]]| {
        for part in parts {
            text.extend_from_slice(part);
        }
        text.push(b'\n');
    };
    let path = |side: Option<&Side>| side.or(new).or(old).map(|side| side.path.clone());
    let (from, to) = (
        path(old).unwrap_or_default(),
        path(new.or(old)).unwrap_or_default(),
    );
    line(&[
        b"diff --git ",
        &prefixed(b"a/", &from),
        b" ",
        &prefixed(b"b/", &to),
    ]);
    let mode = |side: &Side| format!("{:06o}", side.mode).into_bytes();
    match (old, new) {
        (None, Some(new)) => line(&[b"new file mode ", &mode(new)]),
        (Some(old), None) => line(&[b"deleted file mode ", &mode(old)]),
        (Some(old), Some(new)) => {
            if old.mode != new.mode {
                line(&[b"old mode ", &mode(old)]);
                line(&[b"new mode ", &mode(new)]);
            }
            if old.path != new.path {
                line(&[format!("similarity index {similarity}%").as_bytes()]);
                line(&[b"rename from ", &quoted(&old.path)]);
                line(&[b"rename to ", &quoted(&new.path)]);
            }
        }
        (None, None) => {}
    }
    if id(old) != id(new) {
        let ids = format!("index {}..{}", id(old), id(new));
        match (old, new) {
            (Some(old), Some(new)) if old.mode == new.mode => {
                line(&[ids.as_bytes(), b" ", &mode(old)]);
            }
            _ => line(&[ids.as_bytes()]),
        }
    }
}

fn names(text: &mut Vec<u8>, old: Option<&Side>, new: Option<&Side>) {
    for (sign, prefix, side) in [(&b"--- "[..], b"a/", old), (b"+++ ", b"b/", new)] {
        text.extend_from_slice(sign);
        let name = side.map_or(b"/dev/null".to_vec(), |side| prefixed(prefix, &side.path));
        text.extend_from_slice(&name);
        // So that it is clear where the name ends.
        if name.contains(&b' ') {
            text.push(b'\t');
        }
        text.push(b'\n');
    }
}

/// The hunks between two texts that differ; says no where there are more lines than are compared.
fn hunks(text: &mut Vec<u8>, before: &[u8], after: &[u8]) -> Result<bool, Error> {
    let lines = count(before) + count(after);
    if lines > MAX_LINES {
        return Ok(false);
    }
    if before.is_empty() || after.is_empty() {
        whole(text, before, after, lines);
        return Ok(true);
    }
    let failed = |e: git2::Error| Error::local("compare two files", &e);
    let mut options = DiffOptions::new();
    options
        .force_text(true)
        .context_lines(3)
        .indent_heuristic(true);
    let patch =
        Patch::from_buffers(before, None, after, None, Some(&mut options)).map_err(failed)?;
    for at in 0..patch.num_hunks() {
        let (hunk, lines) = patch.hunk(at).map_err(failed)?;
        text.extend_from_slice(hunk.header());
        for line in 0..lines {
            let line = patch.line_in_hunk(at, line).map_err(failed)?;
            match line.origin_value() {
                DiffLineType::Context => text.push(b' '),
                DiffLineType::Addition => text.push(b'+'),
                DiffLineType::Deletion => text.push(b'-'),
                _ => {}
            }
            text.extend_from_slice(line.content());
        }
    }
    Ok(true)
}

/// A file that comes or goes, whole.
fn whole(text: &mut Vec<u8>, before: &[u8], after: &[u8], lines: usize) {
    let range = match lines {
        1 => "1".to_owned(),
        lines => format!("1,{lines}"),
    };
    let (header, sign, content) = match before.is_empty() {
        true => (format!("@@ -0,0 +{range} @@\n"), b'+', after),
        false => (format!("@@ -{range} +0,0 @@\n"), b'-', before),
    };
    text.extend_from_slice(header.as_bytes());
    for line in content.split_inclusive(|&b| b == b'\n') {
        text.push(sign);
        text.extend_from_slice(line);
    }
    if content.last() != Some(&b'\n') {
        text.extend_from_slice(NO_END);
    }
}

fn count(text: &[u8]) -> usize {
    text.split_inclusive(|&b| b == b'\n').count()
}
