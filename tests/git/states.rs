//! The states that a repository can be in, and what a report says of each: docs/git.md has the table.
//! At the end, where it says something else than git, on purpose.

use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::stat::Mode;
use runledger::git;
use runledger::report::{Kind, Report};
use tempfile::TempDir;

use crate::lab::{self, command, commit, git as run, path, write};

/// A repository with one commit, and that commit.
fn begun() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), &["init", "-q", "-b", "main"]);
    write(dir.path(), "a", "1\n2\n3\n");
    write(dir.path(), "b", "x\n");
    let first = commit(dir.path(), "Begin");
    (dir, first)
}

fn report(dir: &Path, since: &str) -> Report {
    lab::within(30, || git::inspect(dir, since)).unwrap()
}

fn why(dir: &Path, since: &str) -> String {
    lab::within(30, || git::inspect(dir, since))
        .unwrap_err()
        .to_string()
}

/// Path, kind, lines added and removed.
fn files(lines: &runledger::report::Lines) -> Vec<(String, Kind, Option<u64>, Option<u64>)> {
    let line = |file: &runledger::report::FileLine| {
        (
            path(&file.name),
            file.kind,
            file.added_lines,
            file.removed_lines,
        )
    };
    lines.files.iter().map(line).collect()
}

fn file(
    path: &str,
    kind: Kind,
    added: u64,
    removed: u64,
) -> (String, Kind, Option<u64>, Option<u64>) {
    (path.to_owned(), kind, Some(added), Some(removed))
}

#[test]
fn without_commits_nothing_has_changed_and_what_is_not_committed_is_told_apart() {
    let (dir, first) = begun();
    let clean = report(dir.path(), &first);
    assert_eq!((clean.commit_count, clean.committed.files_changed), (0, 0));
    assert!(clean.uncommitted.unwrap().is_clean());

    write(dir.path(), "staged", "1\n");
    run(dir.path(), &["add", "staged"]);
    write(dir.path(), "a", "1\n2\n");
    write(dir.path(), "new/er", "1\n");
    write(dir.path(), ".gitignore", "*.log\n");
    write(dir.path(), "x.log", "1\n");
    let report = report(dir.path(), &first);
    let uncommitted = report.uncommitted.unwrap();
    assert_eq!(
        files(&uncommitted.staged),
        [file("staged", Kind::Added, 1, 0)]
    );
    assert_eq!(
        files(&uncommitted.unstaged),
        [file("a", Kind::Modified, 0, 1)]
    );
    let untracked: Vec<String> = uncommitted.untracked.paths.iter().map(path).collect();
    assert_eq!(untracked, [".gitignore", "new/er"]);
    assert_eq!(
        (report.commit_count, report.committed.files_changed),
        (0, 0)
    );
}

#[test]
fn kinds_of_changes_have_their_names() {
    let (dir, first) = begun();
    write(dir.path(), "moved", "1\n2\n3\n4\n");
    std::fs::remove_file(dir.path().join("a")).unwrap();
    std::fs::remove_file(dir.path().join("b")).unwrap();
    symlink("moved", dir.path().join("b")).unwrap();
    write(dir.path(), "binary", "\0\n");
    write(dir.path(), "crlf", "1\r\n2\r\n");
    commit(dir.path(), "Change");
    let all = report(dir.path(), &first);
    let expected = [
        file("b", Kind::TypeChanged, 1, 1),
        ("binary".to_owned(), Kind::Added, None, None),
        file("crlf", Kind::Added, 2, 0),
        file("moved", Kind::Renamed, 1, 0),
    ];
    assert_eq!(files(&all.committed), expected);
    assert_eq!(all.committed.files[0].mode.as_deref(), Some("120000"));
    assert_eq!(
        all.committed.files[3]
            .renamed_from
            .as_ref()
            .map(path)
            .as_deref(),
        Some("a")
    );
    assert!(all.committed.files[1].binary);

    run(dir.path(), &["update-index", "--chmod=+x", "moved"]);
    let staged = report(dir.path(), &first).uncommitted.unwrap().staged;
    assert_eq!(files(&staged), [file("moved", Kind::ModeChanged, 0, 0)]);
    assert_eq!(staged.files[0].old_mode.as_deref(), Some("100644"));
}

