//! A folder with remote repositories, a workspace and a trusted dir in it, and the git command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use runledger::git::{self, Access, CheckedOut, Place, Wanted};
use runledger::report::{Lines, PathName};
use tempfile::TempDir;
use url::Url;

use crate::server::{Manner, PASSWORD, Server, USER};

pub(crate) struct Lab {
    pub(crate) dir: TempDir,
    pub(crate) place: Place,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = Place {
            trusted: dir.path().join("state/git"),
            worktree: dir.path().join("work"),
        };
        std::fs::create_dir_all(&place.worktree).unwrap();
        std::fs::create_dir_all(dir.path().join("served")).unwrap();
        Self { dir, place }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn served(&self) -> PathBuf {
        self.path("served")
    }

    /// A bare repository `served/name`, that takes pushes, and a clone of it to fill it from.
    pub(crate) fn remote(&self, name: &str) -> PathBuf {
        let bare = self.served().join(name);
        std::fs::create_dir_all(&bare).unwrap();
        git(&bare, &["init", "-q", "--bare", "-b", "trunk"]);
        git(&bare, &["config", "http.receivepack", "true"]);
        let clone = self.path(&format!("clone-{name}"));
        git(
            self.dir.path(),
            &[
                "clone",
                "-q",
                bare.to_str().unwrap(),
                clone.to_str().unwrap(),
            ],
        );
        clone
    }

    /// `remote("project.git")` with two commits on its branch `trunk`.
    pub(crate) fn project(&self) -> PathBuf {
        let clone = self.remote("project.git");
        write(&clone, "README.md", "# project\n");
        write(&clone, "src/main.rs", "fn main() {}\n");
        commit(&clone, "Begin");
        write(&clone, "src/lib.rs", "//! Nothing yet.\n");
        commit(&clone, "Go on");
        git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
        clone
    }

    pub(crate) fn plain_server(&self) -> Server {
        Server::start(&self.served(), Manner::default())
    }

    pub(crate) fn work(&self) -> &Path {
        &self.place.worktree
    }

    pub(crate) fn checkout(&self, url: &Url) -> CheckedOut {
        self.try_checkout(url, None, &Access::default()).unwrap()
    }

    pub(crate) fn try_checkout(
        &self,
        url: &Url,
        branch: Option<&str>,
        access: &Access,
    ) -> Result<CheckedOut, git::Error> {
        let wanted = Wanted {
            reference: branch.map(str::to_owned),
            ..Wanted::new(url.clone())
        };
        self.try_wanted(&wanted, access)
    }

    pub(crate) fn try_wanted(
        &self,
        wanted: &Wanted,
        access: &Access,
    ) -> Result<CheckedOut, git::Error> {
        git::checkout(&self.place, wanted, access, &AtomicBool::new(false))
    }
}

/// The right password for a server, for the host in the test's URLs.
pub(crate) fn access(server: &Server) -> Access {
    Access {
        username: Some(USER.to_owned()),
        password: Some(PASSWORD.to_owned()),
        hosts: vec![server.address.to_string()],
        ca_files: vec![server.ca.clone()],
        ..Access::default()
    }
}

/// Runs git with no configuration but the repository's own, and gives back what it printed.
pub(crate) fn git(dir: &Path, args: &[&str]) -> String {
    let output = command(dir, args).output().unwrap();
    assert!(
        output.status.success(),
        "git {args:?} in {}: {}",
        dir.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Whether this machine's git looks at a last line without an end when it looks for renames, as it has
/// done since 2.44, and as we do.
pub(crate) fn scores_last_lines() -> bool {
    static IT_DOES: OnceLock<bool> = OnceLock::new();
    *IT_DOES.get_or_init(|| {
        let version = git(Path::new("/"), &["version"]);
        let mut numbers = version
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse::<u32>().ok());
        (numbers.next().unwrap(), numbers.next().unwrap()) >= (2, 44)
    })
}

pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0");
    for who in ["AUTHOR", "COMMITTER"] {
        command
            .env(format!("GIT_{who}_NAME"), "Ada")
            .env(format!("GIT_{who}_EMAIL"), "ada@example.com");
    }
    command
}

