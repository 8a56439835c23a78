//! `runledger changes`: what changed in a repository on disk, or what a run changed according to the
//! ledger, for whoever wants to hold it against git or can't come back for the volume.

use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use uuid::Uuid;

use crate::git;
use crate::ledger::connection::Connection;
use crate::ledger::{self, Ledger};
use crate::report::{FileLine, Kind, Lines, PathName, Report};
use crate::wire::patch::Patch;

/// Say what changed in a repository since a commit, or what a run changed.
///
/// Commits are those of `git rev-list COMMIT..HEAD`, files and lines those of
/// `git diff --numstat -M COMMIT HEAD`; what is not committed is told apart: staged, unstaged,
/// untracked (without what is ignored) and in conflict, as `git status` has it. The repository may be
/// hostile: nothing of its configuration is read and nothing in it is run.
#[derive(Debug, Parser)]
#[command(after_help = "\
A patch is for `git apply`, upon COMMIT, or upon HEAD with --uncommitted. Binary files that came or
changed, and in the ledger whatever goes beyond 1 MiB, are named at its head instead.

Examples:
  runledger changes --since HEAD~3
  runledger changes /srv/clone --since v1.2.0 -o json | jq .files_changed
  runledger changes --run team-a/fix-parser                 as the ledger has it
  runledger changes --run team-a/fix-parser -o patch | git apply --index")]
pub struct Args {
    /// A folder of the repository.
    #[arg(default_value = ".", conflicts_with = "run")]
    path: PathBuf,
    /// Where to count from: a commit's name or its beginning, a branch, a tag, HEAD~2.
    #[arg(
        long,
        value_name = "COMMIT",
        required_unless_present = "run",
        conflicts_with = "run"
    )]
    since: Option<String>,
    /// A run of the ledger, by its name (the latest of that name; namespace `default` where none is
    /// given) or its uid.
    #[arg(long, value_name = "[NAMESPACE/]NAME")]
    run: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// With `-o patch`: what was left uncommitted, in the place of what is committed.
    #[arg(long)]
    uncommitted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs: files_changed, added_lines, removed_lines, commits, files, uncommitted, …
    Json,
    /// The change itself, for `git apply`.
    Patch,
}

/// Why nothing could be printed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense, or is not there.
    #[error("{0}")]
    Asked(String),
    /// The repository can't be read.
    #[error("the changes can't be told")]
    Git(#[source] git::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The report can't be written out.
    #[error("the report can't be printed")]
    Print(#[source] std::io::Error),
}

impl Args {
    /// Whether the answer is in the ledger, and not on disk, where it is read without any waiting.
    pub fn asks_ledger(&self) -> bool {
        self.run.is_some()
    }

    fn are_sound(&self) -> Result<(), Error> {
        match self.uncommitted && self.output != Output::Patch {
            true => Err(Error::Asked("--uncommitted goes with -o patch".to_owned())),
            false => Ok(()),
        }
    }
}

/// Prints what the ledger has.
pub async fn run(args: Args) -> Result<(), Error> {
    print(&answer(&args).await?)
}

/// Prints what is on disk.
pub fn run_on_disk(args: &Args) -> Result<(), Error> {
    print(&of_disk(args)?)
}

fn print(text: &[u8]) -> Result<(), Error> {
    match std::io::stdout().write_all(text) {
        // Whoever reads has had enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(Error::Print),
    }
}

/// What is printed.
pub async fn answer(args: &Args) -> Result<Vec<u8>, Error> {
    let Some(run) = &args.run else {
        return of_disk(args);
    };
    args.are_sound()?;
    let ledger = args.connection.ledger().await?;
    let told = of_run(&ledger, run, args).await;
    ledger.close().await;
    told
}

fn of_disk(args: &Args) -> Result<Vec<u8>, Error> {
    args.are_sound()?;
    let since = args.since.as_deref().unwrap_or_default();
    if args.output == Output::Patch {
        let patch = git::inspect_patch(&args.path, since, git::Limits::NONE);
        return part(patch.map_err(Error::Git)?, args.uncommitted);
    }
    let report = git::inspect(&args.path, since).map_err(Error::Git)?;
    match args.output {
        Output::Json => json(&report),
        Output::Text | Output::Patch => Ok(text(&report).into_bytes()),
    }
}

/// A run's report or patch, as it was kept at its end.
async fn of_run(ledger: &Ledger, run: &str, args: &Args) -> Result<Vec<u8>, Error> {
    let missing = |what: &str| Error::Asked(format!("the ledger has no {what} {run}"));
    let id = match Uuid::parse_str(run) {
        Ok(id) => Some(id),
        Err(_) => {
            let (namespace, name) = run.split_once('/').unwrap_or(("default", run));
            ledger.run_named(namespace, name).await?
        }
    };
    let id = id.ok_or_else(|| missing("run"))?;
    if args.output == Output::Patch {
        let patch = ledger.run_patch(id).await?;
        return part(
            patch.ok_or_else(|| missing("patch of run"))?,
            args.uncommitted,
        );
    }
    let diff = ledger.run_diff(id).await?.ok_or_else(|| missing("run"))?;
    let no_report = || missing("report of changes of run");
    if diff.stats.get("files_changed").is_none() {
        return Err(no_report());
    }
    match args.output {
        Output::Json => json(&diff.stats),
        Output::Text | Output::Patch => {
            let report = serde_json::from_value(diff.stats).map_err(|_| no_report())?;
            Ok(text(&report).into_bytes())
        }
    }
}

fn part(patch: Patch, uncommitted: bool) -> Result<Vec<u8>, Error> {
    let part = match uncommitted {
        true => patch.uncommitted,
        false => patch.committed,
    };
    match part.unknown {
        Some(why) => Err(Error::Asked(format!("there is no patch: {why}"))),
        None => Ok(part.text),
    }
}

fn json(report: &impl serde::Serialize) -> Result<Vec<u8>, Error> {
    let json = serde_json::to_string_pretty(report);
    Ok((json.map_err(|e| Error::Print(e.into()))? + "\n").into_bytes())
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