#[test]
fn a_detached_head_and_other_branches_are_named() {
    let (dir, first) = begun();
    run(dir.path(), &["switch", "-q", "-c", "made/by-the-agent"]);
    write(dir.path(), "a", "1\n");
    let second = commit(dir.path(), "Cut\n\nwith a reason");
    let here = report(dir.path(), "main");
    assert_eq!(here.branch.as_deref(), Some("made/by-the-agent"));
    assert_eq!(
        (&here.initial_commit, &here.final_commit),
        (&Some(first), &Some(second.clone()))
    );
    assert_eq!(
        (
            here.commits[0].subject.as_str(),
            here.commits[0].author.as_str()
        ),
        ("Cut", "Ada <ada@example.com>")
    );
    run(dir.path(), &["switch", "-q", "--detach"]);
    assert_eq!(report(dir.path(), "HEAD~1").branch, None);
    assert_eq!(report(dir.path(), &second[..8]).commit_count, 0);
}

#[test]
fn an_unborn_branch_has_no_final_commit() {
    let (dir, first) = begun();
    run(dir.path(), &["switch", "-q", "--orphan", "new"]);
    let report = report(dir.path(), &first);
    assert_eq!(
        (report.branch.as_deref(), report.final_commit),
        (Some("new"), None)
    );
    assert_eq!(
        (report.commit_count, report.committed.files_changed),
        (0, 0)
    );
}

#[test]
fn rewritten_history_is_flagged_with_the_best_common_ancestor() {
    let (dir, base) = begun();
    write(dir.path(), "a", "1\n");
    let lost = commit(dir.path(), "Lost");
    run(dir.path(), &["reset", "-q", "--hard", &base]);
    write(dir.path(), "c", "1\n");
    commit(dir.path(), "Instead");
    let rewritten = report(dir.path(), &lost);
    assert!(rewritten.history_rewritten);
    assert_eq!(
        (rewritten.merge_base, rewritten.commit_count),
        (Some(base), 1)
    );
    assert_eq!(
        files(&rewritten.committed),
        [
            file("a", Kind::Modified, 2, 0),
            file("c", Kind::Added, 1, 0)
        ]
    );

    run(dir.path(), &["switch", "-q", "--orphan", "other"]);
    commit(dir.path(), "Unrelated");
    let unrelated = report(dir.path(), &lost);
    assert_eq!(
        (unrelated.history_rewritten, unrelated.merge_base),
        (true, None)
    );
}

#[test]
fn merges_bring_the_commits_of_both_sides() {
    let (dir, first) = begun();
    run(dir.path(), &["switch", "-q", "-c", "side"]);
    write(dir.path(), "side", "1\n");
    commit(dir.path(), "Side");
    run(dir.path(), &["switch", "-q", "main"]);
    write(dir.path(), "main", "1\n");
    commit(dir.path(), "Main");
    run(dir.path(), &["merge", "-q", "-m", "Merge", "side"]);
    let report = report(dir.path(), &first);
    assert_eq!(
        (report.commit_count, report.committed.files_changed),
        (3, 2)
    );
}

#[test]
fn a_shallow_boundary_that_is_crossed_is_said() {
    let (dir, _) = begun();
    for n in 0..3 {
        write(dir.path(), "a", format!("{n}\n"));
        commit(dir.path(), "More");
    }
    let clone = dir.path().join("clone");
    let url = format!("file://{}", dir.path().display());
    run(
        dir.path(),
        &["clone", "-q", "--depth", "2", &url, clone.to_str().unwrap()],
    );
    let within = report(&clone, "HEAD~1");
    assert_eq!((within.shallow, within.commit_count), (false, 1));
    run(&clone, &["fetch", "-q", "--depth", "1", "origin", "main"]);
    // A root of its own: nothing of the other side can be reached.
    run(&clone, &["switch", "-q", "--orphan", "alone"]);
    let alone = commit(&clone, "Alone");
    run(&clone, &["switch", "-q", "main"]);
    let crossed = report(&clone, &alone);
    assert!(crossed.shallow && crossed.history_rewritten, "{crossed:?}");
}

