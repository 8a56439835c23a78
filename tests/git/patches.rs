//! A run's change as a patch: what git would print, and what `git apply` makes the final state of.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use runledger::git::{self, Limits};
use runledger::wire::patch::PatchText;

use crate::lab::{self, Lab, command, commit, write};

/// Holds the patches since a commit against git's own, and against what `git apply` makes of them.
pub(crate) fn compare(dir: &Path, since: &str, head: &str) -> Result<(), String> {
    let ours = git::inspect_patch(dir, since, Limits::NONE).map_err(|e| e.to_string())?;
    let args = ["diff", "-M", "--full-index", since, head];
    let gits = command(dir, &args).output().unwrap().stdout;
    let gits = without_binary(&gits);
    let shown = without_binary(&body(&ours.committed));
    if shown != gits {
        let (ours, gits) = (sections(&shown), sections(&gits));
        let only = |one: &[Vec<u8>], other: &[Vec<u8>]| {
            let alone = one.iter().find(|section| !other.contains(section));
            readable(alone.map_or(&b"nothing"[..], |section| section))
        };
        let (mine, theirs) = (only(&ours, &gits), only(&gits, &ours));
        return Err(format!("patch: only ours {mine}\nonly git's {theirs}"));
    }
    let applied = match apply(dir, Some(head_tree(dir, since)), &ours.committed) {
        Err(_) if !git_applies_its_own(dir, since, head) => return Ok(()),
        applied => applied?,
    };
    only_binary_differ(dir, &applied, head, &ours.committed)?;

    let uncommitted = &ours.uncommitted;
    if let Some(why) = &uncommitted.unknown {
        return Err(format!("uncommitted: {why}"));
    }
    if uncommitted.left_out == 0 {
        let applied = match apply(dir, Some(head_tree(dir, head)), uncommitted) {
            // A file that git was told not to look for, in a folder that is none any more.
            Err(why) if why.contains("as both a file and as a directory") && is_blind(dir) => {
                return Ok(());
            }
            applied => applied?,
        };
        only_binary_differ(dir, &applied, &worktree(dir), uncommitted)?;
    }
    Ok(())
}

/// Whether files are marked as unchanged or skipped, whatever is in the worktree.
fn is_blind(dir: &Path) -> bool {
    let files = lab::git(dir, &["ls-files", "-v"]);
    files.lines().any(|line| !line.starts_with(['H', 'M']))
}

fn head_tree(dir: &Path, commit: &str) -> String {
    lab::git(dir, &["rev-parse", &format!("{commit}^{{tree}}")])
}

