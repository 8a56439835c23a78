//! What can be asked for: a branch, a tag, a commit, a part of history; and what is said of what
//! a checkout leaves alone.

use runledger::git::{self, Access, Wanted};
use runledger::names::reasons;

use crate::lab::*;
use crate::server::{Manner, Server};

fn wanted(url: &url::Url, reference: &str) -> Wanted {
    Wanted {
        reference: Some(reference.to_owned()),
        ..Wanted::new(url.clone())
    }
}

/// A lab whose project has a tag on its first commit, and a branch and an annotated tag of one
/// name on its second and first.
fn tagged() -> (Lab, url::Url, [String; 2]) {
    let lab = Lab::new();
    let clone = lab.project();
    let commits = [
        git(&clone, &["rev-parse", "HEAD~1"]),
        git(&clone, &["rev-parse", "HEAD"]),
    ];
    git(&clone, &["tag", "-a", "v1", "-m", "One", &commits[0]]);
    git(&clone, &["tag", "both", &commits[0]]);
    git(
        &clone,
        &["push", "-q", "origin", "HEAD:refs/heads/both", "--tags"],
    );
    let url = lab.plain_server().url("project.git");
    (lab, url, commits)
}

#[test]
fn a_tag_or_a_commit_is_checked_out_without_a_branch_and_work_on_it_is_pushed() {
    for by_tag in [true, false] {
        let (lab, url, [first, _]) = tagged();
        let reference = if by_tag { "v1" } else { &first };
        let wanted = wanted(&url, reference);
        let out = lab.try_wanted(&wanted, &Access::default()).unwrap();
        assert_eq!(
            (out.branch, out.initial_commit.as_ref()),
            (None, Some(&first))
        );
        assert_eq!(git(lab.work(), &["status", "-sb"]), "## HEAD (no branch)");
        assert_eq!(git(lab.work(), &["rev-parse", "HEAD"]), first);
        git(lab.work(), &["fsck", "--strict"]);
        if by_tag {
            assert_eq!(git(lab.work(), &["describe"]), "v1");
        }
        write(lab.work(), "more", "1\n");
        let last = commit(lab.work(), "More");
        let head = git::take_over(&lab.place).unwrap();
        let changes = git::changes(&lab.place, &url, Some(&first), &head).unwrap();
        assert_eq!((changes.branch.as_str(), changes.commits), ("HEAD", 1));
        git::push(&lab.place, &url, &last, "work", &Access::default()).unwrap();
    }
}

#[test]
fn a_branch_goes_before_a_tag_of_its_name() {
    let (lab, url, [_, second]) = tagged();
    let wanted = wanted(&url, "both");
    let out = lab.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(out.branch.as_deref(), Some("both"));
    assert_eq!(out.initial_commit, Some(second));
}

#[test]
fn a_commit_that_nobody_has_and_a_tag_of_no_commit_are_refused_in_a_sentence() {
    let (lab, url, _) = tagged();
    let none = "0123456789abcdef0123456789abcdef01234567";
    let wanted_none = wanted(&url, none);
    let error = lab
        .try_wanted(&wanted_none, &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(error.to_string().contains("is not in"), "{error}");

    let blob = git(
        &lab.path("clone-project.git"),
        &["rev-parse", "HEAD:README.md"],
    );
    git(&lab.path("clone-project.git"), &["tag", "blob", &blob]);
    git(&lab.path("clone-project.git"), &["push", "-q", "--tags"]);
    let wanted = wanted(&url, "blob");
    let error = lab.try_wanted(&wanted, &Access::default()).unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    lab.checkout(&url);
}

#[test]
fn a_part_of_history_can_be_worked_on_counted_and_pushed() {
    let lab = Lab::new();
    let clone = lab.project();
    for n in 0..5 {
        write(&clone, "n", format!("{n}\n"));
        commit(&clone, &format!("Number {n}"));
    }
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
    let url = lab.plain_server().url("project.git");
    let wanted = Wanted {
        depth: Some(2),
        ..Wanted::new(url.clone())
    };
    let out = lab.try_wanted(&wanted, &Access::default()).unwrap();
    let initial = out.initial_commit.unwrap();
    assert_eq!(initial, git(&clone, &["rev-parse", "HEAD"]));
    assert_eq!(git(lab.work(), &["rev-list", "--count", "HEAD"]), "2");
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    git(lab.work(), &["fsck", "--strict"]);

    write(lab.work(), "mine", "1\n");
    let last = commit(lab.work(), "Mine");
    let head = git::take_over(&lab.place).unwrap();
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    assert_eq!((changes.commits, changes.files, changes.added), (1, 1, 1));
    git::push(&lab.place, &url, &last, "mine", &Access::default()).unwrap();
    let bare = lab.served().join("project.git");
    assert_eq!(git(&bare, &["rev-list", "--count", "mine"]), "8");
    git(&bare, &["fsck", "--strict"]);
}

#[test]
fn submodules_and_lfs_pointers_stay_what_they_are_and_are_told() {
    let lab = Lab::new();
    let clone = lab.project();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    write(&clone, "art/a.bin", pointer);
    write(&clone, "plain.bin", "no pointer\n");
    commit(&clone, "Pointers without attributes are text");
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
    let url = lab.plain_server().url("project.git");
    assert_eq!(lab.checkout(&url).notes, Vec::<String>::new());

    write(&clone, "art/.gitattributes", "*.bin filter=lfs diff=lfs\n");
    git(&clone, &["add", "-A"]);
    for n in 0..5 {
        let module = format!("160000,{},vendor/{n}", git(&clone, &["rev-parse", "HEAD"]));
        git(&clone, &["update-index", "--add", "--cacheinfo", &module]);
    }
    git(&clone, &["commit", "-q", "-m", "Modules"]);
    git(&clone, &["push", "-q", "origin", "HEAD:modules"]);
    let fresh = Lab::new();
    let wanted = wanted(&url, "modules");
    let out = fresh.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(
        out.notes,
        [
            "Submodules are left uninitialised: vendor/0, vendor/1, vendor/2 and 2 more.",
            "Files kept in Git LFS are left as pointers: art/a.bin.",
        ]
    );
    let file = std::fs::read_to_string(fresh.work().join("art/a.bin")).unwrap();
    assert_eq!(file, pointer);
    assert_eq!(git(fresh.work(), &["status", "--porcelain"]), "");
}

#[test]
fn a_repository_with_sha256_names_is_refused_in_one_sentence() {
    let lab = Lab::new();
    let bare = lab.served().join("new.git");
    std::fs::create_dir_all(&bare).unwrap();
    git(&bare, &["init", "-q", "--bare", "--object-format=sha256"]);
    let seed = lab.path("seed");
    let sha256 = ["init", "-q", "--object-format=sha256", "seed"];
    git(lab.dir.path(), &sha256);
    write(&seed, "a", "1\n");
    commit(&seed, "One");
    git(&bare, &["fetch", "-q", seed.to_str().unwrap(), "HEAD:main"]);
    let url = Server::start(&lab.served(), Manner::default()).url("new.git");
    let error = lab
        .try_checkout(&url, None, &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(!error.is_retryable());
    let text = error.to_string();
    assert!(text.contains("use a repository with SHA-1 names"), "{text}");
}
