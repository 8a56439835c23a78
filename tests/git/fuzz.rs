//! Damage of every kind in `.git` and in the files that rule a worktree: nothing panics, nothing hangs,
//! nothing from outside comes in. `FUZZ_SECONDS` says for how long (60), `GIT_SEED` repeats a run; the
//! seed of the case at hand is in the file that is named at the start, should the process die of it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use runledger::git::{self, Limits};

use crate::dice::Dice;
use crate::lab::{self, Lab, commit, write};

const CANARY: &str = "c4n4ry-that-never-comes-in";

/// A checkout with some of everything: loose objects, a pack with differences, branches, an index.
fn template() -> (Lab, url::Url, String) {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let initial = lab.checkout(&url).initial_commit.unwrap();
    for n in 0..6 {
        let text: String = (0..200)
            .map(|line| format!("{} {}\n", line, line % (n + 2)))
            .collect();
        write(lab.work(), "src/long.rs", text);
        write(lab.work(), &format!("docs/{n}.md"), format!("{n}\n"));
        commit(lab.work(), "Work");
    }
    lab::git(lab.work(), &["repack", "-q", "-a", "-d"]);
    lab::git(lab.work(), &["switch", "-q", "-c", "side"]);
    write(lab.work(), ".gitignore", "*.log\n");
    write(lab.work(), ".gitattributes", "*.md -diff\n*.rs text=auto\n");
    commit(lab.work(), "Rules");
    write(lab.work(), "staged", "1\n");
    lab::git(lab.work(), &["add", "staged"]);
    write(lab.work(), "src/main.rs", "fn main() { }\r\n");
    std::fs::write(lab.path("outside"), CANARY).unwrap();
    (lab, url, initial)
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Files below `.git`, and those that rule the worktree.
fn targets(work: &Path) -> Vec<PathBuf> {
    fn all(dir: &Path, into: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            // Hooks are never looked at.
            if entry.file_type().unwrap().is_dir() && entry.file_name() != "hooks" {
                all(&path, into);
            }
            into.push(path);
        }
    }
    let mut found = Vec::new();
    all(&work.join(".git"), &mut found);
    for name in [".gitignore", ".gitattributes", "src/main.rs", "src"] {
        found.push(work.join(name));
        // More often than their number says.
        found.push(work.join(".git/index"));
        found.push(work.join(".git/HEAD"));
    }
    found.sort();
    found
}

fn gone(path: &Path) {
    match path.is_dir() && !path.is_symlink() {
        true => drop(std::fs::remove_dir_all(path)),
        false => drop(std::fs::remove_file(path)),
    }
}

fn damage(work: &Path, outside: &Path, dice: &mut Dice) -> String {
    let targets = targets(work);
    let path = targets[dice.below(targets.len())].clone();
    let other = targets[dice.below(targets.len())].clone();
    let how = dice.below(14);
    // What an earlier damage put there may be a FIFO, or a link to what has no end.
    let is_file = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
    let bytes = is_file(&path).then(|| std::fs::read(&path).ok()).flatten();
    if is_file(&path) {
        let _ = std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755));
    }
    match (how, bytes) {
        (0..6, Some(mut bytes)) if !bytes.is_empty() => {
            for _ in 0..1 + dice.below(8) {
                let at = dice.below(bytes.len());
                match dice.below(4) {
                    0 => bytes[at] ^= 1 << dice.below(8),
                    1 => bytes[at] = [0, 0xff, 0x7f, 0x80][dice.below(4)],
                    2 => {
                        let end = (at + 4).min(bytes.len());
                        bytes[at..end].fill([0, 0xff][dice.below(2)]);
                    }
                    _ => drop(bytes.splice(at..at, vec![b'*'; dice.below(5000)])),
                }
            }
            let _ = std::fs::write(&path, bytes);
        }
        (6, Some(bytes)) => drop(std::fs::write(&path, &bytes[..dice.below(bytes.len() + 1)])),
        (7, Some(mut bytes)) => {
            bytes.extend((0..dice.below(500)).map(|_| dice.next() as u8));
            let _ = std::fs::write(&path, bytes);
        }
        (8, _) => gone(&path),
        (9, _) => {
            gone(&path);
            let to = [Path::new("/dev/zero"), outside, Path::new("."), &path][dice.below(4)];
            let _ = symlink(to, &path);
        }
        (10, _) => {
            gone(&path);
            let _ = nix::unistd::mkfifo(&path, Mode::S_IRWXU);
        }
        (11, _) => {
            gone(&path);
            let _ = std::fs::create_dir(&path);
        }
        (12, Some(bytes)) if !other.is_dir() => {
            gone(&other);
            let _ = std::fs::write(&other, bytes);
        }
        _ => {
            let lines = [
                "gitdir: /etc\n",
                "ref: refs/heads/side\n",
                "../../outside\n",
                "/\n",
                "**/**/*a*b*c\n[z-a]\n!\\\n",
                "[attr]x x\n* x=y -text eol=crlf\n",
                "0000000000000000000000000000000000000000\n",
            ];
            let line = lines[dice.below(lines.len())];
            let name = [
                "commondir",
                "gitdir",
                "objects/info/alternates",
                "shallow",
                "packed-refs",
                "info/exclude",
            ];
            let path = work.join(".git").join(name[dice.below(name.len())]);
            gone(&path);
            let _ = std::fs::create_dir_all(path.parent().unwrap());
            let _ = std::fs::write(&path, line);
            return format!("{} {line:?}", path.display());
        }
    }
    format!("{how} {} {}", path.display(), other.display())
}

#[test]
fn no_damage_makes_anything_hang_or_panic() {
    let mut dice = Dice::from_environment();
    let seconds = std::env::var("FUZZ_SECONDS").map_or(60, |seconds| seconds.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let (template, url, initial) = template();
    let note =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("git-fuzz-{}", std::process::id()));
    println!("the case at hand: {}", note.display());
    let (mut cases, mut taken) = (0, 0);
    while Instant::now() < end || cases == 0 {
        let seed = dice.seed() + cases;
        std::fs::write(&note, format!("GIT_SEED={seed}\n")).unwrap();
        dice = Dice::new(seed);
        let case = Lab::new();
        copy(template.work(), case.work());
        copy(&template.place.trusted, &case.place.trusted);
        let outside = template.path("outside");
        for _ in 0..1 + dice.below(4) {
            damage(case.work(), &outside, &mut dice);
        }
        dice = Dice::new(seed - cases);
        cases += 1;
        lab::within(60, || {
            if let Ok(head) = git::take_over(&case.place) {
                taken += 1;
                let _ = git::changes(&case.place, &url, Some(&initial), &head);
                let _ = git::patch(&case.place, Some(&initial), &head, Limits::NONE);
            }
            let _ = git::inspect(case.work(), &initial);
            let _ = git::inspect_patch(case.work(), &initial, Limits::NONE);
        });
        assert_eq!(
            lab::files_with(&case.place.trusted, CANARY),
            Vec::<PathBuf>::new(),
            "GIT_SEED={seed}"
        );
    }
    std::fs::remove_file(note).unwrap();
    println!("{cases} cases, in {taken} of them there was something to take over");
}
