//! A `.git` that somebody has prepared: nothing in it is executed, nothing outside is read, nothing
//! is sent, and every call ends.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::Mode;
use runledger::git::{self, Access};

use crate::lab::*;
use crate::server::Manner;

/// A lab with a checkout and one commit by the agent.
fn begun() -> (Lab, crate::server::Server, String, String) {
    let lab = Lab::new();
    lab.project();
    let server = lab.plain_server();
    let initial = lab
        .checkout(&server.url("project.git"))
        .initial_commit
        .unwrap();
    write(lab.work(), "work", "1\n");
    let last = commit(lab.work(), "Work");
    (lab, server, initial, last)
}

#[test]
fn configuration_and_hooks_are_never_heeded() {
    let (lab, server, initial, last) = begun();
    let url = server.url("project.git");
    let elsewhere = crate::server::Server::start(&lab.served(), Manner::default());
    let marker = lab.path("executed");
    let script = lab.path("script");
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", marker.display())).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let secret = lab.path("secret");
    write(&secret, "token", "s3cr3t-token");
    let included = lab.path("included");
    let (script, secret_path) = (script.to_str().unwrap(), secret.to_str().unwrap());
    let base = elsewhere.url("");
    std::fs::write(&included, format!("[core]\n\tfsmonitor = {script}\n")).unwrap();
    let config = format!(
        "[core]\n\trepositoryformatversion = 0\n\tworktree = {secret_path}\n\tfsmonitor = {script}\n\
         \thooksPath = {}\n\tsshCommand = {script}\n\taskPass = {script}\n\tpager = {script}\n\
         \tattributesFile = {secret_path}/token\n\teditor = {script}\n\
         [include]\n\tpath = {}\n[url \"{base}\"]\n\tinsteadOf = {}\n\tpushInsteadOf = {}\n\
         [credential]\n\thelper = {script}\n[filter \"x\"]\n\tclean = {script}\n\tsmudge = {script}\n\
         \tprocess = {script}\n[diff \"x\"]\n\ttextconv = {script}\n\tcommand = {script}\n\
         [http]\n\tproxy = {base}\n[gc]\n\trecentObjectsHook = {script}\n[uploadpack]\n\tpackObjectsHook = {script}\n",
        lab.work().join(".git/hooks").display(),
        included.display(),
        server.url(""),
        server.url(""),
    );
    std::fs::write(lab.work().join(".git/config"), config).unwrap();
    for hook in [
        "pre-commit",
        "post-checkout",
        "pre-push",
        "reference-transaction",
        "post-index-change",
        "fsmonitor-watchman",
        "post-merge",
        "pre-auto-gc",
        "push-to-checkout",
        "update",
        "pre-receive",
        "post-receive",
        "proc-receive",
        "sendemail-validate",
        "post-rewrite",
    ] {
        let path = lab.work().join(".git/hooks").join(hook);
        std::fs::copy(script, &path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    write(lab.work(), ".gitattributes", "* filter=x diff=x\n");
    write(lab.work(), ".git/info/attributes", "* filter=x diff=x\n");
    write(lab.work(), ".git/commondir", secret_path);
    write(
        lab.work(),
        ".git/config.worktree",
        format!("[core]\n\tworktree = {secret_path}\n"),
    );

    within(20, || {
        let head = git::take_over(&lab.place).unwrap();
        assert_eq!(head.commit.as_deref(), Some(last.as_str()));
        let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
        assert_eq!((changes.files, changes.added), (1, 1));
        git::push(&lab.place, &url, &last, "work", &Access::default()).unwrap();
        lab.checkout(&url);
    });
    assert!(!marker.exists());
    assert_eq!(elsewhere.requests(), 0);
    assert_eq!(
        files_with(&lab.place.trusted, "s3cr3t"),
        Vec::<std::path::PathBuf>::new()
    );
    assert_eq!(
        git(&lab.served().join("project.git"), &["rev-parse", "work"]),
        last
    );
}

#[test]
fn objects_of_another_repository_do_not_come_in_by_alternates_or_links() {
    let (lab, _server, _, _) = begun();
    let secret = lab.path("secret");
    std::fs::create_dir(&secret).unwrap();
    git(&secret, &["init", "-q"]);
    write(&secret, "token", "s3cr3t-token");
    let stolen = commit(&secret, "Secret");
    let objects = secret.join(".git/objects");
    let git_dir = lab.work().join(".git");
    let point_at_it = |lab: &Lab| {
        std::fs::write(lab.work().join(".git/HEAD"), format!("{stolen}\n")).unwrap();
        let error = within(20, || git::take_over(&lab.place).unwrap_err());
        assert!(error.to_string().contains("does not hold whole"), "{error}");
        let ours = lab.place.trusted.join("repository.git");
        assert!(
            !command(&ours, &["cat-file", "-e", &stolen])
                .status()
                .unwrap()
                .success()
        );
    };
    std::fs::create_dir_all(git_dir.join("objects/info")).unwrap();
    std::fs::write(
        git_dir.join("objects/info/alternates"),
        format!("{}\n", objects.display()),
    )
    .unwrap();
    assert_eq!(git(lab.work(), &["cat-file", "-t", &stolen]), "commit");
    point_at_it(&lab);
    // Each loose object as a symlink, then each folder, then the whole store.
    std::fs::remove_file(git_dir.join("objects/info/alternates")).unwrap();
    for dir in std::fs::read_dir(&objects).unwrap().map(Result::unwrap) {
        let to = git_dir.join("objects").join(dir.file_name());
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            let _ = symlink(file.path(), to.join(file.file_name()));
        }
    }
    assert_eq!(git(lab.work(), &["cat-file", "-t", &stolen]), "commit");
    point_at_it(&lab);
    std::fs::rename(git_dir.join("objects"), lab.path("away")).unwrap();
    std::fs::create_dir(git_dir.join("objects")).unwrap();
    for dir in std::fs::read_dir(&objects).unwrap().map(Result::unwrap) {
        symlink(dir.path(), git_dir.join("objects").join(dir.file_name())).unwrap();
    }
    point_at_it(&lab);
    std::fs::remove_dir_all(git_dir.join("objects")).unwrap();
    symlink(&objects, git_dir.join("objects")).unwrap();
    point_at_it(&lab);
    git(&secret, &["gc", "-q"]);
    std::fs::remove_file(git_dir.join("objects")).unwrap();
    std::fs::create_dir_all(git_dir.join("objects")).unwrap();
    symlink(objects.join("pack"), git_dir.join("objects/pack")).unwrap();
    point_at_it(&lab);
}

#[test]
fn a_git_dir_that_is_a_file_or_a_link_is_refused() {
    let (lab, server, _, _) = begun();
    let real = lab.path("elsewhere");
    std::fs::rename(lab.work().join(".git"), &real).unwrap();
    let refused = || {
        for error in [
            within(20, || git::take_over(&lab.place).unwrap_err()),
            lab.try_checkout(&server.url("project.git"), None, &Access::default())
                .unwrap_err(),
        ] {
            assert!(error.to_string().contains("not a folder"), "{error}");
        }
        std::fs::remove_file(lab.work().join(".git")).unwrap();
    };
    std::fs::write(
        lab.work().join(".git"),
        format!("gitdir: {}\n", real.display()),
    )
    .unwrap();
    refused();
    symlink(&real, lab.work().join(".git")).unwrap();
    refused();
    nix::unistd::mkfifo(&lab.work().join(".git"), Mode::S_IRWXU).unwrap();
    refused();
}

#[test]
fn heads_that_lead_outside_or_nowhere_are_refused() {
    let (lab, _server, _, last) = begun();
    let git_dir = lab.work().join(".git");
    let outside = lab.path("outside");
    std::fs::write(&outside, format!("{last}\n")).unwrap();
    let head = git_dir.join("HEAD");
    let refused = || {
        let error = within(20, || git::take_over(&lab.place).unwrap_err());
        assert!(
            error.to_string().contains("HEAD in the workspace"),
            "{error}"
        );
        std::fs::remove_file(&head).unwrap();
    };
    for text in [
        "ref: refs/heads/../../../outside\n",
        "ref: ../outside\n",
        "ref: refs/heads/\n",
        "",
        "ref: refs/heads/.invalid\n",
        &"x".repeat(10_000),
        "\0\0",
        "ref: refs/heads/a\nb\n",
        &"a".repeat(64),
    ] {
        std::fs::write(&head, text).unwrap();
        refused();
    }
    std::fs::remove_file(&head).ok();
    symlink(&outside, &head).unwrap();
    refused();
    nix::unistd::mkfifo(&head, Mode::S_IRWXU).unwrap();
    refused();
    symlink("/dev/zero", &head).unwrap();
    refused();
    assert!(git::take_over(&lab.place).is_err());

    // A branch that is a symlink or a FIFO is no branch; the others are taken.
    std::fs::write(&head, "ref: refs/heads/trap\n").unwrap();
    symlink(&outside, git_dir.join("refs/heads/trap")).unwrap();
    nix::unistd::mkfifo(&git_dir.join("refs/heads/fifo"), Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", git_dir.join("refs/heads/zero")).unwrap();
    symlink(
        git_dir.join("refs/heads"),
        git_dir.join("refs/heads/circle"),
    )
    .unwrap();
    let head = within(20, || git::take_over(&lab.place).unwrap());
    assert_eq!((head.branch.as_deref(), head.commit), (Some("trap"), None));
}

fn loose(git_dir: &Path, id: &str) -> std::path::PathBuf {
    git_dir.join("objects").join(&id[..2]).join(&id[2..])
}

#[test]
fn objects_that_are_not_what_their_name_says_are_left_out() {
    let (lab, server, initial, last) = begun();
    let git_dir = lab.work().join(".git");
    let blob = git(lab.work(), &["rev-parse", "HEAD:work"]);
    let file = |id: &str| loose(&git_dir, id);
    std::fs::set_permissions(file(&blob), PermissionsExt::from_mode(0o644)).unwrap();
    let sound = std::fs::read(file(&blob)).unwrap();
    let lie = std::fs::read(file(&last)).unwrap();
    let mut bomb = b"x\x9c".to_vec();
    bomb.extend([0xff; 4096]);
    for bad in [
        lie.as_slice(),
        b"",
        b"rubbish",
        &sound[..sound.len() / 2],
        &bomb,
    ] {
        std::fs::write(file(&blob), bad).unwrap();
        let head = within(20, || git::take_over(&lab.place).unwrap());
        let error = git::changes(
            &lab.place,
            &server.url("project.git"),
            Some(&initial),
            &head,
        );
        assert!(error.is_err(), "{error:?}");
        let error = git::push(
            &lab.place,
            &server.url("project.git"),
            &last,
            "x",
            &Access::default(),
        );
        assert!(error.is_err());
    }
    for plant in [
        |path: &Path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap(),
        |path: &Path| symlink("/dev/zero", path).unwrap(),
    ] {
        std::fs::remove_file(file(&blob)).unwrap();
        plant(&file(&blob));
        within(20, || git::take_over(&lab.place).unwrap());
    }
    std::fs::remove_file(file(&blob)).unwrap();
    std::fs::write(file(&blob), &sound).unwrap();
    let head = git::take_over(&lab.place).unwrap();
    git::changes(
        &lab.place,
        &server.url("project.git"),
        Some(&initial),
        &head,
    )
    .unwrap();
    git::push(
        &lab.place,
        &server.url("project.git"),
        &last,
        "x",
        &Access::default(),
    )
    .unwrap();
}

#[test]
fn packs_are_taken_by_their_content_and_their_indexes_by_nobody() {
    let (lab, server, initial, last) = begun();
    let packs = lab.work().join(".git/objects/pack");
    git(lab.work(), &["repack", "-q", "-a", "-d"]);
    let pack = std::fs::read_dir(&packs)
        .unwrap()
        .map(|f| f.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "pack"))
        .unwrap();
    for rubbish in ["idx", "rev", "bitmap", "keep", "mtimes"] {
        let path = pack.with_extension(rubbish);
        let _ = std::fs::remove_file(&path);
        std::fs::write(path, "\u{fffd}tOc a lie").unwrap();
    }
    let sound = std::fs::read(&pack).unwrap();
    let name = |c: char| packs.join(format!("pack-{}.pack", String::from(c).repeat(40)));
    std::fs::write(name('0'), b"PACK\0\0\0\x02\xff\xff\xff\xff").unwrap();
    std::fs::write(name('1'), &sound[..sound.len() / 2]).unwrap();
    let mut flipped = sound.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    std::fs::write(name('2'), flipped).unwrap();
    std::fs::write(name('3'), "").unwrap();
    std::fs::write(packs.join("multi-pack-index"), "MIDX a lie").unwrap();
    symlink("/dev/zero", name('4')).unwrap();
    nix::unistd::mkfifo(&name('5'), Mode::S_IRWXU).unwrap();
    let head = within(30, || git::take_over(&lab.place).unwrap());
    assert_eq!(head.commit.as_deref(), Some(last.as_str()));
    let changes = git::changes(
        &lab.place,
        &server.url("project.git"),
        Some(&initial),
        &head,
    )
    .unwrap();
    assert_eq!((changes.files, changes.added), (1, 1));
    git(
        &lab.place.trusted.join("repository.git"),
        &["fsck", "--strict"],
    );
}

#[test]
fn trees_that_name_dot_git_or_the_parent_write_nothing_outside() {
    let lab = Lab::new();
    let clone = lab.remote("evil.git");
    write(&clone, "fine", "1\n");
    commit(&clone, "Fine");
    let blob = git(&clone, &["rev-parse", "HEAD:fine"]);
    let server = lab.plain_server();
    for (at, name) in ["..", ".git", ".GIT", "git~1", ".g\u{200c}it", "."]
        .iter()
        .enumerate()
    {
        // What mktree refuses, raw bytes still say.
        let inner = raw_tree(&clone, &format!("100644 {}", "pwned"), &blob);
        let outer = raw_tree(&clone, &format!("40000 {name}"), &inner);
        let evil = git(&clone, &["commit-tree", "-m", "evil", &outer]);
        let branch = format!("b{at}");
        let bare = lab.served().join("evil.git");
        git(&bare, &["config", "receive.fsckObjects", "false"]);
        git(
            &clone,
            &[
                "push",
                "-q",
                "origin",
                &format!("{evil}:refs/heads/{branch}"),
            ],
        );
        let fresh = Lab::new();
        let out = within(20, || {
            fresh.try_checkout(&server.url("evil.git"), Some(&branch), &Access::default())
        });
        assert!(out.is_err(), "{name:?}: {out:?}");
        for path in ["pwned", "work/.git/pwned", "work/pwned", "work/git~1/pwned"] {
            assert!(!fresh.path(path).exists(), "{name:?}: {path}");
        }
    }
}

/// Writes a tree of one entry, unchecked.
fn raw_tree(dir: &Path, entry: &str, id: &str) -> String {
    let mut bytes = entry.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(
        (0..40)
            .step_by(2)
            .map(|at| u8::from_str_radix(&id[at..at + 2], 16).unwrap()),
    );
    std::fs::write(dir.join("../raw"), bytes).unwrap();
    git(
        dir,
        &["hash-object", "-t", "tree", "-w", "--literally", "../raw"],
    )
}
