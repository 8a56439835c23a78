//! A workspace that a later run takes up again: Keep, Update and Reset.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use runledger::api::repository::OnReuse;
use runledger::git::{self, Access, CheckedOut, Wanted};
use runledger::names::reasons;
use url::Url;
use uuid::Uuid;

use crate::lab::*;
use crate::server::{Manner, Server};

/// A workspace in use, and who works on the remote meanwhile.
struct Shared {
    lab: Lab,
    clone: PathBuf,
    url: Url,
    initial: String,
    _server: Server,
}

impl Shared {
    fn new() -> Self {
        let lab = Lab::new();
        let clone = lab.project();
        let server = lab.plain_server();
        let url = server.url("project.git");
        let initial = lab.checkout(&url).initial_commit.unwrap();
        Self {
            lab,
            clone,
            url,
            initial,
            _server: server,
        }
    }

    /// The remote moves on; its new commit.
    fn remote_moves(&self, file: &str) -> String {
        write(&self.clone, file, "theirs\n");
        let commit = commit(&self.clone, &format!("Theirs: {file}"));
        git(&self.clone, &["push", "-q", "origin", "HEAD:trunk"]);
        commit
    }

    fn wanted(&self, run: u128, on_reuse: OnReuse) -> Wanted {
        Wanted {
            run: Uuid::from_u128(run),
            on_reuse,
            ..Wanted::new(self.url.clone())
        }
    }

    fn run(&self, run: u128, on_reuse: OnReuse) -> CheckedOut {
        let wanted = self.wanted(run, on_reuse);
        let out = self.lab.try_wanted(&wanted, &Access::default()).unwrap();
        git(self.work(), &["fsck", "--strict"]);
        git(
            &self.lab.place.trusted.join("repository.git"),
            &["fsck", "--strict"],
        );
        assert!(!self.lab.place.trusted.join("removals").exists());
        out
    }

    fn work(&self) -> &std::path::Path {
        self.lab.work()
    }

    fn status(&self) -> String {
        git(self.work(), &["status", "--porcelain"])
    }

    fn head(&self) -> String {
        git(self.work(), &["rev-parse", "HEAD"])
    }

    fn backup(&self, run: u128) -> String {
        format!("refs/runledger/backup/{}", Uuid::from_u128(run))
    }
}

/// Leaves one of each: a commit, staged, unstaged, deleted, untracked, ignored.
fn work_on(shared: &Shared) -> String {
    let work = shared.work();
    write(work, ".gitignore", "cache/\n*.log\n");
    write(work, "mine", "1\n");
    let last = commit(work, "Mine");
    write(work, "staged", "s\n");
    git(work, &["add", "staged"]);
    write(work, "README.md", "edited\n");
    std::fs::remove_file(work.join("src/main.rs")).unwrap();
    write(work, "new/untracked", "u\n");
    symlink("/etc/passwd", work.join("link")).unwrap();
    write(work, "cache/big", "kept\n");
    last
}

#[test]
fn keep_brings_the_remotes_commits_and_touches_nothing_else() {
    let shared = Shared::new();
    let last = work_on(&shared);
    let status = shared.status();
    let theirs = shared.remote_moves("theirs");
    git(&shared.clone, &["tag", "v1"]);
    git(&shared.clone, &["push", "-q", "origin", "v1"]);
    let out = shared.run(1, OnReuse::Keep);
    assert_eq!(out.initial_commit, Some(last.clone()));
    assert_eq!(out.notes, Vec::<String>::new());
    assert_eq!((shared.head(), shared.status()), (last, status));
    let there = git(shared.work(), &["rev-parse", "origin/trunk", "v1"]);
    assert_eq!(there, format!("{theirs}\n{theirs}"));
    git(shared.work(), &["show", "--stat", "origin/trunk"]);
}

