//! Counting, against git's own `diff --numstat -M` and `rev-list --count`, on histories that nobody
//! has thought out. `GIT_SEED` repeats one.

use std::path::Path;

use runledger::git;

use crate::dice::Dice;
use crate::lab::*;

fn any_name(dice: &mut Dice) -> String {
    let dirs = ["", "src/", "src/a/", "docs/", "ü/", "deep/er/still/"];
    let bases = [
        "a.rs",
        "b.rs",
        "c.md",
        "mod.rs",
        "data.bin",
        "x y",
        "lock.json",
    ];
    format!(
        "{}{}",
        dirs[dice.below(dirs.len())],
        bases[dice.below(bases.len())]
    )
}

fn files(dir: &Path) -> Vec<String> {
    git(dir, &["-c", "core.quotePath=off", "ls-files"])
        .lines()
        .map(str::to_owned)
        .collect()
}

/// One random change of the worktree.
fn change(dir: &Path, dice: &mut Dice) {
    let files = files(dir);
    let pick = (!files.is_empty()).then(|| files[dice.below(files.len())].clone());
    match (dice.below(10), pick) {
        (0..3, Some(name)) => {
            // Some of its lines, at times so many that a rename of it is in doubt.
            let Ok(text) = std::fs::read_to_string(dir.join(&name)) else {
                return;
            };
            let rate = [20, 5, 2][dice.below(3)];
            let edited: String = text
                .split_inclusive('\n')
                .map(|line| match dice.below(rate) {
                    0 => format!("edited {}\n", dice.below(9)),
                    _ => line.to_owned(),
                })
                .collect();
            write(dir, &name, edited);
        }
        (3..6, Some(name)) => {
            let to = any_name(dice);
            if !dir.join(&to).exists() {
                std::fs::create_dir_all(dir.join(&to).parent().unwrap()).unwrap();
                let _ = std::fs::rename(dir.join(&name), dir.join(&to));
            }
        }
        (6, Some(name)) => drop(std::fs::remove_file(dir.join(name))),
        (7, Some(name)) if dir.join(&name).exists() => {
            std::fs::remove_file(dir.join(&name)).unwrap();
            std::os::unix::fs::symlink("a.rs", dir.join(&name)).unwrap();
        }
        (8, Some(name)) => {
            let to = any_name(dice);
            if !dir.join(&to).exists()
                && let Ok(bytes) = std::fs::read(dir.join(name))
            {
                write(dir, &to, bytes);
            }
        }
        _ => {
            let name = any_name(dice);
            let content = dice.content();
            let _ = std::fs::remove_file(dir.join(&name));
            write(dir, &name, content);
        }
    }
}

#[test]
fn changes_are_counted_as_git_counts_them() {
    let mut dice = Dice::from_environment();
    let seed = dice.seed();
    for round in 0..3 {
        let lab = Lab::new();
        let clone = lab.remote("project.git");
        for _ in 0..15 {
            let (name, content) = (any_name(&mut dice), dice.content());
            write(&clone, &name, content);
        }
        if round % 3 == 0 {
            write(
                &clone,
                ".gitattributes",
                "*.md -diff\n*.bin diff\nlock.json binary\n",
            );
        }
        commit(&clone, "Begin");
        git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
        let url = lab.plain_server().url("project.git");
        let initial = lab.checkout(&url).initial_commit.unwrap();
        for step in 0..5 {
            for _ in 0..dice.below(8) {
                change(lab.work(), &mut dice);
            }
            let last = commit(lab.work(), "Step");
            if dice.below(4) == 0 {
                git(
                    lab.work(),
                    &["switch", "-q", "-c", &format!("b{step}"), "HEAD~1"],
                );
                write(lab.work(), &format!("side{step}"), dice.text());
                commit(lab.work(), "Aside");
                git(lab.work(), &["merge", "-q", "-m", "Merge", &last]);
            }
            if dice.below(4) == 0 {
                git(lab.work(), &["repack", "-q", "-a", "-d"]);
            }
            let head = git::take_over(&lab.place).unwrap();
            let last = head.commit.clone().unwrap();
            let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
            let stats = changes.stats.as_ref().unwrap();
            let hashes: Vec<&str> = stats.commits.iter().map(|c| c.hash.as_str()).collect();
            let range = format!("{initial}..{last}");
            let place = format!("GIT_SEED={seed} round {round} step {step}: {range}");
            let by_git = git(lab.work(), &["rev-list", &range]);
            assert_eq!(hashes, by_git.lines().collect::<Vec<_>>(), "{place}");
            let by_git = numstat_of(lab.work(), &[&initial, &last]);
            assert_eq!(numstat_by_us(&stats.committed), by_git, "{place}");
            assert_eq!(
                (changes.commits as usize, changes.files as usize),
                (hashes.len(), by_git.len()),
                "{place}"
            );
            assert_eq!(
                (changes.files, changes.added, changes.removed),
                numstat(lab.work(), &initial, &last),
                "{place}"
            );
        }
    }
}
