//! The servers that teams have: nginx before git's own http-backend, and sshd; and what they do to
//! their clients. What may pass is worth trying again, and what can't is told in a sentence.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use runledger::git::{self, Access, Wanted};
use runledger::names::reasons;

use crate::lab::*;
use crate::nginx::Nginx;
use crate::server::PASSWORD;

/// Nothing but a server.
const PLAIN: &str = "";

/// Waits for what another process does.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A repository of some megabytes that no compression makes less.
fn heavy(lab: &Lab) {
    let clone = lab.project();
    let mut dice = crate::dice::Dice::new(7);
    for n in 0..24 {
        let bytes: Vec<u8> = (0..16 * 1024)
            .flat_map(|_| dice.next().to_ne_bytes())
            .collect();
        write(&clone, &format!("heavy/{n}"), bytes);
    }
    commit(&clone, "Heavy");
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
}

/// Bytes of the pack that is on its way into the trusted git dir.
fn arrived(lab: &Lab) -> u64 {
    let packs = lab.place.trusted.join("repository.git/objects/pack");
    let files = fs::read_dir(packs).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum()
}

/// A whole run, whatever happened to the one before it.
fn a_run_goes_through(lab: &Lab, url: &url::Url, access: &Access, branch: &str) {
    let out = within(120, || lab.try_checkout(url, None, access)).unwrap();
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    write(lab.work(), branch, "work\n");
    let last = commit(lab.work(), "Work");
    let head = git::take_over(&lab.place).unwrap();
    let changes = git::changes(&lab.place, url, out.initial_commit.as_deref(), &head).unwrap();
    assert_eq!((changes.commits, changes.files, changes.added), (1, 1, 1));
    within(120, || git::push(&lab.place, url, &last, branch, access)).unwrap();
    let bare = lab.served().join("project.git");
    assert_eq!(git(&bare, &["rev-parse", branch]), last);
    for dir in [
        bare.as_path(),
        lab.work(),
        &lab.place.trusted.join("repository.git"),
    ] {
        git(dir, &["fsck", "--strict"]);
    }
}

#[test]
fn nginx_gives_and_takes_a_run_with_its_password_and_no_other() {
    let lab = Lab::new();
    lab.project();
    let nginx = Nginx::start(&lab.served(), PLAIN);
    let url = nginx.url("project.git");
    let wrong = Access {
        password: Some("guess".to_owned()),
        ..nginx.access()
    };
    let error = within(30, || lab.try_checkout(&url, None, &wrong).unwrap_err());
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED, "{error}");
    assert!(!error.to_string().contains("guess"), "{error}");
    a_run_goes_through(&lab, &url, &nginx.access(), "work");
    assert_eq!(files_with(&lab.place.trusted, PASSWORD), [] as [&Path; 0]);
    assert_eq!(files_with(lab.work(), PASSWORD), [] as [&Path; 0]);
}

#[test]
fn a_token_that_expires_in_mid_run_is_told_at_the_push_and_a_new_one_delivers() {
    let lab = Lab::new();
    lab.project();
    let nginx = Nginx::start(&lab.served(), PLAIN);
    let url = nginx.url("project.git");
    lab.try_checkout(&url, None, &nginx.access()).unwrap();
    write(lab.work(), "more", "1\n");
    let last = commit(lab.work(), "More");
    git::take_over(&lab.place).unwrap();

    nginx.set_password("the next one");
    let pushed = within(30, || {
        git::push(&lab.place, &url, &last, "x", &nginx.access())
    });
    let error = pushed.unwrap_err();
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED, "{error}");
    assert!(
        !error.is_retryable() && !error.to_string().contains(PASSWORD),
        "{error}"
    );
    let renewed = Access {
        password: Some("the next one".to_owned()),
        ..nginx.access()
    };
    git::push(&lab.place, &url, &last, "x", &renewed).unwrap();
    let log = nginx.log_with("POST /project.git/git-receive-pack 200");
    let refused = |line: &&String| line.contains("receive-pack 401 [Basic");
    let refused = log.iter().filter(refused).count();
    assert_eq!(refused, 1, "it is refused once: {log:?}");
}

#[test]
fn another_ca_is_refused_and_nothing_is_asked() {
    let lab = Lab::new();
    lab.project();
    let (nginx, other) = (
        Nginx::start(&lab.served(), PLAIN),
        Nginx::start(&lab.served(), PLAIN),
    );
    let access = Access {
        ca_files: vec![other.ca.clone()],
        ..nginx.access()
    };
    let checkout = || lab.try_checkout(&nginx.url("project.git"), None, &access);
    let error = within(30, checkout).unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED, "{error}");
    assert!(error.to_string().contains("repository.caBundle"), "{error}");
    assert_eq!(nginx.log(), [] as [&str; 0]);
}

#[test]
fn a_redirect_at_the_beginning_or_in_mid_conversation_takes_nothing_along() {
    let lab = Lab::new();
    lab.project();
    let other = Nginx::start(&lab.served(), PLAIN);
    let away = format!("https://{}$request_uri", other.host());
    for manner in [
        format!("return 302 {away};"),
        // Whoever follows the second request, with a body, has already shown the password to the first.
        format!("if ($request_method = POST) {{ return 307 {away}; }}"),
        format!("if ($http_authorization) {{ return 301 {away}; }}"),
    ] {
        let nginx = Nginx::start(&lab.served(), &manner);
        let mut access = nginx.access();
        access.hosts.push(other.host());
        access.ca_files.push(other.ca.clone());
        let checkout = || lab.try_checkout(&nginx.url("project.git"), None, &access);
        let error = within(30, checkout).unwrap_err();
        assert_eq!(
            error.reason(),
            reasons::CHECKOUT_FAILED,
            "{manner}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("write that address into repository.url"),
            "{manner}: {text}"
        );
        assert_eq!(other.log(), [] as [&str; 0], "{manner}");
    }
}

