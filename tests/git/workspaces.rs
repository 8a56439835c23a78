//! The workspace's side: fresh, reused, half made, foreign, damaged.

use std::os::unix::fs::MetadataExt;

use runledger::git::{self, Access, Head};
use runledger::names::reasons;

use crate::lab::*;

#[test]
fn an_empty_repository_is_begun_and_counted_from_nothing() {
    let lab = Lab::new();
    lab.remote("empty.git");
    let url = lab.plain_server().url("empty.git");
    let out = lab.checkout(&url);
    assert_eq!(out.initial_commit, None);
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    let unborn = git::take_over(&lab.place).unwrap();
    assert_eq!(unborn.commit, None);
    let changes = git::changes(&lab.place, &url, None, &unborn).unwrap();
    assert_eq!(
        (
            changes.final_commit.as_str(),
            changes.commits,
            changes.files
        ),
        ("", 0, 0)
    );

    write(lab.work(), "a", "1\n2\n");
    write(lab.work(), "b", "");
    commit(lab.work(), "Begin");
    let head = git::take_over(&lab.place).unwrap();
    let changes = git::changes(&lab.place, &url, None, &head).unwrap();
    assert_eq!(
        (
            changes.commits,
            changes.files,
            changes.added,
            changes.removed
        ),
        (1, 2, 2, 0)
    );
    git::push(
        &lab.place,
        &url,
        &head.commit.unwrap(),
        "work",
        &Access::default(),
    )
    .unwrap();
    let error = Lab::new()
        .try_checkout(&url, Some("x"), &Access::default())
        .unwrap_err();
    assert!(
        error.to_string().contains("has no branch and no tag x"),
        "{error}"
    );
}

#[test]
fn a_second_attempt_finds_what_the_first_one_left_without_asking_the_remote() {
    let lab = Lab::new();
    lab.project();
    let server = lab.plain_server();
    let url = server.url("project.git");
    lab.checkout(&url);
    git(lab.work(), &["switch", "-q", "-c", "feature/x"]);
    write(lab.work(), "done", "1\n");
    let last = commit(lab.work(), "Done");
    write(lab.work(), "README.md", "edited, not committed\n");
    write(lab.work(), "new", "not added\n");
    let asked = server.requests();

    let out = lab
        .try_checkout(&url, Some("trunk"), &Access::default())
        .unwrap();
    assert_eq!(out.branch.as_deref(), Some("feature/x"));
    assert_eq!(out.initial_commit, Some(last));
    assert_eq!(
        git(lab.work(), &["status", "--porcelain"]),
        "M README.md\n?? new".replacen("M", " M", 1)
    );
    assert_eq!(server.requests(), asked);
}

#[test]
fn a_workspace_of_another_repository_is_refused_naming_both() {
    let lab = Lab::new();
    lab.project();
    lab.remote("other.git");
    let server = lab.plain_server();
    lab.checkout(&server.url("project.git"));
    lab.checkout(&server.url("project"));
    let other = server.url("other.git");
    let error = lab
        .try_checkout(&other, None, &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    let text = error.to_string();
    assert!(
        text.contains("project.git") && text.contains("other.git"),
        "{text}"
    );
}

#[test]
fn files_that_are_not_ours_are_never_overwritten() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    std::fs::create_dir(lab.work().join("lost+found")).unwrap();
    write(lab.work(), "README.md", "mine\n");
    let error = lab
        .try_checkout(&url, None, &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(error.to_string().contains("README.md"), "{error}");
    assert_eq!(
        std::fs::read(lab.work().join("README.md")).unwrap(),
        b"mine\n"
    );
    std::fs::remove_file(lab.work().join("README.md")).unwrap();
    lab.checkout(&url);
}

#[test]
fn a_checkout_that_was_killed_half_way_is_made_anew() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let first = lab.checkout(&url);
    // As a kill in mid-work leaves it: files missing, cut and of no use, and the record not ready.
    let record = lab.place.trusted.join("record.json");
    let text = std::fs::read_to_string(&record).unwrap();
    assert!(text.contains("\"ready\":true"));
    std::fs::write(&record, text.replace("\"ready\":true", "\"ready\":false")).unwrap();
    std::fs::remove_dir_all(lab.work().join("src")).unwrap();
    std::fs::remove_file(lab.work().join(".git/HEAD")).unwrap();
    write(lab.work(), "README.md", "# pro");
    write(lab.work(), ".git.runledger/objects/x", "");
    assert!(git::take_over(&lab.place).is_err());

    assert_eq!(lab.checkout(&url), first);
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    git(lab.work(), &["diff", "--exit-code", "HEAD"]);
    assert!(!lab.work().join(".git.runledger").exists());
}

