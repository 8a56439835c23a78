//! What changed in a repository: the shapes that `runledger changes` prints, the supervisor sends and
//! the ledger keeps (`git_diff_stats`), and how a report is cut to a size. How it comes about is
//! `crate::git`'s; docs/git.md gives the value of each field in every state of a repository.

use serde::{Deserialize, Serialize};

/// Bytes of JSON that a report may take in the ledger.
pub const LEDGER_BYTES: usize = 128 * 1024;
/// Longest path, author or subject of a report in the ledger, in characters.
const LEDGER_TEXT: usize = 1024;

/// What changed between two commits, and what is not committed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// URL without credentials; absent where there is no remote to speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Branch that HEAD is on; null where it is detached.
    pub branch: Option<String>,
    /// Where counting began; null where there was no commit yet.
    pub initial_commit: Option<String>,
    /// HEAD; null where its branch has no commit yet.
    pub final_commit: Option<String>,
    /// The initial commit is no ancestor of the final one.
    pub history_rewritten: bool,
    /// Their best common ancestor, where history was rewritten and there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge_base: Option<String>,
    /// History ends at a shallow boundary: there are commits before it that nobody could count.
    pub shallow: bool,
    /// Commits in `initial..final`, as `git rev-list --count` says.
    pub commit_count: u64,
    /// They, newest first, as `git rev-list` lists them.
    pub commits: Vec<CommitLine>,
    /// Files and lines between the two commits, as `git diff --numstat -M` says.
    #[serde(flatten)]
    pub committed: Lines,
    /// What is in the worktree and in no commit; null where that can't be told.
    pub uncommitted: Option<Uncommitted>,
    /// Why it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncommitted_unknown: Option<String>,
    /// List entries left out to keep the report small; figures are never cut.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Files and lines that differ between two states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    /// Files that differ; a renamed file is one.
    pub files_changed: u64,
    /// Lines added; those of binary files are not counted.
    pub added_lines: u64,
    /// Lines removed; those of binary files are not counted.
    pub removed_lines: u64,
    /// Each of the files.
    pub files: Vec<FileLine>,
}

impl Lines {
    /// Takes one more file in.
    pub fn push(&mut self, file: FileLine) {
        self.files_changed += 1;
        self.added_lines += file.added_lines.unwrap_or(0);
        self.removed_lines += file.removed_lines.unwrap_or(0);
        self.files.push(file);
    }
}

/// What is in the worktree and in no commit, as `git status` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uncommitted {
    /// Between HEAD and the index.
    pub staged: Lines,
    /// Between the index and the worktree.
    pub unstaged: Lines,
    /// Files that the index does not know and no ignore rule covers; a nested repository ends with `/`.
    pub untracked: Paths,
    /// Files with a merge conflict that is not resolved.
    pub unmerged: Paths,
}

impl Uncommitted {
    /// Whether there is nothing at all.
    pub fn is_clean(&self) -> bool {
        self.staged.files_changed == 0
            && self.unstaged.files_changed == 0
            && self.untracked.count == 0
            && self.unmerged.count == 0
    }
}

/// Paths, counted and listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    /// How many there are.
    pub count: u64,
    /// Which.
    pub paths: Vec<PathName>,
}

/// A path of the repository. Paths are bytes; JSON is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PathName {
    /// As text; what is not UTF-8 in it is shown as U+FFFD.
    pub path: String,
    /// The bytes in hexadecimal, where they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
}

impl From<&[u8]> for PathName {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(path) => Self {
                path: path.to_owned(),
                path_hex: None,
            },
            Err(_) => Self {
                path: String::from_utf8_lossy(bytes).into_owned(),
                path_hex: Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()),
            },
        }
    }
}

/// A commit of a [`Report`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitLine {
    /// Its full name.
    pub hash: String,
    /// `Name <address>`.
    pub author: String,
    /// First paragraph of the message, in one line.
    pub subject: String,
    /// When it was authored, in UTC.
    pub time: String,
}

