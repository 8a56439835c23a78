//! Every figure and every name of a report, against git's own: on repositories that random operations
//! have made. `GIT_SEED` repeats one run, `GIT_STEPS` makes it longer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use runledger::git;
use runledger::report::{Kind, Lines, Report};

use crate::dice::Dice;
use crate::lab::{self, command, numstat_by_us, numstat_of, path};

/// A repository that is being worked on at random.
struct Playground {
    dir: tempfile::TempDir,
    dice: Dice,
    /// Every commit that was ever HEAD.
    commits: Vec<String>,
    clock: i64,
    /// It goes backwards at times.
    clock_fails: bool,
    /// Line ends are converted. The attributes that say so are there from the beginning: once they
    /// change, git takes what is in the worktree for what is in the index.
    line_ends: bool,
    log: Vec<String>,
}

impl Playground {
    fn new(mut dice: Dice) -> Self {
        let (clock_fails, line_ends) = (dice.below(3) == 0, dice.below(3) == 0);
        let mut this = Self {
            dir: tempfile::tempdir().unwrap(),
            dice,
            commits: Vec::new(),
            clock: 1_700_000_000,
            clock_fails,
            line_ends,
            log: Vec::new(),
        };
        this.git(&["init", "-q", "-b", "main"]);
        if line_ends {
            let rules = "*.txt text eol=crlf\n*.rs text=auto\n*.md text\nsrc/a/* -text\n";
            std::fs::write(this.path().join(".gitattributes"), rules).unwrap();
        }
        for _ in 0..12 {
            this.write();
        }
        this.commit();
        this
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Runs git; what it says no to (a merge in conflict, nothing to commit) is part of the game.
    fn git(&mut self, args: &[&str]) -> bool {
        self.log.push(format!("git {}", args.join(" ")));
        let mut git = command(self.path(), args);
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_DATE"), format!("{} +0100", self.clock));
        }
        git.output().unwrap().status.success()
    }