#[test]
fn a_deleted_git_dir_comes_back_at_the_last_known_commit_and_files_stay() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    lab.checkout(&url);
    git(lab.work(), &["switch", "-q", "-c", "feature"]);
    write(lab.work(), "done", "1\n");
    let last = commit(lab.work(), "Done");
    git::take_over(&lab.place).unwrap();
    write(lab.work(), "later", "not known\n");
    commit(lab.work(), "Not taken over");
    std::fs::remove_dir_all(lab.work().join(".git")).unwrap();
    assert!(
        git::take_over(&lab.place)
            .unwrap_err()
            .to_string()
            .contains("removed .git")
    );

    let out = lab.checkout(&url);
    assert_eq!(
        (out.branch.as_deref(), out.initial_commit),
        (Some("feature"), Some(last))
    );
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "?? later");
    git(lab.work(), &["rev-parse", "trunk"]);
    commit(lab.work(), "It goes on");
    git::take_over(&lab.place).unwrap();
}

#[test]
fn the_agents_objects_are_copies() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    lab.checkout(&url);
    let inodes = |dir: std::path::PathBuf| {
        let files = std::fs::read_dir(dir).unwrap();
        files
            .map(|f| f.unwrap().metadata().unwrap().ino())
            .collect::<Vec<_>>()
    };
    let ours = inodes(lab.place.trusted.join("repository.git/objects/pack"));
    let theirs = inodes(lab.work().join(".git/objects/pack"));
    assert_eq!((ours.len(), theirs.len()), (2, 2));
    assert!(ours.iter().all(|inode| !theirs.contains(inode)));
}

#[test]
fn packed_and_detached_and_merged_work_is_taken_over() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let initial = lab.checkout(&url).initial_commit.unwrap();
    git(lab.work(), &["switch", "-q", "-c", "a"]);
    write(lab.work(), "a", "1\n");
    commit(lab.work(), "A");
    git(lab.work(), &["switch", "-q", "trunk"]);
    write(lab.work(), "b", "1\n");
    commit(lab.work(), "B");
    git(lab.work(), &["merge", "-q", "-m", "Both", "a"]);
    git(lab.work(), &["branch", "-q", "-D", "a"]);
    git(lab.work(), &["branch", "-q", "a/b"]);
    git(lab.work(), &["gc", "-q", "--prune=now"]);
    git(lab.work(), &["switch", "-q", "--detach"]);
    let last = git(lab.work(), &["rev-parse", "HEAD"]);
    let head = git::take_over(&lab.place).unwrap();
    assert_eq!(
        head,
        Head {
            branch: None,
            commit: Some(last.clone())
        }
    );
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    assert_eq!(
        (changes.branch.as_str(), changes.commits, changes.files),
        ("HEAD", 3, 2)
    );
    git(
        &lab.place.trusted.join("repository.git"),
        &["fsck", "--strict"],
    );
    // The branch a went and a/b came: the next take-over must not trip over our own refs.
    git(lab.work(), &["branch", "-q", "-D", "a/b"]);
    git(lab.work(), &["branch", "-q", "a"]);
    git::take_over(&lab.place).unwrap();
    git::push(&lab.place, &url, &last, "work", &Access::default()).unwrap();
}

#[test]
fn a_huge_file_is_counted_as_binary_and_pushed() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let initial = lab.checkout(&url).initial_commit.unwrap();
    let file = std::fs::File::create(lab.work().join("huge")).unwrap();
    file.set_len(101 << 20).unwrap();
    let last = commit(lab.work(), "Huge");
    let head = git::take_over(&lab.place).unwrap();
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    assert_eq!((changes.files, changes.added), (1, 0));
    git::push(&lab.place, &url, &last, "work", &Access::default()).unwrap();
}