#[test]
fn submodules_are_a_line_each_and_nested_repositories_untracked() {
    let (dir, first) = begun();
    let inner = dir.path().join("inner");
    run(dir.path(), &["init", "-q", "-b", "main", "inner"]);
    write(&inner, "x", "1\n");
    commit(&inner, "Inside");
    let untracked = report(dir.path(), &first).uncommitted.unwrap().untracked;
    assert_eq!(
        untracked.paths.iter().map(path).collect::<Vec<_>>(),
        ["inner/"]
    );
    let before = commit(dir.path(), "Take it in");
    write(&inner, "x", "2\n");
    commit(&inner, "On");
    let moved = report(dir.path(), &before).uncommitted.unwrap().unstaged;
    assert_eq!(files(&moved), [file("inner", Kind::Modified, 1, 1)]);
    commit(dir.path(), "Bump");
    let bump = report(dir.path(), &before);
    assert_eq!(
        files(&bump.committed),
        [file("inner", Kind::Modified, 1, 1)]
    );
    assert_eq!(bump.committed.files[0].mode.as_deref(), Some("160000"));
}

#[test]
fn names_that_are_no_text_come_whole() {
    use std::os::unix::ffi::OsStrExt;

    let (dir, first) = begun();
    for name in [&b"\xff\n\t\""[..], "ü\u{1f600}".as_bytes()] {
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(name)), "1\n").unwrap();
    }
    commit(dir.path(), "Names");
    let names: Vec<String> = report(dir.path(), &first)
        .committed
        .files
        .iter()
        .map(|f| path(&f.name))
        .collect();
    assert_eq!(names, ["\\xc3\\xbc\\xf0\\x9f\\x98\\x80", "\\xff\\n\\t\\\""]);
}

#[test]
fn linked_worktrees_and_bare_repositories_are_read_too() {
    let (dir, first) = begun();
    let linked = dir.path().join("linked");
    run(
        dir.path(),
        &["worktree", "add", "-q", "-b", "side", "linked"],
    );
    write(&linked, "a", "1\n");
    commit(&linked, "Aside");
    write(&linked, "b", "y\n");
    let there = report(&linked, &first);
    assert_eq!(
        (there.branch.as_deref(), there.commit_count),
        (Some("side"), 1)
    );
    assert_eq!(
        files(&there.uncommitted.unwrap().unstaged),
        [file("b", Kind::Modified, 1, 1)]
    );
    let here = report(dir.path(), &first);
    assert_eq!(
        (here.branch.as_deref(), here.commit_count),
        (Some("main"), 0)
    );
    assert_eq!(
        here.uncommitted
            .unwrap()
            .untracked
            .paths
            .iter()
            .map(path)
            .collect::<Vec<_>>(),
        ["linked/"]
    );

    run(dir.path(), &["clone", "-q", "--bare", ".", "bare.git"]);
    let bare = report(&dir.path().join("bare.git"), "main");
    assert_eq!((bare.uncommitted, bare.uncommitted_unknown), (None, None));
}

#[test]
fn what_is_no_repository_or_a_broken_one_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    assert!(why(dir.path(), "HEAD").contains("is not in a git repository"));
    assert!(why(&dir.path().join("nowhere"), "HEAD").contains("can't open"));
    let (dir, first) = begun();
    assert!(why(dir.path(), "no-such").contains("names no commit"));
    assert!(why(dir.path(), "HEAD~9").contains("names no commit"));
    write(dir.path(), "a", "1\n");
    commit(dir.path(), "More");
    std::fs::write(dir.path().join(".git/index"), "DIRC rubbish").unwrap();
    let no_index = report(dir.path(), &first);
    assert_eq!((no_index.commit_count, no_index.uncommitted), (1, None));
    assert!(no_index.uncommitted_unknown.unwrap().contains("index"));
    let tree = run(dir.path(), &["rev-parse", "HEAD^{tree}"]);
    std::fs::remove_file(
        dir.path()
            .join(format!(".git/objects/{}/{}", &tree[..2], &tree[2..])),
    )
    .unwrap();
    assert!(why(dir.path(), &first).contains("is missing"));
    std::fs::write(dir.path().join(".git/HEAD"), "rubbish").unwrap();
    assert!(why(dir.path(), &first).contains("HEAD of the repository"));
    std::fs::remove_file(dir.path().join(".git/HEAD")).unwrap();
    assert!(why(dir.path(), &first).contains("is not in a git repository"));

    let sha256 = tempfile::tempdir().unwrap();
    run(sha256.path(), &["init", "-q", "--object-format=sha256"]);
    commit(sha256.path(), "Long");
    run(sha256.path(), &["checkout", "-q", "--detach"]);
    assert!(why(sha256.path(), "HEAD").contains("no SHA-1 commit"));
}