/// The tree that `git apply` makes of another, which stays as it is.
pub(crate) fn apply(dir: &Path, tree: Option<String>, patch: &PatchText) -> Result<String, String> {
    let index = tempfile::tempdir().unwrap();
    let index = index.path().join("index");
    let git = |args: &[&str]| {
        let mut git = command(dir, args);
        git.env("GIT_INDEX_FILE", &index);
        git
    };
    if let Some(tree) = tree {
        assert!(git(&["read-tree", &tree]).status().unwrap().success());
    }
    if !body(patch).is_empty() {
        let mut child = git(&["apply", "--cached", "--whitespace=nowarn"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&patch.text).unwrap();
        drop(stdin);
        let done = child.wait_with_output().unwrap();
        if !done.status.success() {
            let (said, text) = (readable(&done.stderr), readable(&patch.text));
            return Err(format!("git apply: {said}\n{text}"));
        }
    }
    let done = git(&["write-tree"]).output().unwrap();
    Ok(String::from_utf8(done.stdout).unwrap().trim().to_owned())
}

/// Whether `git apply` takes what `git diff` prints.
fn git_applies_its_own(dir: &Path, since: &str, head: &str) -> bool {
    let args = ["diff", "-M", "--binary", "--full-index", since, head];
    let patch = PatchText {
        text: command(dir, &args).output().unwrap().stdout,
        files: 1,
        ..PatchText::default()
    };
    apply(dir, Some(head_tree(dir, since)), &patch).is_ok()
}

/// The tree that `git add -A` would make of the worktree.
fn worktree(dir: &Path) -> String {
    let place = tempfile::tempdir().unwrap();
    let index = place.path().join("index");
    let own = dir.join(".git/index");
    std::fs::copy(&own, &index).unwrap();
    // Git mistrusts files that are as young as the index: it must look as young as it is.
    let age = own.metadata().unwrap().modified().unwrap();
    let copy = std::fs::File::options().append(true).open(&index).unwrap();
    copy.set_modified(age).unwrap();
    let git = |args: &[&str]| {
        let mut git = command(dir, args);
        git.env("GIT_INDEX_FILE", &index).output().unwrap()
    };
    let added = git(&["add", "-A"]);
    assert!(added.status.success(), "{added:?}");
    let tree = git(&["write-tree"]).stdout;
    String::from_utf8(tree).unwrap().trim().to_owned()
}

fn only_binary_differ(dir: &Path, one: &str, other: &str, patch: &PatchText) -> Result<(), String> {
    let differ = lab::git(dir, &["diff", "--name-only", "--no-renames", one, other]);
    let lines = patch.text.split_inclusive(|&b| b == b'\n');
    let head: Vec<u8> = lines
        .take_while(|line| line.starts_with(b"#"))
        .flatten()
        .copied()
        .collect();
    let head = String::from_utf8(head).unwrap();
    let is_named = |path: &str| {
        let path = path.trim_matches('"');
        ["a", "b"]
            .iter()
            .any(|side| head.contains(&format!("{side}/{path}")))
    };
    match differ.lines().find(|path| !is_named(path)) {
        Some(path) => {
            let text = readable(&patch.text);
            Err(format!("applied, it differs in {path}:\n{text}"))
        }
        None => Ok(()),
    }
}

/// The patch without the lines at its head.
fn body(patch: &PatchText) -> Vec<u8> {
    let lines = patch.text.split_inclusive(|&b| b == b'\n');
    lines
        .skip_while(|line| line.starts_with(b"#"))
        .flatten()
        .copied()
        .collect()
}

/// A diff file by file.
fn sections(diff: &[u8]) -> Vec<Vec<u8>> {
    let mut sections: Vec<Vec<u8>> = Vec::new();
    for line in diff.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b"diff --git ") {
            sections.push(Vec::new());
        }
        sections.last_mut().unwrap().extend_from_slice(line);
    }
    sections
}

fn readable(text: &[u8]) -> String {
    text.escape_ascii().to_string().replace("\\n", "\n")
}

/// A diff without its binary files.
fn without_binary(diff: &[u8]) -> Vec<u8> {
    let is_binary = |section: &Vec<u8>| {
        let mut lines = section.split(|&b| b == b'\n');
        lines.any(|line| line.starts_with(b"Binary files "))
    };
    let sections = sections(diff).into_iter();
    sections
        .filter(|section| !is_binary(section))
        .flatten()
        .collect()
}

/// A repository with one commit, and what is done to it then.
fn changed(before: impl FnOnce(&Path), after: impl FnOnce(&Path)) -> (Lab, String) {
    let lab = Lab::new();
    lab::git(lab.work(), &["init", "-q", "-b", "trunk"]);
    before(lab.work());
    let first = commit(lab.work(), "Begin");
    after(lab.work());
    (lab, first)
}

fn patch_of(lab: &Lab, since: &str, limits: Limits) -> runledger::wire::patch::Patch {
    git::inspect_patch(lab.work(), since, limits).unwrap()
}