#[test]
fn a_tag_of_the_agents_stays_its_own_also_where_it_is_packed() {
    let shared = Shared::new();
    write(shared.work(), "mine", "1\n");
    let mine = commit(shared.work(), "Mine");
    git(shared.work(), &["tag", "v1"]);
    git(shared.work(), &["pack-refs", "--all"]);
    shared.remote_moves("theirs");
    git(&shared.clone, &["tag", "v1"]);
    git(&shared.clone, &["tag", "v2"]);
    git(&shared.clone, &["push", "-q", "origin", "v1", "v2"]);
    shared.run(1, OnReuse::Keep);
    let tags = ["v1", "v2"].map(|tag| git(shared.work(), &["rev-parse", tag]));
    let theirs = git(&shared.clone, &["rev-parse", "v2"]);
    assert_eq!(tags, [mine, theirs]);
}

#[test]
fn a_remote_that_is_away_or_has_lost_the_branch_holds_no_kept_workspace_up() {
    let shared = Shared::new();
    write(shared.work(), "mine", "1\n");
    let last = commit(shared.work(), "Mine");
    let mut wanted = shared.wanted(1, OnReuse::Keep);
    wanted.reference = Some("gone".to_owned());
    let out = shared.lab.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(out.initial_commit, Some(last.clone()));
    assert!(
        out.notes[0].contains("no branch and no tag gone"),
        "{out:?}"
    );

    std::fs::rename(shared.lab.served(), shared.lab.path("away")).unwrap();
    let out = shared.run(2, OnReuse::Keep);
    assert_eq!(out.initial_commit, Some(last));
    assert!(
        out.notes[0].contains("without a look at the remote"),
        "{out:?}"
    );
    for (run, on_reuse) in [(3, OnReuse::Update), (4, OnReuse::Reset)] {
        let wanted = shared.wanted(run, on_reuse);
        shared
            .lab
            .try_wanted(&wanted, &Access::default())
            .unwrap_err();
    }
}

#[test]
fn a_password_that_is_refused_holds_a_kept_workspace_up_as_its_push_would_fail() {
    let lab = Lab::new();
    lab.project();
    let manner = Manner {
        wants_password: true,
        https: true,
        ..Manner::default()
    };
    let server = Server::start(&lab.served(), manner);
    let mut access = access(&server);
    let mut wanted = Wanted::new(server.url("project.git"));
    lab.try_wanted(&wanted, &access).unwrap();
    access.password = Some("expired".to_owned());
    wanted.run = Uuid::from_u128(1);
    let error = lab.try_wanted(&wanted, &access).unwrap_err();
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED);
    // Who has no Secret pushes nothing either, and works on what is there.
    access.password = None;
    let out = lab.try_wanted(&wanted, &access).unwrap();
    assert!(out.notes[0].contains("wants a password"), "{out:?}");
}

#[test]
fn update_goes_on_to_the_remotes_branch_where_nothing_is_only_here() {
    let shared = Shared::new();
    let theirs = shared.remote_moves("a/theirs");
    write(shared.work(), "untracked", "u\n");
    let out = shared.run(1, OnReuse::Update);
    assert_eq!(out.initial_commit, Some(theirs.clone()));
    assert_eq!(out.branch.as_deref(), Some("trunk"));
    assert_eq!(out.notes, Vec::<String>::new());
    assert_eq!(
        (shared.head(), shared.status()),
        (theirs, "?? untracked".to_owned())
    );

    // Once for a run: its second attempt finds the first one's work.
    write(shared.work(), "mine", "1\n");
    git(shared.work(), &["add", "mine"]);
    git(shared.work(), &["commit", "-qm", "Mine"]);
    let mine = shared.head();
    shared.remote_moves("more");
    assert_eq!(
        shared.run(1, OnReuse::Update).initial_commit,
        Some(mine.clone())
    );
    // What is ahead of the remote is up to date; what has parted from it stays, and that is told.
    let out = shared.run(2, OnReuse::Update);
    assert_eq!(out.initial_commit, Some(mine.clone()));
    assert!(out.notes[0].contains("does not have its commit"), "{out:?}");
    assert_eq!(shared.head(), mine);
}