#[test]
fn a_loose_object_that_was_cut_is_a_sentence_and_no_endless_loop() {
    let (dir, first) = begun();
    let text: String = (0..5000).map(|n| format!("{}\n", n * n)).collect();
    write(dir.path(), "a", text);
    commit(dir.path(), "More");
    let id = run(dir.path(), &["rev-parse", "HEAD:a"]);
    let file = dir
        .path()
        .join(format!(".git/objects/{}/{}", &id[..2], &id[2..]));
    let whole = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let why = lab::within(60, || why(dir.path(), &first));
    assert!(why.contains(&format!("read object {id}")), "{why}");
}

#[test]
fn the_command_prints_the_report_for_people_and_programs() {
    let (dir, _) = begun();
    write(dir.path(), "a\u{1b}[31m", "1\n");
    commit(dir.path(), "Paint \u{1b}[31m");
    write(dir.path(), "b", "1\n2\n");
    let say = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_runledger"));
        command
            .arg("changes")
            .arg(dir.path())
            .args(args)
            .output()
            .unwrap()
    };
    let json = say(&["--since", "HEAD~1", "-o", "json"]);
    assert!(json.status.success());
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (
            &json["files_changed"],
            &json["added_lines"],
            &json["removed_lines"]
        ),
        (&1.into(), &1.into(), &0.into())
    );
    assert_eq!(json["commits"].as_array().unwrap().len(), 1);
    assert_eq!(json["files"][0]["kind"], "added");
    assert_eq!(json["uncommitted"]["unstaged"]["added_lines"], 2);
    let text = say(&["--since", "HEAD~1"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("committed: 1 files +1 -0") && !text.contains('\u{1b}'),
        "{text}"
    );
    let failed = say(&["--since", "nonsense"]);
    let why = String::from_utf8(failed.stderr).unwrap();
    assert!(
        !failed.status.success() && why.contains("\"nonsense\" names no commit"),
        "{why}"
    );
    assert_eq!(say(&[]).status.code(), Some(2));
}

#[test]
fn every_difference_on_purpose_has_its_test() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/git");
    let sources: String = std::fs::read_dir(dir)
        .unwrap()
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    for difference in git::DIFFERENCES {
        let test = format!("#[test]\nfn {}()", difference.test);
        assert!(sources.contains(&test), "{difference:?}");
    }
}

#[test]
fn configuration_changes_no_figure() {
    let (dir, first) = begun();
    write(dir.path(), "a", "1\n2\n3\n4\n");
    std::fs::remove_file(dir.path().join("b")).unwrap();
    write(dir.path(), "c", "x\n");
    commit(dir.path(), "Change");
    write(dir.path(), "a", "$Id: x$\r\n");
    write(
        dir.path(),
        ".gitattributes",
        "* diff=x filter=x ident working-tree-encoding=UTF-16\n",
    );
    let before = report(dir.path(), &first);
    for (key, value) in [
        ("diff.renames", "false"),
        ("diff.x.binary", "true"),
        ("diff.x.textconv", "false"),
        ("filter.x.clean", "false"),
        ("core.autocrlf", "true"),
        ("core.fileMode", "false"),
        ("core.excludesFile", "/etc/passwd"),
        ("core.fsmonitor", "false"),
        ("core.worktree", "/"),
    ] {
        run(dir.path(), &["config", key, value]);
    }
    assert_eq!(report(dir.path(), &first), before);
}

#[test]
fn attributes_are_the_final_commits() {
    let lab = lab::Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let initial = lab.checkout(&url).initial_commit.unwrap();
    write(lab.work(), "README.md", "# other\n");
    commit(lab.work(), "Work");
    write(lab.work(), ".gitattributes", "*.md binary\n");
    let head = git::take_over(&lab.place).unwrap();
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    assert_eq!((changes.added, changes.removed), (1, 1));
    assert_eq!(lab::numstat(lab.work(), &initial, "HEAD"), (1, 0, 0));
    let stats = changes.stats.unwrap();
    assert_eq!(stats.uncommitted.unwrap().untracked.count, 1);
}