#[test]
fn a_patch_is_what_git_prints_for_each_kind_of_change() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let long: String = (0..60)
        .map(|n| format!("fn f{n}() {{\n    {n}\n}}\n"))
        .collect();
    let (lab, first) = changed(
        |work| {
            write(work, "edited.rs", &long);
            write(work, "moved.rs", long.replace("fn", "pub fn"));
            write(work, "same.txt", "1\n2\n3\n");
            write(work, "mode.sh", "#!/bin/sh\n");
            write(work, "gone", "x");
            write(work, "becomes-a-link", "y\n");
            write(work, "a \"b\"\t\n\u{fc}", "z\n");
            symlink("same.txt", work.join("link")).unwrap();
            write(work, "folder/file", "f\n");
        },
        |work| {
            write(
                work,
                "edited.rs",
                long.replace("    7\n", "    seven\n") + "end",
            );
            std::fs::remove_file(work.join("moved.rs")).unwrap();
            write(
                work,
                "to/moved.rs",
                long.replace("fn", "pub fn").replace("3\n", "three\n"),
            );
            std::fs::rename(work.join("same.txt"), work.join("same name.txt")).unwrap();
            std::fs::set_permissions(work.join("mode.sh"), PermissionsExt::from_mode(0o755))
                .unwrap();
            std::fs::remove_file(work.join("gone")).unwrap();
            std::fs::remove_file(work.join("becomes-a-link")).unwrap();
            symlink("elsewhere", work.join("becomes-a-link")).unwrap();
            write(work, "a \"b\"\t\n\u{fc}", "zz\n");
            std::fs::remove_file(work.join("link")).unwrap();
            symlink("mode.sh", work.join("link")).unwrap();
            std::fs::remove_dir_all(work.join("folder")).unwrap();
            write(work, "folder", "now a file\r\n");
            write(work, "empty", "");
            write(work, "latin", b"caf\xe9\n");
            commit(work, "All of it");
        },
    );
    compare(lab.work(), &first, "HEAD").unwrap();
    let patch = patch_of(&lab, &first, Limits::NONE);
    assert_eq!((patch.committed.binary, patch.committed.left_out), (0, 0));
    assert_eq!(patch.committed.files, 12);
    assert_eq!(
        patch.committed.size,
        Some(patch.committed.text.len() as u64)
    );
    assert!(patch.uncommitted.is_empty());
    let applied = apply(
        lab.work(),
        Some(head_tree(lab.work(), &first)),
        &patch.committed,
    );
    assert_eq!(applied.unwrap(), head_tree(lab.work(), "HEAD"));
}

#[test]
fn a_binary_file_is_named_and_the_rest_still_applies() {
    let (lab, first) = changed(
        |work| write(work, "logo.png", b"\0one"),
        |work| {
            write(work, "logo.png", b"\0two");
            write(work, "text", "t\n");
            commit(work, "Both");
        },
    );
    let patch = patch_of(&lab, &first, Limits::NONE).committed;
    assert_eq!((patch.files, patch.binary), (1, 1));
    let text = String::from_utf8(patch.text.clone()).unwrap();
    let head =
        "# Not in this patch:\n#   Binary files a/logo.png and b/logo.png differ\ndiff --git ";
    assert!(text.starts_with(head), "{text}");
    compare(lab.work(), &first, "HEAD").unwrap();
}

#[test]
fn what_is_too_large_for_a_patch_is_left_out_whole_and_named() {
    let (lab, first) = changed(
        |work| write(work, "small", "1\n"),
        |work| {
            write(work, "large", "line\n".repeat(10_000));
            write(work, "small", "2\n");
            commit(work, "Both");
        },
    );
    let limits = Limits {
        bytes: 20_000,
        ..Limits::NONE
    };
    let patch = patch_of(&lab, &first, limits).committed;
    assert_eq!((patch.files, patch.left_out), (1, 1));
    assert!(patch.size > Some(60_000) && patch.text.len() < 1000);
    let text = String::from_utf8(patch.text.clone()).unwrap();
    assert!(text.contains("#   large: 60"), "{text}");
    assert!(text.contains("bytes, too large for this patch\n"), "{text}");
    let applied = apply(lab.work(), Some(head_tree(lab.work(), &first)), &patch).unwrap();
    assert_eq!(
        lab::git(lab.work(), &["diff", "--name-only", &applied, "HEAD"]),
        "large"
    );

    // Once its time or its reading is used up, the rest is named, and its size is not known.
    for limits in [
        Limits {
            until: Some(Instant::now()),
            ..Limits::NONE
        },
        Limits {
            read: 1,
            ..Limits::NONE
        },
    ] {
        let patch = patch_of(&lab, &first, limits).committed;
        assert_eq!((patch.files, patch.left_out, patch.size), (0, 2, None));
    }
}