#[test]
fn a_server_that_is_gone_in_mid_transfer_is_worth_trying_again_and_the_next_try_completes() {
    let lab = Lab::new();
    heavy(&lab);
    let mut nginx = Nginx::start(&lab.served(), "limit_rate 400k;");
    let (url, access) = (nginx.url("project.git"), nginx.access());
    let error = std::thread::scope(|scope| {
        let checkout = scope.spawn(|| lab.try_checkout(&url, None, &access));
        until("a part of the pack is there", || arrived(&lab) > 100_000);
        nginx.stop();
        checkout.join().unwrap().unwrap_err()
    });
    assert_eq!(error.reason(), reasons::REPOSITORY_UNREACHABLE, "{error}");
    assert!(error.is_retryable(), "{error}");
    let error = within(30, || lab.try_checkout(&url, None, &access)).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    nginx.go_on(PLAIN);
    a_run_goes_through(&lab, &url, &access, "work");
}

#[test]
fn a_server_that_is_gone_in_mid_push_is_worth_trying_again_and_the_next_try_delivers() {
    let lab = Lab::new();
    lab.project();
    let mut nginx = Nginx::start(&lab.served(), PLAIN);
    let (url, access) = (nginx.url("project.git"), nginx.access());
    lab.try_checkout(&url, None, &access).unwrap();
    write(lab.work(), "more", "1\n");
    let last = commit(lab.work(), "More");
    git::take_over(&lab.place).unwrap();
    // The server has everything and has not said so yet; nor will it take it in the midst of the next try.
    let hook = lab.served().join("project.git/hooks/pre-receive");
    let (here, go) = (lab.path("hook-is-here"), lab.path("hook-may-go"));
    let script = format!(
        "#!/bin/sh\ntouch {}\nfor n in $(seq 600); do [ -e {} ] && break; sleep 0.1; done\nexit 1\n",
        here.display(),
        go.display()
    );
    write(&lab.served(), "project.git/hooks/pre-receive", script);
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = std::thread::scope(|scope| {
        let push = scope.spawn(|| git::push(&lab.place, &url, &last, "x", &access));
        until("the push is being received", || here.exists());
        nginx.stop();
        push.join().unwrap().unwrap_err()
    });
    assert_eq!(error.reason(), reasons::REPOSITORY_UNREACHABLE, "{error}");
    fs::remove_file(&hook).unwrap();
    fs::write(&go, "").unwrap();
    nginx.go_on(PLAIN);
    within(30, || git::push(&lab.place, &url, &last, "x", &access)).unwrap();
    assert_eq!(
        git(&lab.served().join("project.git"), &["rev-parse", "x"]),
        last
    );
}

#[test]
fn a_server_that_trickles_is_waited_for_and_can_be_given_up_at_any_time() {
    let lab = Lab::new();
    heavy(&lab);
    let mut nginx = Nginx::start(&lab.served(), "limit_rate 50k;");
    let (url, access) = (nginx.url("project.git"), nginx.access());
    let (stop, wanted) = (AtomicBool::new(false), Wanted::new(url.clone()));
    let error = std::thread::scope(|scope| {
        let checkout = scope.spawn(|| git::checkout(&lab.place, &wanted, &access, &stop));
        until("something is there", || arrived(&lab) > 10_000);
        stop.store(true, Ordering::Relaxed);
        let told = Instant::now();
        let error = within(30, || checkout.join().unwrap()).unwrap_err();
        assert!(
            told.elapsed() < Duration::from_secs(15),
            "{:?}",
            told.elapsed()
        );
        error
    });
    assert!(error.is_cancelled(), "{error}");
    nginx.go_on("limit_rate 1000k;");
    a_run_goes_through(&lab, &url, &access, "work");
}

#[test]
fn fifty_thousand_files_are_checked_out_counted_and_delivered() {
    let lab = Lab::new();
    lab.project();
    let bare = lab.served().join("project.git");
    import(&bare, 50_000);
    let nginx = Nginx::start(&lab.served(), PLAIN);
    let (url, access) = (nginx.url("project.git"), nginx.access());
    let out = within(300, || lab.try_checkout(&url, Some("many"), &access)).unwrap();
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    let files = git(lab.work(), &["ls-files"]).lines().count();
    assert_eq!(files, 50_000);
    git(lab.work(), &["mv", "d7", "moved"]);
    let last = commit(lab.work(), "Move");
    let head = git::take_over(&lab.place).unwrap();
    let initial = out.initial_commit.unwrap();
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    let counted = (changes.files, changes.added, changes.removed);
    assert_eq!(counted, numstat(lab.work(), &initial, &last));
    assert_eq!(changes.files, 1000);
    within(60, || git::push(&lab.place, &url, &last, "moved", &access)).unwrap();
}

/// A branch `many` with so many small files.
fn import(bare: &Path, count: usize) {
    let mut text =
        "commit refs/heads/many\ncommitter A <a@b> 1700000000 +0000\ndata 0\n".to_owned();
    for n in 0..count {
        let content = format!("this is file {n}\n");
        let (folder, length) = (n % 50, content.len());
        text += &format!("M 100644 inline d{folder}/{n}.txt\ndata {length}\n{content}\n");
    }
    let mut import = command(bare, &["fast-import", "--quiet"]);
    let mut import = import.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = import.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, text.as_bytes()).unwrap();
    drop(stdin);
    assert!(import.wait().unwrap().success());
}