#[test]
fn update_leaves_uncommitted_work_alone_and_says_so() {
    let shared = Shared::new();
    shared.remote_moves("new");
    let stays = |run, why: &str| {
        let status = shared.status();
        let out = shared.run(run, OnReuse::Update);
        assert_eq!(out.initial_commit, Some(shared.initial.clone()));
        assert!(out.notes[0].contains(why), "{why}: {out:?}");
        assert_eq!(
            (shared.head(), shared.status()),
            (shared.initial.clone(), status)
        );
    };
    write(shared.work(), "README.md", "edited\n");
    stays(1, "not committed");
    git(shared.work(), &["add", "-A"]);
    stays(2, "not committed");
    git(shared.work(), &["reset", "-q", "--hard"]);
    write(shared.work(), "new", "mine, untracked\n");
    stays(3, "in the way");
    std::fs::remove_file(shared.work().join("new")).unwrap();
    write(shared.work(), ".git/MERGE_HEAD", &shared.initial);
    let out = shared.run(4, OnReuse::Update);
    assert!(out.notes[0].contains("MERGE_HEAD"), "{out:?}");
    std::fs::remove_file(shared.work().join(".git/MERGE_HEAD")).unwrap();
    assert_eq!(shared.run(5, OnReuse::Update).notes, Vec::<String>::new());
}

#[test]
fn update_and_reset_go_to_another_branch_a_tag_and_a_rewritten_history() {
    let shared = Shared::new();
    git(&shared.clone, &["switch", "-q", "-c", "release"]);
    write(&shared.clone, "r", "1\n");
    let release = commit(&shared.clone, "Release");
    git(&shared.clone, &["tag", "v1"]);
    git(&shared.clone, &["push", "-q", "origin", "release", "v1"]);
    let mut wanted = shared.wanted(1, OnReuse::Update);
    wanted.reference = Some("release".to_owned());
    let out = shared.lab.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(
        (out.branch.as_deref(), out.initial_commit),
        (Some("release"), Some(release.clone()))
    );
    assert_eq!(
        git(shared.work(), &["symbolic-ref", "HEAD"]),
        "refs/heads/release"
    );
    assert_eq!(git(shared.work(), &["rev-parse", "trunk"]), shared.initial);

    // Back, though that is older: all of it is on the remote.
    let out = shared.run(2, OnReuse::Reset);
    assert_eq!(out.initial_commit, Some(shared.initial.clone()));
    assert_eq!(out.notes, Vec::<String>::new());
    let mut wanted = shared.wanted(3, OnReuse::Reset);
    wanted.reference = Some("v1".to_owned());
    let out = shared.lab.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(
        (out.branch, out.initial_commit),
        (None, Some(release.clone()))
    );
    assert_eq!(
        git(shared.work(), &["rev-parse", "--abbrev-ref", "HEAD"]),
        "HEAD"
    );

    git(&shared.clone, &["switch", "-q", "trunk"]);
    git(
        &shared.clone,
        &["commit", "-q", "--amend", "-m", "Rewritten"],
    );
    git(&shared.clone, &["push", "-qf", "origin", "HEAD:trunk"]);
    let rewritten = git(&shared.clone, &["rev-parse", "HEAD"]);
    let out = shared.run(4, OnReuse::Reset);
    assert_eq!(out.initial_commit, Some(rewritten));
    // The old trunk is part of release.
    assert_eq!(out.notes, Vec::<String>::new());
    assert_eq!(shared.status(), "");
}

#[test]
fn reset_takes_the_remotes_state_and_a_stash_brings_all_of_it_back() {
    let shared = Shared::new();
    let last = work_on(&shared);
    let status = shared.status();
    let theirs = shared.remote_moves("theirs");
    let old = shared.work().join("src/lib.rs").metadata().unwrap();
    let out = shared.run(7, OnReuse::Reset);
    let backup = shared.backup(7);
    assert_eq!(out.initial_commit, Some(theirs.clone()));
    assert!(out.notes[0].contains(&backup), "{out:?}");
    assert_eq!(shared.head(), theirs);
    // Ignored files stay; the rules went with their file.
    assert_eq!(shared.status(), "?? cache/");
    git(shared.work(), &["diff", "--exit-code", "HEAD"]);
    // What did not change was not written.
    let new = shared.work().join("src/lib.rs").metadata().unwrap();
    assert_eq!(old.modified().unwrap(), new.modified().unwrap());

    // A supervisor that comes back, or a second attempt: nothing more happens, and it is told again.
    write(shared.work(), "of the first attempt", "1\n");
    assert_eq!(shared.run(7, OnReuse::Reset).notes, out.notes);
    assert!(shared.work().join("of the first attempt").exists());
    std::fs::remove_file(shared.work().join("of the first attempt")).unwrap();

    assert_eq!(
        git(shared.work(), &["rev-parse", &format!("{backup}^1")]),
        last
    );
    git(shared.work(), &["reset", "-q", "--hard", &last]);
    git(shared.work(), &["stash", "apply", "-q", "--index", &backup]);
    assert_eq!(shared.status(), status);
    assert_eq!(
        std::fs::read_link(shared.work().join("link")).unwrap(),
        PathBuf::from("/etc/passwd")
    );
}