#[test]
fn uncommitted_work_is_a_patch_of_its_own_upon_the_final_commit() {
    let (lab, first) = changed(
        |work| {
            write(work, ".gitignore", "*.log\n");
            write(work, "a", "1\n");
            write(work, "b", "1\n");
            write(work, "back", "1\n");
        },
        |work| {
            write(work, "a", "2\n");
            commit(work, "Committed");
            write(work, "a", "3\n");
            lab::git(work, &["add", "a"]);
            write(work, "a", "4\n");
            write(work, "back", "2\n");
            lab::git(work, &["add", "back"]);
            write(work, "back", "1\n");
            std::fs::remove_file(work.join("b")).unwrap();
            write(work, "new/file", "n\n");
            write(work, "noise.log", "l\n");
            lab::git(work, &["init", "-q", "nested"]);
            write(work, "nested/inner", "i\n");
            commit(&work.join("nested"), "Inner");
        },
    );
    let patch = patch_of(&lab, &first, Limits::NONE);
    let text = String::from_utf8(patch.uncommitted.text.clone()).unwrap();
    assert_eq!(
        (patch.uncommitted.files, patch.uncommitted.left_out),
        (3, 1)
    );
    assert!(text.contains("-2\n+4\n"), "{text}");
    for (part, is_there) in [
        ("new/file", true),
        ("b/b", true),
        ("noise", false),
        ("back", false),
    ] {
        assert_eq!(text.contains(part), is_there, "{part}: {text}");
    }
    assert!(
        text.contains("#   nested/: a repository of its own\n"),
        "{text}"
    );
    let head = head_tree(lab.work(), "HEAD");
    let applied = apply(lab.work(), Some(head), &patch.uncommitted).unwrap();
    let of = |what: &str| lab::git(lab.work(), &["show", &format!("{applied}:{what}")]);
    assert_eq!(
        (of("a"), of("new/file"), of("back")),
        ("4".into(), "n".into(), "1".into())
    );
    let committed = String::from_utf8(patch.committed.text).unwrap();
    assert!(committed.contains("-1\n+2\n"), "{committed}");
}

#[test]
fn a_submodule_that_moved_is_one_line_in_a_patch() {
    let (lab, first) = changed(
        |work| {
            lab::git(work, &["init", "-q", "module"]);
            commit(&work.join("module"), "One");
            lab::git(work, &["add", "module"]);
        },
        |work| {
            commit(&work.join("module"), "Two");
            commit(work, "Move it");
        },
    );
    compare(lab.work(), &first, "HEAD").unwrap();
    let text = patch_of(&lab, &first, Limits::NONE).committed.text;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("+Subproject commit "), "{text}");
}

#[test]
fn the_patch_of_a_workspace_counts_both_halves_against_one_limit() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let initial = lab.checkout(&url).initial_commit.unwrap();
    write(lab.work(), "committed", "c\n".repeat(500));
    let last = commit(lab.work(), "Work");
    write(lab.work(), "left", "l\n".repeat(500));
    let head = git::take_over(&lab.place).unwrap();
    let of = |bytes| {
        let limits = Limits {
            bytes,
            ..Limits::NONE
        };
        git::patch(&lab.place, Some(&initial), &head, limits).unwrap()
    };
    let patch = of(10_000);
    assert_eq!(patch.final_commit, Some(last));
    assert_eq!((patch.committed.files, patch.uncommitted.files), (1, 1));
    let patch = of(2_000);
    assert_eq!((patch.committed.files, patch.uncommitted.left_out), (1, 1));
    // What can't be told of the one half does not take the other away.
    std::fs::write(lab.work().join(".git/index"), "no index").unwrap();
    let patch = of(10_000);
    assert_eq!(patch.committed.files, 1);
    assert!(patch.uncommitted.unknown.is_some());
}
