//! `make bench-git`: what a report costs beside what the git command costs, both as processes, in one
//! run. Nothing is asserted about time; ratios are what counts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    dead_code
)]

#[path = "../../git/lab.rs"]
mod lab;
#[path = "../../git/server.rs"]
mod server;

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use runledger::git::{self, Place};

const FILES: usize = 50_000;
const CHANGED: usize = 1000;
const ROUNDS: usize = 7;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // This program again, in the place of a supervisor.
    if let [word, dir] = &args[..]
        && word == "take-over"
    {
        let dir = Path::new(dir);
        let place = Place {
            trusted: dir.join("state/git"),
            worktree: dir.join("work"),
        };
        git::take_over(&place).unwrap();
        return;
    }
    println!("| what | git, ms | ours, ms | × git | git, MiB | ours, MiB | × git |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let dir = tempfile::tempdir().unwrap();
    let (bare, work) = (dir.path().join("bare.git"), dir.path().join("work"));
    make(&bare);
    lab::git(dir.path(), &["clone", "-q", "bare.git", "work"]);
    let changes = |path: &Path, since: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runledger"));
        command
            .args(["changes", "-o", "json", "--since", since])
            .arg(path);
        command
    };
    let ours = || changes(&bare, "HEAD~1");
    let gits = || lab::command(&bare, &["diff", "--numstat", "-M", "HEAD~1", "HEAD"]);
    row(
        "diff of 1,000 changed files, 300 of them renamed, in a tree of 50,000",
        gits,
        ours,
        || {},
    );

    // As old as a checkout is by the time that an agent is done.
    std::thread::sleep(Duration::from_secs(2));
    lab::git(&work, &["update-index", "--refresh"]);
    let ours = || changes(&work, "HEAD");
    let gits = || {
        lab::command(
            &work,
            &["status", "--porcelain=v2", "--untracked-files=all"],
        )
    };
    row("status of that tree, nothing changed", gits, ours, || {});
    for n in 0..100 {
        lab::write(&work, &name(n * 7 + 500), format!("changed {n}\n"));
    }
    row("status of that tree, 100 files changed", gits, ours, || {});
    take_over();
}

fn name(n: usize) -> String {
    format!("d{}/e{}/f{n}.rs", n % 50, n / 50 % 10)
}

fn text(n: usize) -> String {
    (0..40).fold(String::new(), |mut text, line| {
        let _ = writeln!(
            text,
            "line {line} of file {n} says {}",
            (n * 31 + line * 17) % 1009
        );
        text
    })
}

/// A repository of two commits.
fn make(bare: &Path) {
    std::fs::create_dir(bare).unwrap();
    lab::git(bare, &["init", "-q", "--bare", "-b", "main"]);
    let mut import = String::new();
    let begin = |import: &mut String, subject: &str| {
        let _ = write!(
            import,
            "commit refs/heads/main\ncommitter A <a@b> {} +0000\ndata {}\n{subject}\n",
            1_700_000_000,
            subject.len()
        );
    };
    let file = |import: &mut String, name: &str, text: &str| {
        let _ = write!(
            import,
            "M 100644 inline {name}\ndata {}\n{text}\n",
            text.len()
        );
    };
    begin(&mut import, "Begin");
    for n in 0..FILES {
        file(&mut import, &name(n), &text(n));
    }
    begin(&mut import, "Change");
    for n in (0..CHANGED).map(|n| n * (FILES / CHANGED)) {
        let changed = text(n)
            .replace("line 7 of", "line seven of")
            .replace("line 20 ", "");
        if n / (FILES / CHANGED) % 10 < 3 {
            let _ = writeln!(import, "D {}", name(n));
            file(&mut import, &format!("moved/{}", name(n)), &changed);
        } else {
            file(&mut import, &name(n), &changed);
        }
    }
    let mut git = lab::command(bare, &["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut git.stdin.take().unwrap(), import.as_bytes()).unwrap();
    assert!(git.wait().unwrap().success());
}

/// 1,000 new objects in a run's workspace.
fn take_over() {
    let lab = lab::Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    lab.checkout(&url);
    for n in 0..990 {
        lab::write(lab.work(), &format!("new/{}/{n}.rs", n % 7), text(n));
    }
    lab::commit(lab.work(), "Work");
    let dir = lab.dir.path();
    let (trusted, kept, theirs) = (dir.join("state"), dir.join("kept"), dir.join("theirs.git"));
    copy(&trusted, &kept);
    let this = std::env::current_exe().unwrap();
    let ours = || {
        let mut command = Command::new(&this);
        command.arg("take-over").arg(dir);
        command
    };
    let bare = lab.served().join("project.git");
    let gits = || {
        lab::command(
            &theirs,
            &[
                "fetch",
                "-q",
                lab.work().to_str().unwrap(),
                "+refs/heads/*:refs/agent/heads/*",
            ],
        )
    };
    row("taking 1,000 new objects over", gits, ours, || {
        for (from, to) in [(&kept, &trusted), (&bare, &theirs)] {
            let _ = std::fs::remove_dir_all(to);
            copy(from, to);
        }
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// The best of some rounds of both, in turn.
fn row(what: &str, gits: impl Fn() -> Command, ours: impl Fn() -> Command, prepare: impl Fn()) {
    let (mut git, mut own) = ((f64::MAX, 0.0), (f64::MAX, 0.0));
    for _ in 0..ROUNDS {
        prepare();
        for (command, best) in [(gits(), &mut git), (ours(), &mut own)] {
            let (time, memory) = measure(command);
            *best = (best.0.min(time), f64::max(best.1, memory));
        }
    }
    println!(
        "| {what} | {:.0} | {:.0} | {:.2} | {:.0} | {:.0} | {:.2} |",
        git.0,
        own.0,
        own.0 / git.0,
        git.1,
        own.1,
        own.1 / git.1
    );
}

/// Milliseconds and MiB at the most of a process.
fn measure(mut command: Command) -> (f64, f64) {
    let begin = Instant::now();
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0.0;
    loop {
        if let Some(done) = child.try_wait().unwrap() {
            assert!(done.success(), "{command:?}: {done}");
            return (begin.elapsed().as_secs_f64() * 1000.0, most);
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| {
            line.strip_prefix("VmHWM:")?
                .trim()
                .strip_suffix(" kB")?
                .parse::<f64>()
                .ok()
        });
        most = f64::max(most, peak.unwrap_or(0.0) / 1024.0);
        std::thread::sleep(Duration::from_micros(500));
    }
}