/// Writes a file, in the place of a link of that name: through it the content would land
/// elsewhere, or nowhere when the link leads back to itself.
pub(crate) fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    if path.is_symlink() {
        std::fs::remove_file(&path).unwrap();
    }
    std::fs::write(path, content).unwrap();
}

/// Commits everything, and gives back the commit.
pub(crate) fn commit(dir: &Path, subject: &str) -> String {
    git(dir, &["add", "-A"]);
    git(dir, &["commit", "-q", "--allow-empty", "-m", subject]);
    git(dir, &["rev-parse", "HEAD"])
}

/// Files, lines added and lines removed, as git counts them.
pub(crate) fn numstat(dir: &Path, from: &str, to: &str) -> (u32, u64, u64) {
    let out = git(dir, &["diff", "--numstat", "-M", from, to]);
    out.lines()
        .fold((0, 0, 0), |(files, added, removed), line| {
            let mut columns = line.split('\t').map(|n| n.parse::<u64>().unwrap_or(0));
            (
                files + 1,
                added + columns.next().unwrap(),
                removed + columns.next().unwrap(),
            )
        })
}

/// Lines of `git diff --numstat -M` by path: lines added and removed, and where it was renamed from.
pub(crate) type Numstat = BTreeMap<String, String>;

fn line(count: Option<(u64, u64)>, from: Option<String>) -> String {
    let count = count.map_or("-".to_owned(), |(added, removed)| {
        format!("+{added} -{removed}")
    });
    count + &from.map_or(String::new(), |from| format!(" from {from}"))
}

/// What `git diff --numstat -M -z` prints with these arguments.
pub(crate) fn numstat_of(dir: &Path, args: &[&str]) -> Numstat {
    let all = [&["diff", "--numstat", "-M", "-z"], args].concat();
    let output = command(dir, &all).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    let mut lines = Numstat::new();
    let mut fields = output.stdout.split(|&b| b == 0);
    while let Some(field) = fields.next().filter(|field| !field.is_empty()) {
        let mut columns = field.splitn(3, |&b| b == b'\t');
        let mut number = || {
            std::str::from_utf8(columns.next().unwrap())
                .unwrap()
                .parse()
                .ok()
        };
        let count = number().zip(number());
        let path = columns.next().unwrap();
        let (from, path) = match path.is_empty() {
            true => (Some(shown(fields.next().unwrap())), fields.next().unwrap()),
            false => (None, path),
        };
        lines.insert(shown(path), line(count, from));
    }
    lines
}

/// Our lines in the same form.
pub(crate) fn numstat_by_us(lines: &Lines) -> Numstat {
    let numstat: Numstat = lines
        .files
        .iter()
        .map(|file| {
            let from = file.renamed_from.as_ref().map(path);
            let count = file.added_lines.zip(file.removed_lines);
            assert_eq!(file.binary, count.is_none());
            (path(&file.name), line(count, from))
        })
        .collect();
    assert_eq!(numstat.len() as u64, lines.files_changed);
    numstat
}

/// The bytes of a path, readable and without loss.
pub(crate) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// Our form of a path in the same form.
pub(crate) fn path(name: &PathName) -> String {
    let Some(hex) = &name.path_hex else {
        return shown(name.path.as_bytes());
    };
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    shown(&bytes)
}

/// Fails the test, rather than hanging it.
pub(crate) fn within<T: Send>(seconds: u64, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        scope.spawn(move || sender.send(what()));
        let done = receiver.recv_timeout(Duration::from_secs(seconds));
        if let Err(RecvTimeoutError::Timeout) = done {
            // A scope would wait for the thread that hangs.
            eprintln!("not done within {seconds} s");
            std::process::abort();
        }
        done.expect("it has panicked")
    })
}

/// Every file below a folder that holds these bytes.
pub(crate) fn files_with(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), needle));
        } else if kind.is_file() {
            let bytes = std::fs::read(entry.path()).unwrap();
            if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
                found.push(entry.path());
            }
        }
    }
    found
}
