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
mod memory;
#[path = "../../git/nginx.rs"]
mod nginx;
#[path = "../procfs.rs"]
mod procfs;
#[path = "../../git/server.rs"]
mod server;

use std::fmt::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use runledger::git::{self, Place, Wanted};

const FILES: usize = 50_000;
const CHANGED: usize = 1000;
const ROUNDS: usize = 7;

/// What a supervisor does, in a process of its own.
type Part = fn(&Path, &[String]);
const PARTS: [(&str, Part); 2] = [("take-over", take_over_in), ("checkout", checkout_in)];

fn place(dir: &Path) -> Place {
    Place {
        trusted: dir.join("state/git"),
        worktree: dir.join("work"),
    }
}

fn take_over_in(dir: &Path, _: &[String]) {
    git::take_over(&place(dir)).unwrap();
}

/// With URL, certificate and password as arguments: they are the benchmark's own.
fn checkout_in(dir: &Path, rest: &[String]) {
    let url: url::Url = rest[0].parse().unwrap();
    let access = nginx::access(&url, Path::new(&rest[1]));
    let place = place(dir);
    std::fs::create_dir_all(&place.worktree).unwrap();
    git::checkout(&place, &Wanted::new(url), &access, &AtomicBool::new(false)).unwrap();
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // This program again, in the place of a supervisor.
    if let [word, dir, rest @ ..] = &args[..]
        && let Some(part) = PARTS.iter().find(|(name, _)| name == word)
    {
        return part.1(Path::new(dir), rest);
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
    clone();
}

/// A repository of about 200 MB in 20,000 files: text that has a history, and pictures.
fn heavy(bare: &Path) {
    lab::git(bare, &["init", "-q", "--bare", "-b", "main"]);
    let mut git = lab::command(bare, &["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut import = std::io::BufWriter::new(git.stdin.take().unwrap());
    let mut state = 7u64;
    let mut noise = |bytes: usize| -> Vec<u8> {
        let words = (0..bytes / 8).flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.collect()
    };
    let put = |import: &mut dyn std::io::Write, name: &str, content: &[u8]| {
        writeln!(import, "M 100644 inline {name}\ndata {}", content.len()).unwrap();
        import.write_all(content).unwrap();
        import.write_all(b"\n").unwrap();
    };
    for round in 0..5 {
        use std::io::Write as _;
        let subject = format!("Round {round}");
        let head = format!(
            "committer A <a@b> 170000000{round} +0000\ndata {}",
            subject.len()
        );
        writeln!(import, "commit refs/heads/main\n{head}\n{subject}").unwrap();
        for n in (0..20_000).filter(|n| round == 0 || n % 10 == round) {
            let text = text(n).replace("line 7 ", &format!("line 7, round {round}, "));
            put(&mut import, &name(n), text.as_bytes());
        }
        for n in 0..32 {
            put(
                &mut import,
                &format!("pictures/{round}-{n}.png"),
                &noise(1_200_000),
            );
        }
    }
    drop(import);
    assert!(git.wait().unwrap().success());
    // As a host keeps it.
    lab::git(bare, &["repack", "-q", "-a", "-d"]);
}

/// A clone over https, from nginx.
fn clone() {
    let dir = tempfile::tempdir().unwrap();
    let bare = dir.path().join("heavy.git");
    std::fs::create_dir(&bare).unwrap();
    heavy(&bare);
    let nginx = nginx::Nginx::start(dir.path(), "");
    let url = nginx.url("heavy.git");
    let (theirs, run) = (dir.path().join("theirs"), dir.path().join("run"));
    let gits = || {
        let mut with_password = url.clone();
        with_password.set_username(server::USER).unwrap();
        with_password.set_password(Some(server::PASSWORD)).unwrap();
        let mut clone = lab::command(dir.path(), &["clone", "-q", with_password.as_str()]);
        clone.arg(&theirs).env("GIT_SSL_CAINFO", &nginx.ca);
        clone
    };
    let this = memory::copy_of_this(dir.path());
    let ours = || {
        let mut command = Command::new(&this);
        command
            .arg("checkout")
            .arg(&run)
            .arg(url.as_str())
            .arg(&nginx.ca);
        command
    };
    let packs = bare.join("objects/pack");
    let size: u64 = std::fs::read_dir(packs)
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    let what = format!("clone of {} MB over https", size / 1_000_000);
    row(&what, gits, ours, || {
        for dir in [&theirs, &run] {
            let _ = std::fs::remove_dir_all(dir);
        }
        // What the former round left to be written is not this one's.
        nix::unistd::sync();
    });
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
    let this = memory::copy_of_this(dir);
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

/// The best time of some rounds of both, in turn, and the most memory of some more.
fn row(what: &str, gits: impl Fn() -> Command, ours: impl Fn() -> Command, prepare: impl Fn()) {
    let (mut git, mut own) = ((f64::MAX, 0.0), (f64::MAX, 0.0));
    for _ in 0..ROUNDS {
        prepare();
        for (command, best) in [(gits(), &mut git), (ours(), &mut own)] {
            best.0 = f64::min(best.0, milliseconds(command));
        }
    }
    for _ in 0..memory::ROUNDS {
        prepare();
        for (command, best) in [(gits(), &mut git), (ours(), &mut own)] {
            best.1 = f64::max(best.1, memory::mebibytes(command));
        }
    }
    println!(
        "| {what} | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} | {:.2} |",
        git.0,
        own.0,
        own.0 / git.0,
        git.1,
        own.1,
        own.1 / git.1
    );
}

fn start(command: &mut Command) -> Child {
    // As in a pod, where they are not set: OpenSSL reads what they name as soon as it is there.
    command
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .stdout(Stdio::null());
    command.spawn().unwrap()
}

fn milliseconds(mut command: Command) -> f64 {
    let begin = Instant::now();
    let done = start(&mut command).wait().unwrap();
    assert!(done.success(), "{command:?}: {done}");
    begin.elapsed().as_secs_f64() * 1000.0
}