#[test]
fn a_reset_that_loses_nothing_saves_nothing_and_commits_alone_are_saved_as_they_are() {
    let shared = Shared::new();
    let theirs = shared.remote_moves("theirs");
    let out = shared.run(1, OnReuse::Reset);
    assert_eq!(
        (out.initial_commit, out.notes),
        (Some(theirs.clone()), Vec::new())
    );
    write(shared.work(), "mine", "1\n");
    let mine = commit(shared.work(), "Mine");
    git(shared.work(), &["switch", "-q", "-c", "feature"]);
    write(shared.work(), "more", "1\n");
    let more = commit(shared.work(), "More");
    git(shared.work(), &["stash", "list"]);
    let out = shared.run(2, OnReuse::Reset);
    assert_eq!(out.branch.as_deref(), Some("trunk"));
    assert_eq!(shared.head(), theirs);
    let backup = shared.backup(2);
    let saved = git(shared.work(), &["rev-list", &backup]);
    assert!(saved.contains(&mine) && saved.contains(&more), "{saved}");
    // The other branches of the agent are its own.
    assert_eq!(git(shared.work(), &["rev-parse", "feature"]), more);
    assert_eq!(shared.status(), "");
}

#[test]
fn a_reset_that_was_killed_is_gone_on_with_and_saves_nothing_twice() {
    let shared = Shared::new();
    work_on(&shared);
    let theirs = shared.remote_moves("theirs");
    // It is stopped before it has written a file: what is to go is gone, and the record says so.
    let wanted = shared.wanted(1, OnReuse::Reset);
    let stop = std::sync::atomic::AtomicBool::new(true);
    shared
        .lab
        .try_wanted(&shared.wanted(9, OnReuse::Keep), &Access::default())
        .unwrap();
    let error = git::checkout(&shared.lab.place, &wanted, &Access::default(), &stop).unwrap_err();
    assert!(error.is_cancelled(), "{error}");
    let record = std::fs::read_to_string(shared.lab.place.trusted.join("record.json")).unwrap();
    assert!(
        record.contains(&format!("\"commit\":\"{theirs}\"")),
        "{record}"
    );
    assert!(!shared.work().join("mine").exists());
    // As a kill in mid-write leaves it.
    write(shared.work(), "theirs", "the");
    write(shared.work(), ".git/index.lock", "");
    let backup = git(
        &shared.lab.place.trusted.join("repository.git"),
        &["rev-parse", &shared.backup(1)],
    );
    // Another run comes instead, which only wants to keep: it finds the reset done.
    let out = shared.run(2, OnReuse::Keep);
    assert_eq!(out.initial_commit, Some(theirs));
    assert_eq!(shared.status(), "?? cache/");
    assert_eq!(
        git(shared.work(), &["rev-parse", &shared.backup(1)]),
        backup
    );
}