    fn head(&self) -> Option<String> {
        let output = command(self.path(), &["rev-parse", "-q", "--verify", "HEAD"]).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    fn name(&mut self) -> PathBuf {
        const FOLDERS: [&[u8]; 8] = [
            b"",
            b"",
            b"src/",
            b"src/a/",
            b"docs/",
            b"\xc3\xbc/",
            b"build/",
            b"a-b/",
        ];
        const BASES: [&[u8]; 14] = [
            b"a.rs",
            b"b.rs",
            b"c.md",
            b"mod.rs",
            b"data.bin",
            b"x y",
            b"a",
            b"n\newline",
            b"\xff\xfe",
            b"tab\t",
            b"quote\"d",
            b"trace.log",
            b"keep.log",
            b"win.txt",
        ];
        let folder = FOLDERS[self.dice.below(FOLDERS.len())];
        let base = BASES[self.dice.below(BASES.len())];
        PathBuf::from(OsStr::from_bytes(&[folder, base].concat()))
    }

    /// A file or link of the worktree.
    fn pick(&mut self) -> Option<PathBuf> {
        fn all(dir: &Path, below: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(dir.join(below)).unwrap().flatten() {
                let path = below.join(entry.file_name());
                match entry.file_type().unwrap().is_dir() {
                    true if entry.file_name() != ".git" => all(dir, &path, into),
                    true => {}
                    // Rules are made and unmade elsewhere.
                    false if path.to_string_lossy().contains(".git") => {}
                    false => into.push(path),
                }
            }
        }
        let mut files = Vec::new();
        all(self.path(), Path::new(""), &mut files);
        files.sort();
        (!files.is_empty()).then(|| files.swap_remove(self.dice.below(files.len())))
    }

    /// Makes way for a file of this name, and gives its whole path.
    fn clear(&self, name: &Path) -> PathBuf {
        let mut above = PathBuf::new();
        for part in name.parent().unwrap() {
            above.push(part);
            let whole = self.path().join(&above);
            if !whole.is_dir() || whole.is_symlink() {
                let _ = std::fs::remove_file(&whole);
                std::fs::create_dir(&whole).unwrap();
            }
        }
        let whole = self.path().join(name);
        match whole.is_dir() && !whole.is_symlink() {
            true => std::fs::remove_dir_all(&whole).unwrap(),
            false => drop(std::fs::remove_file(&whole)),
        }
        whole
    }

    fn write(&mut self) {
        let name = self.name();
        let content = self.dice.content();
        let to = self.clear(&name);
        self.log.push(format!("write {name:?}"));
        std::fs::write(to, content).unwrap();
    }

    fn edit(&mut self) {
        let Some(name) = self.pick() else { return };
        let path = self.path().join(&name);
        if path.is_symlink() {
            return;
        }
        let content = std::fs::read(&path).unwrap();
        let rate = [20, 5, 2][self.dice.below(3)];
        let mut edited = Vec::new();
        for line in content.split_inclusive(|&b| b == b'\n') {
            match self.dice.below(rate) {
                0 => {
                    edited.extend_from_slice(format!("edited {}\n", self.dice.below(9)).as_bytes())
                }
                _ => edited.extend_from_slice(line),
            }
        }
        self.log.push(format!("edit {name:?}"));
        std::fs::write(path, edited).unwrap();
    }

    fn rename(&mut self) {
        let (Some(from), to) = (self.pick(), self.name()) else {
            return;
        };
        let content = (self.path().join(&from), self.dir.path().join(".git/moved"));
        std::fs::rename(&content.0, &content.1).unwrap();
        let to = self.clear(&to);
        self.log.push(format!("rename {from:?} {to:?}"));
        std::fs::rename(content.1, to).unwrap();
    }

    fn rules(&mut self) {
        const IGNORE: [&str; 6] = [
            "*.log\n!keep.log\n",
            "build/\n",
            "/docs/*\n!/docs/c.md\n",
            "**/a\n# no\n",
            "a?b\n[x]*\n",
            "",
        ];
        const ATTRIBUTES: [&str; 4] = [
            "*.md -diff\n*.bin diff\n",
            "win.txt diff\nsrc/** binary\n",
            "[attr]odd -diff\n*.rs odd\n",
            "",
        ];
        let (name, text) = match self.dice.below(3) {
            0 if self.line_ends => return,
            0 => (
                ".gitattributes",
                ATTRIBUTES[self.dice.below(ATTRIBUTES.len())],
            ),
            1 => (".gitignore", IGNORE[self.dice.below(IGNORE.len())]),
            _ => ("src/.gitignore", IGNORE[self.dice.below(IGNORE.len())]),
        };
        let to = self.clear(Path::new(name));
        self.log.push(format!("rules {name} {text:?}"));
        std::fs::write(to, text).unwrap();
    }

    /// A repository in the worktree; at times added as a submodule without a `.gitmodules`.
    fn nest(&mut self) {
        let name = ["nested", "src/nested"][self.dice.below(2)];
        let path = self.path().join(name);
        if !path.join(".git").exists() {
            self.clear(&Path::new(name).join("x"));
            self.git(&["init", "-q", "-b", "main", name]);
        }
        if self.dice.below(3) > 0 {
            let n = self.dice.below(1000).to_string();
            self.git(&["-C", name, "commit", "-q", "--allow-empty", "-m", &n]);
        }
    }

    fn change(&mut self) {
        match self.dice.below(24) {
            0..5 => self.edit(),
            5..9 => self.rename(),
            9..12 => self.write(),
            12..14 => {
                if let Some(name) = self.pick() {
                    self.log.push(format!("remove {name:?}"));
                    std::fs::remove_file(self.path().join(name)).unwrap();
                }
            }
            14 => {
                let (name, to) = (self.name(), self.name());
                let name = self.clear(&name);
                self.log.push(format!("link {name:?}"));
                symlink(to, name).unwrap();
            }
            15 => {
                if let Some(name) = self
                    .pick()
                    .filter(|name| !self.path().join(name).is_symlink())
                {
                    let mode = [0o644, 0o755][self.dice.below(2)];
                    self.log.push(format!("chmod {mode:o} {name:?}"));
                    std::fs::set_permissions(
                        self.path().join(name),
                        PermissionsExt::from_mode(mode),
                    )
                    .unwrap();
                }
            }
            16 => self.rules(),
            17 => self.nest(),
            18..20 => {
                if let Some(name) = self.pick() {
                    let name = name.to_owned();
                    self.add(&["add", "-f", "--"], &name);
                }
            }
            20 => {
                if let Some(name) = self.pick() {
                    self.add(&["add", "-N", "-f", "--"], &name);
                }
            }
            21 => {
                if let Some(name) = self.pick() {
                    self.add(&["rm", "-q", "--cached", "--"], &name);
                }
            }
            22 => drop(self.git(&["add", "-A"])),
            _ => {
                if let Some(name) = self.pick() {
                    let flag = [
                        "--assume-unchanged",
                        "--no-assume-unchanged",
                        "--skip-worktree",
                        "--no-skip-worktree",
                    ];
                    let flag = flag[self.dice.below(4)];
                    self.add(&["update-index", flag, "--"], &name);
                }
            }
        }
    }

    fn add(&mut self, args: &[&str], name: &Path) {
        self.log.push(format!("git {args:?} {name:?}"));
        let mut git = command(self.path(), args);
        git.arg(name).output().unwrap();
    }

    fn commit(&mut self) {
        // Clocks go wrong, too.
        self.clock += match self.dice.below(12) {
            0 if self.clock_fails => -500_000,
            1 => 0,
            _ => 60,
        };
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", "Step\n\nwith a body"]);
        self.commits.extend(self.head());
    }

    /// Something that moves HEAD.
    fn travel(&mut self) {
        let commit = self.commits[self.dice.below(self.commits.len())].clone();
        let branch = format!("b{}", self.dice.below(4));
        match self.dice.below(10) {
            0 => drop(self.git(&["switch", "-q", "-f", "-C", &branch, &commit])),
            1 => drop(self.git(&["switch", "-q", "-f", "--detach", &commit])),
            2 => drop(self.git(&["commit", "-q", "--amend", "-m", "Amended"])),
            3 => drop(self.git(&["reset", "-q", "--soft", &commit])),
            4 => drop(self.git(&["reset", "-q", "--mixed", &commit])),
            5 | 6 => {
                // Conflicts may stay.
                self.git(&["merge", "-q", "-m", "Merge", &commit]);
            }
            7 => {
                self.git(&["merge", "--abort"]);
                self.git(&["reset", "-q", "--hard", &commit]);
            }
            8 => drop(self.git(&["repack", "-q", "-a", "-d"])),
            _ => {
                let version = ["2", "3", "4"][self.dice.below(3)];
                self.git(&["update-index", "--index-version", version]);
            }
        }
        self.commits.extend(self.head());
    }

    /// Holds a report against git.
    fn compare(&mut self) -> Result<(), String> {
        let since = self.commits[self.dice.below(self.commits.len())].clone();
        let report = git::inspect(self.path(), &since).map_err(|e| e.to_string())?;
        let head = self.head().unwrap();
        let range = format!("{since}..{head}");
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let listed = |what: &str| lines(lab::git(self.path(), &["rev-list", what]));
        let ours: Vec<String> = report.commits.iter().map(|c| c.hash.clone()).collect();
        if self.clock_fails {
            // git itself is wrong then, by a few commits.
            let before: HashSet<String> = listed(&since).into_iter().collect();
            let truth = listed(&head).into_iter();
            let truth: BTreeSet<String> = truth.filter(|id| !before.contains(id)).collect();
            same("commits", &ours.into_iter().collect(), &truth)?;
        } else {
            same("rev-list", &ours, &listed(&range))?;
        }
        let base = command(self.path(), &["merge-base", "--all", &since, &head])
            .output()
            .unwrap();
        let bases = lines(String::from_utf8(base.stdout).unwrap());
        same(
            "rewritten",
            &report.history_rewritten,
            &!bases.contains(&since),
        )?;
        if report.history_rewritten {
            let found = report.merge_base.iter().all(|base| bases.contains(base));
            same(
                "merge base",
                &(found, report.merge_base.is_some()),
                &(true, !bases.is_empty()),
            )?;
        }
        let dirty = "--ignore-submodules=dirty";
        // Attributes that the index has and the worktree has not: git takes them from the index, but
        // only where a submodule has changed as well. We never do.
        let indexed = lab::git(self.path(), &["ls-files", "--", ".gitattributes"]);
        if indexed.is_empty() || self.path().join(".gitattributes").exists() {
            same(
                "numstat",
                &numstat_by_us(&report.committed),
                &numstat_of(self.path(), &[&since, &head]),
            )?;
            crate::patches::compare(self.path(), &since, &head)?;
        }
        let uncommitted = report
            .uncommitted
            .as_ref()
            .ok_or(report.uncommitted_unknown.clone().unwrap_or_default())?;
        let status = Status::read(self.path());
        // Beside files in conflict git pairs others in ways of its own.
        if status.unmerged.is_empty() {
            let staged = numstat_of(self.path(), &["--cached", dirty]);
            same("staged", &numstat_by_us(&uncommitted.staged), &staged)?;
            let unstaged = numstat_of(self.path(), &[dirty]);
            same("unstaged", &numstat_by_us(&uncommitted.unstaged), &unstaged)?;
        }
        let (mut told, mut status) = (Status::of(&report), status);
        if !status.unmerged.is_empty() {
            for all in [&mut told, &mut status] {
                all.staged.clear();
                all.unstaged.clear();
            }
        }
        same("status", &told, &status)
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: &T, gits: &T) -> Result<(), String> {
    if ours == gits {
        return Ok(());
    }
    // The lines in which they differ.
    let text = |it: &T| -> Vec<String> { format!("{it:#?}").lines().map(str::to_owned).collect() };
    let (ours, gits) = (text(ours), text(gits));
    let only = |one: &[String], other: &[String]| {
        one.iter()
            .filter(|line| !other.contains(line))
            .cloned()
            .collect::<String>()
    };
    let (mine, theirs) = (only(&ours, &gits), only(&gits, &ours));
    Err(format!("{what}: only ours {mine}\n only git's {theirs}"))
}

/// What `git status --porcelain=v2` says.
#[derive(Debug, Default, PartialEq)]
struct Status {
    staged: BTreeMap<String, char>,
    unstaged: BTreeMap<String, char>,
    untracked: BTreeSet<String>,
    unmerged: Vec<String>,
}

impl Status {
    fn read(dir: &Path) -> Self {
        let args = [
            "status",
            "--porcelain=v2",
            "-z",
            "--untracked-files=all",
            "--ignore-submodules=dirty",
        ];
        let output = command(dir, &args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut status = Self::default();
        let mut fields = output.stdout.split(|&b| b == 0);
        while let Some(field) = fields.next().filter(|field| !field.is_empty()) {
            let at = match field[0] {
                b'1' => 8,
                b'2' => 9,
                b'u' => 10,
                _ => 1,
            };
            let path = field.splitn(at + 1, |&b| b == b' ').last().unwrap();
            let path = lab::shown(path);
            match field[0] {
                b'?' => drop(status.untracked.insert(path)),
                b'u' => status.unmerged.push(path),
                kind => {
                    if kind == b'2' {
                        fields.next();
                    }
                    for (letter, to) in [
                        (field[2], &mut status.staged),
                        (field[3], &mut status.unstaged),
                    ] {
                        if letter != b'.' {
                            to.insert(path.clone(), char::from(letter));
                        }
                    }
                }
            }
        }
        status
    }

    fn of(report: &Report) -> Self {
        let letters = |lines: &Lines| {
            let letter = |kind| match kind {
                Kind::Added => 'A',
                Kind::Deleted => 'D',
                Kind::Renamed => 'R',
                Kind::TypeChanged => 'T',
                Kind::Modified | Kind::ModeChanged => 'M',
            };
            lines
                .files
                .iter()
                .map(|file| (path(&file.name), letter(file.kind)))
                .collect()
        };
        let uncommitted = report.uncommitted.as_ref().unwrap();
        Self {
            staged: letters(&uncommitted.staged),
            unstaged: letters(&uncommitted.unstaged),
            untracked: uncommitted.untracked.paths.iter().map(path).collect(),
            unmerged: uncommitted.unmerged.paths.iter().map(path).collect(),
        }
    }
}

#[test]
fn random_work_is_told_as_git_tells_it() {
    let dice = Dice::from_environment();
    let steps = std::env::var("GIT_STEPS").map_or(60, |steps| steps.parse().unwrap());
    let seed = dice.seed();
    let mut playground = Playground::new(dice);
    for step in 0..steps {
        for _ in 0..playground.dice.below(30) {
            playground.change();
        }
        match playground.dice.below(5) {
            0 | 1 => playground.commit(),
            2 => playground.travel(),
            _ => {}
        }
        if let Err(what) = playground.compare() {
            let kept = playground.dir.path().to_owned();
            let tail = playground.log.len().saturating_sub(60);
            let log = playground.log[tail..].join("\n");
            // Kept to be looked at.
            let _ = playground.dir.keep();
            panic!(
                "GIT_SEED={seed} step {step} in {}:\n{what}\nlast operations:\n{log}",
                kept.display()
            );
        }
    }
}

/// `make conformance REPOS=dir`: every neighbouring pair of commits of the clones in a folder, and a
/// thousand pairs that lie apart.
#[test]
#[ignore = "wants clones: make conformance REPOS=dir"]
fn real_repositories_are_told_as_git_tells_them() {
    let repos = std::env::var("REPOS").unwrap();
    let mut dice = Dice::from_environment();
    let (mut compared, mut wrong) = (0, Vec::new());
    for entry in std::fs::read_dir(repos).unwrap() {
        let repo = entry.unwrap().path();
        let list = command(&repo, &["rev-list", "--all", "--parents"])
            .output()
            .unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        let all: Vec<&str> = list.lines().map(|line| &line[..40]).collect();
        if all.is_empty() {
            continue;
        }
        let mut pairs: Vec<(&str, &str)> = list
            .lines()
            .flat_map(|line| line.split(' ').skip(1).map(|parent| (parent, &line[..40])))
            .collect();
        let any = |dice: &mut Dice| all[dice.below(all.len())];
        pairs.extend((0..1000).map(|_| (any(&mut dice), any(&mut dice))));
        println!("{}: {} pairs", repo.display(), pairs.len());
        for (from, to) in pairs {
            compared += 1;
            let report = git::compare(&repo, from, to).unwrap();
            let hashes: Vec<&str> = report.commits.iter().map(|c| c.hash.as_str()).collect();
            let listed = lab::git(&repo, &["rev-list", &format!("{from}..{to}")]);
            let is_same = same("rev-list", &hashes, &listed.lines().collect()).and_then(|()| {
                same(
                    "numstat",
                    &numstat_by_us(&report.committed),
                    &numstat_of(&repo, &[from, to]),
                )
            });
            if let Err(what) = is_same {
                println!("{from} {to}: {what}");
                wrong.push((from.to_owned(), to.to_owned()));
            }
        }
    }
    println!("{compared} pairs compared, {} differ", wrong.len());
    assert!(wrong.is_empty(), "{wrong:?}");
}