/// A file of a [`Report`]: a line of `git diff --numstat`, and its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileLine {
    /// Where it is, or was if it is deleted.
    #[serde(flatten)]
    pub name: PathName,
    /// What became of it.
    pub kind: Kind,
    /// Where it was, if it is renamed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_from: Option<PathName>,
    /// Lines added; null for a binary file.
    pub added_lines: Option<u64>,
    /// Lines removed; null for a binary file.
    pub removed_lines: Option<u64>,
    /// It is binary, or too large to be read for its lines.
    #[serde(default, skip_serializing_if = "is_false")]
    pub binary: bool,
    /// Its mode before, where that has changed, e.g. `100644`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_mode: Option<String>,
    /// Its mode now, where that has changed or says that it is no ordinary file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It was not there.
    Added,
    /// Its content changed.
    #[default]
    Modified,
    /// It is gone.
    Deleted,
    /// It was elsewhere; the content may have changed too.
    Renamed,
    /// A file became a symlink or a submodule, or the other way about.
    TypeChanged,
    /// Only its permission changed.
    ModeChanged,
}

impl Report {
    /// Fit for the ledger: texts and lists cut until the JSON has at most `most` bytes. Figures stay,
    /// and `omitted` says how many entries went.
    pub fn cut_to(mut self, most: usize) -> Self {
        self.for_each_text(|text| {
            if let Some((at, _)) = text.char_indices().nth(LEDGER_TEXT) {
                text.truncate(at);
                text.push('…');
            }
        });
        let mut keep = 4096;
        loop {
            let cut = self.keep(keep);
            self.omitted += cut;
            let size = serde_json::to_vec(&self).map_or(usize::MAX, |json| json.len());
            if size <= most || keep == 0 {
                return self;
            }
            keep /= 2;
        }
    }

    fn for_each_text(&mut self, mut shorten: impl FnMut(&mut String)) {
        for commit in &mut self.commits {
            shorten(&mut commit.author);
            shorten(&mut commit.subject);
        }
        let mut names: Vec<&mut PathName> = Vec::new();
        let mut lines = vec![&mut self.committed];
        if let Some(uncommitted) = &mut self.uncommitted {
            lines.extend([&mut uncommitted.staged, &mut uncommitted.unstaged]);
            names.extend(&mut uncommitted.untracked.paths);
            names.extend(&mut uncommitted.unmerged.paths);
        }
        for file in lines.into_iter().flat_map(|lines| &mut lines.files) {
            names.push(&mut file.name);
            names.extend(&mut file.renamed_from);
        }
        for name in names {
            shorten(&mut name.path);
            name.path_hex.as_mut().map(&mut shorten);
        }
    }

    /// Keeps the first so many entries of each list, and says how many went.
    fn keep(&mut self, most: usize) -> u64 {
        fn cut<T>(list: &mut Vec<T>, most: usize) -> u64 {
            let gone = list.len().saturating_sub(most);
            list.truncate(most);
            gone as u64
        }
        let mut gone = cut(&mut self.commits, most) + cut(&mut self.committed.files, most);
        if let Some(uncommitted) = &mut self.uncommitted {
            gone += cut(&mut uncommitted.staged.files, most)
                + cut(&mut uncommitted.unstaged.files, most)
                + cut(&mut uncommitted.untracked.paths, most)
                + cut(&mut uncommitted.unmerged.paths, most);
        }
        gone
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_cut_to_its_size_and_its_figures_are_not() {
        let mut report = Report::default();
        for at in 0..10_000 {
            report.committed.push(FileLine {
                name: PathName::from(format!("{at}/{}", "ä".repeat(5000)).as_bytes()),
                added_lines: Some(2),
                removed_lines: Some(1),
                ..FileLine::default()
            });
        }
        let cut = report.cut_to(LEDGER_BYTES);
        assert!(serde_json::to_vec(&cut).unwrap().len() <= LEDGER_BYTES);
        let lines = &cut.committed;
        assert_eq!((lines.files_changed, lines.added_lines), (10_000, 20_000));
        assert!(!lines.files.is_empty());
        assert_eq!(lines.files.len() as u64 + cut.omitted, 10_000);
    }

    #[test]
    fn a_small_report_stays_as_it_is() {
        let mut report = Report::default();
        report.committed.push(FileLine::default());
        assert_eq!(report.clone().cut_to(LEDGER_BYTES), report);
    }

    #[test]
    fn names_that_are_no_text_keep_their_bytes() {
        let name = PathName::from(b"a\xff\n".as_slice());
        assert_eq!(name.path, "a\u{fffd}\n");
        assert_eq!(name.path_hex.as_deref(), Some("61ff0a"));
    }
}