#[test]
fn a_reset_follows_no_link_runs_nothing_and_keeps_off_what_is_in_its_way() {
    let shared = Shared::new();
    let outside = shared.lab.path("outside");
    write(&outside, "lib.rs", "not ours\n");
    let work = shared.work();
    // A folder of the remote's branch is a link that leads out, and is ignored.
    std::fs::remove_dir_all(work.join("src")).unwrap();
    symlink(&outside, work.join("src")).unwrap();
    write(work, ".git/info/exclude", "src\nnew\n");
    nix::unistd::mkfifo(&work.join("README.md.fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::remove_file(work.join("README.md")).unwrap();
    nix::unistd::mkfifo(&work.join("README.md"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(&outside, work.join(".git/rebase-merge")).unwrap();
    let theirs = shared.remote_moves("src/new.rs");
    let out = within(60, || shared.run(1, OnReuse::Reset));
    assert_eq!(out.initial_commit, Some(theirs));
    assert_eq!(
        std::fs::read(outside.join("lib.rs")).unwrap(),
        b"not ours\n"
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(shared.status(), "");
    // The link itself was only here.
    let saved = git(work, &["ls-tree", "-r", &format!("{}^3", shared.backup(1))]);
    assert!(
        saved.starts_with("120000") && saved.ends_with("src"),
        "{saved}"
    );

    // An ignored folder where a file is to be: nothing is touched.
    write(work, "new/precious", "1\n");
    shared.remote_moves("new");
    let wanted = shared.wanted(2, OnReuse::Reset);
    let error = shared
        .lab
        .try_wanted(&wanted, &Access::default())
        .unwrap_err();
    assert!(error.to_string().contains("new/precious"), "{error}");
    assert!(work.join("new/precious").exists());
}

#[test]
fn a_git_dir_whose_folders_are_links_is_not_written_to() {
    for place in ["objects/pack", "refs/remotes", "refs/remotes/origin"] {
        let shared = Shared::new();
        shared.remote_moves("theirs");
        let outside = shared.lab.path("outside");
        std::fs::create_dir(&outside).unwrap();
        let planted = shared.work().join(".git").join(place);
        if planted.exists() {
            std::fs::remove_dir_all(&planted).unwrap();
        }
        std::fs::create_dir_all(planted.parent().unwrap()).unwrap();
        symlink(&outside, &planted).unwrap();
        let wanted = shared.wanted(1, OnReuse::Keep);
        drop(shared.lab.try_wanted(&wanted, &Access::default()));
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{place}");
    }
}

#[test]
fn a_fetch_tells_how_far_it_has_come() {
    let shared = Shared::new();
    let wanted = shared.wanted(1, OnReuse::Keep);
    assert_eq!(wanted.progress.far(), None);
    shared.remote_moves("theirs");
    shared.lab.try_wanted(&wanted, &Access::default()).unwrap();
    let (received, total, bytes) = wanted.progress.far().unwrap();
    assert_eq!((received, total), (3, 3));
    assert!(bytes > 100, "{bytes}");
}

#[test]
fn ten_runs_in_turn_each_see_the_formers_commits() {
    let shared = Shared::new();
    let mut last = shared.initial.clone();
    for run in 1..=10 {
        if run % 3 == 0 {
            shared.remote_moves(&format!("theirs-{run}"));
        }
        let out = shared.run(run, OnReuse::Keep);
        assert_eq!(out.initial_commit, Some(last.clone()));
        write(shared.work(), &format!("run-{run}"), "1\n");
        last = commit(shared.work(), &format!("Run {run}"));
        let head = git::take_over(&shared.lab.place).unwrap();
        let changes = git::changes(
            &shared.lab.place,
            &shared.url,
            out.initial_commit.as_deref(),
            &head,
        )
        .unwrap();
        assert_eq!((changes.commits, changes.files, changes.added), (1, 1, 1));
    }
    assert_eq!(git(shared.work(), &["rev-list", "--count", "HEAD"]), "12");
}

#[test]
fn a_workspace_with_a_part_of_history_is_updated() {
    let lab = Lab::new();
    let clone = lab.project();
    let server = lab.plain_server();
    let mut wanted = Wanted {
        depth: Some(1),
        ..Wanted::new(server.url("project.git"))
    };
    lab.try_wanted(&wanted, &Access::default()).unwrap();
    for n in 0..3 {
        write(&clone, "n", format!("{n}\n"));
        commit(&clone, "More");
    }
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
    wanted.run = Uuid::from_u128(1);
    wanted.on_reuse = OnReuse::Update;
    let out = lab.try_wanted(&wanted, &Access::default()).unwrap();
    assert_eq!(out.notes, Vec::<String>::new());
    assert_eq!(
        out.initial_commit,
        Some(git(&clone, &["rev-parse", "HEAD"]))
    );
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    git(lab.work(), &["fsck", "--strict"]);
}