#[test]
fn commits_are_counted_whatever_their_dates_say() {
    let (dir, first) = begun();
    let at = |date: i64, subject: &str| {
        let mut git = command(
            dir.path(),
            &["commit", "-q", "--allow-empty", "-m", subject],
        );
        for who in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{who}_DATE"), format!("{date} +0000"));
        }
        assert!(git.status().unwrap().success());
        run(dir.path(), &["rev-parse", "HEAD"])
    };
    let mut last = String::new();
    for n in 0..40 {
        last = at(1_000_000_000 - n * 1000, "Back");
    }
    assert_eq!(report(dir.path(), &first).commit_count, 40);
    run(dir.path(), &["reset", "-q", "--hard", &first]);
    let report = report(dir.path(), &last);
    assert_eq!((report.commit_count, report.history_rewritten), (0, true));
    assert_eq!(report.merge_base, Some(first));
}

#[test]
fn a_last_line_without_an_end_counts_for_a_rename() {
    let (dir, _) = begun();
    let tail = "the same text in a line without an end";
    write(dir.path(), "from", format!("one\n{tail}"));
    let before = commit(dir.path(), "From");
    std::fs::remove_file(dir.path().join("from")).unwrap();
    write(dir.path(), "to", format!("two\n{tail}"));
    commit(dir.path(), "To");
    assert_eq!(
        files(&report(dir.path(), &before).committed),
        [file("to", Kind::Renamed, 1, 1)]
    );
    let by_git = lab::numstat_of(dir.path(), &[&before, "HEAD"]);
    assert_eq!(by_git.len(), if lab::scores_last_lines() { 1 } else { 2 });
}

#[test]
fn what_is_changed_in_a_submodule_is_its_own_affair() {
    let (dir, _) = begun();
    run(dir.path(), &["init", "-q", "inner"]);
    write(&dir.path().join("inner"), "x", "1\n");
    commit(&dir.path().join("inner"), "Inside");
    let before = commit(dir.path(), "Take it in");
    write(dir.path(), "inner/x", "2\n");
    assert!(report(dir.path(), &before).uncommitted.unwrap().is_clean());
    assert_ne!(run(dir.path(), &["status", "--porcelain"]), "");
}

#[test]
fn conflicts_are_listed_by_themselves() {
    let (dir, first) = begun();
    run(dir.path(), &["switch", "-q", "-c", "side"]);
    write(dir.path(), "a", "side\n");
    commit(dir.path(), "Side");
    run(dir.path(), &["switch", "-q", "main"]);
    write(dir.path(), "a", "main\n");
    commit(dir.path(), "Main");
    assert!(
        !command(dir.path(), &["merge", "-q", "side"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let uncommitted = report(dir.path(), &first).uncommitted.unwrap();
    assert_eq!(
        uncommitted
            .unmerged
            .paths
            .iter()
            .map(path)
            .collect::<Vec<_>>(),
        ["a"]
    );
    assert_eq!(
        (
            uncommitted.staged.files_changed,
            uncommitted.unstaged.files_changed
        ),
        (0, 0)
    );
}

#[test]
fn only_ignore_rules_that_are_there_are_heeded() {
    let (dir, _) = begun();
    write(dir.path(), ".gitignore", "*.log\n");
    let before = commit(dir.path(), "Rules");
    run(
        dir.path(),
        &["update-index", "--skip-worktree", ".gitignore"],
    );
    std::fs::remove_file(dir.path().join(".gitignore")).unwrap();
    write(dir.path(), "x.log", "1\n");
    assert_eq!(run(dir.path(), &["status", "--porcelain"]), "");
    assert_eq!(
        report(dir.path(), &before)
            .uncommitted
            .unwrap()
            .untracked
            .count,
        1
    );
}

#[test]
fn a_fifo_in_the_place_of_a_file_is_a_change_and_never_opened() {
    let (dir, first) = begun();
    std::fs::remove_file(dir.path().join("a")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("a"), Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&dir.path().join("untracked"), Mode::S_IRWXU).unwrap();
    nix::unistd::mkfifo(&dir.path().join(".gitignore"), Mode::S_IRWXU).unwrap();
    let uncommitted = report(dir.path(), &first).uncommitted.unwrap();
    assert_eq!(
        files(&uncommitted.unstaged),
        [("a".to_owned(), Kind::Modified, None, None)]
    );
    assert_eq!(uncommitted.untracked.count, 0);
    nix::unistd::mkfifo(&dir.path().join(".git/objects/00"), Mode::S_IRWXU).unwrap();
    report(dir.path(), &first);
    let pack = dir.path().join(".git/objects/pack/pack-x.pack");
    nix::unistd::mkfifo(&pack, Mode::S_IRWXU).unwrap();
    assert!(why(dir.path(), &first).contains("is no file"));
}
