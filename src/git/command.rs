//! `runledger changes`: what changed in a repository on disk, for whoever wants to hold it against git.

use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::report::{FileLine, Kind, Lines, PathName, Report};

/// Say what changed in a repository since a commit, counted as git counts.
///
/// Commits are those of `git rev-list COMMIT..HEAD`, files and lines those of
/// `git diff --numstat -M COMMIT HEAD`; what is not committed is told apart: staged, unstaged,
/// untracked (without what is ignored) and in conflict, as `git status` has it. The repository may be
/// hostile: nothing of its configuration is read and nothing in it is run.
#[derive(Debug, Parser)]
#[command(after_help = "\
Examples:
  runledger changes --since HEAD~3
  runledger changes /srv/clone --since v1.2.0 -o json | jq .files_changed")]
pub struct Args {
    /// A folder of the repository.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Where to count from: a commit's name or its beginning, a branch, a tag, HEAD~2.
    #[arg(long, value_name = "COMMIT")]
    since: String,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: files_changed, added_lines, removed_lines, commits, files, uncommitted, …
    Json,
}

/// Why nothing could be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository can't be read.
    #[error("the changes can't be told")]
    Git(#[source] super::Error),
    /// The report can't be written out.
    #[error("the report can't be printed")]
    Print(#[source] std::io::Error),
}

/// Prints the report.
pub fn run(args: &Args) -> Result<(), Error> {
    let report = super::inspect(&args.path, &args.since).map_err(Error::Git)?;
    let text = match args.output {
        Output::Text => text(&report),
        Output::Json => {
            let json = serde_json::to_string_pretty(&report);
            json.map_err(|e| Error::Print(e.into()))? + "\n"
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has had enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Error::Print),
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let short = |commit: &Option<String>| match commit {
        Some(hash) => hash.chars().take(12).collect(),
        None => "nothing".to_owned(),
    };
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "{} on {}, since {}",
        short(&report.final_commit),
        report
            .branch
            .as_deref()
            .map_or("no branch".to_owned(), plain),
        short(&report.initial_commit),
    );
    if report.history_rewritten {
        let _ = writeln!(
            text,
            "history was rewritten: the two have {} in common",
            short(&report.merge_base)
        );
    }
    if report.shallow {
        text.push_str("history is shallow: earlier commits are not there to be counted\n");
    }
    let _ = writeln!(text, "\n{} commits", report.commit_count);
    for commit in &report.commits {
        let hash: String = commit.hash.chars().take(12).collect();
        let (author, subject) = (plain(&commit.author), plain(&commit.subject));
        let _ = writeln!(text, "  {hash} {} {author}: {subject}", commit.time);
    }
    lines(&mut text, "committed", &report.committed);
    match (&report.uncommitted, &report.uncommitted_unknown) {
        (Some(uncommitted), _) => {
            lines(&mut text, "staged", &uncommitted.staged);
            lines(&mut text, "unstaged", &uncommitted.unstaged);
            for (what, paths) in [
                ("untracked", &uncommitted.untracked),
                ("in conflict", &uncommitted.unmerged),
            ] {
                let _ = writeln!(text, "\n{what}: {} files", paths.count);
                for name in &paths.paths {
                    let _ = writeln!(text, "  {}", path(name));
                }
            }
        }
        (None, Some(why)) => {
            let _ = writeln!(text, "\nwhat is not committed can't be told: {why}");
        }
        (None, None) => text.push_str("\nthe repository has no worktree\n"),
    }
    text
}

fn lines(text: &mut String, what: &str, lines: &Lines) {
    let _ = writeln!(
        text,
        "\n{what}: {} files +{} -{}",
        lines.files_changed, lines.added_lines, lines.removed_lines
    );
    for file in &lines.files {
        file_line(text, file);
    }
}

fn file_line(text: &mut String, file: &FileLine) {
    let count = |lines: Option<u64>| lines.map_or("-".to_owned(), |lines| lines.to_string());
    let (added, removed) = (count(file.added_lines), count(file.removed_lines));
    let _ = write!(text, "  {added:>6} {removed:>6}  {}", path(&file.name));
    let kind = match (file.kind, &file.renamed_from) {
        (Kind::Modified, _) => String::new(),
        (Kind::Renamed, Some(from)) => format!(" (renamed from {})", path(from)),
        (Kind::Added, _) => " (added)".to_owned(),
        (Kind::Deleted, _) => " (deleted)".to_owned(),
        (Kind::Renamed, None) => " (renamed)".to_owned(),
        (Kind::TypeChanged, _) => " (type changed)".to_owned(),
        (Kind::ModeChanged, _) => " (mode changed)".to_owned(),
    };
    let _ = writeln!(text, "{kind}");
}

fn path(name: &PathName) -> String {
    plain(&name.path)
}

/// Fit for a terminal: names and subjects are strangers' words.
fn plain(text: &str) -> String {
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<char>>(),
            false => vec![c],
        })
        .collect()
}
