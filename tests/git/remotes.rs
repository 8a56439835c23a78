//! The network's side: who gets the password, and what each failure says.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::atomic::AtomicBool;

use runledger::git::{self, Access, Wanted};
use runledger::names::reasons;

use crate::kills;
use crate::lab::*;
use crate::server::{Manner, PASSWORD, Server, USER};

const LOCKED: Manner = Manner {
    https: true,
    wants_password: true,
    status: None,
    redirect: None,
};

#[test]
fn a_run_over_https_with_a_password_from_checkout_to_push() {
    let lab = Lab::new();
    let clone = lab.project();
    write(&clone, "run.sh", "#!/bin/sh\n");
    std::fs::set_permissions(clone.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    symlink("README.md", clone.join("link")).unwrap();
    write(
        &clone,
        ".gitattributes",
        "*.bat text eol=crlf\n*.id ident\n",
    );
    write(&clone, "go.bat", "echo\r\n");
    write(&clone, "x.id", "$Id$\n");
    write(&clone, "empty", "");
    write(&clone, "deep/er/ümläut und leer", "x\n");
    commit(&clone, "More kinds of files");
    let module = format!("160000,{},module", git(&clone, &["rev-parse", "HEAD"]));
    git(&clone, &["update-index", "--add", "--cacheinfo", &module]);
    git(&clone, &["commit", "-q", "-m", "A submodule"]);
    git(&clone, &["tag", "-a", "v1", "-m", "one"]);
    git(&clone, &["push", "-q", "--tags", "origin", "HEAD:trunk"]);
    let initial = git(&clone, &["rev-parse", "HEAD"]);
    let server = Server::start(&lab.served(), LOCKED);
    let url = server.url("project.git");
    let access = access(&server);

    let out = lab.try_checkout(&url, Some("trunk"), &access).unwrap();
    assert_eq!(out.branch.as_deref(), Some("trunk"));
    assert_eq!(out.initial_commit.as_deref(), Some(initial.as_str()));
    assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    assert_eq!(
        git(lab.work(), &["status", "-sb"]),
        "## trunk...origin/trunk"
    );
    assert_eq!(
        git(lab.work(), &["log", "--format=%s"]),
        git(&clone, &["log", "--format=%s"])
    );
    assert_eq!(git(lab.work(), &["describe"]), git(&clone, &["describe"]));
    git(lab.work(), &["fsck", "--strict"]);
    git(lab.work(), &["diff", "--exit-code", "HEAD"]);
    assert_eq!(
        files_with(lab.dir.path(), PASSWORD),
        Vec::<std::path::PathBuf>::new()
    );

    write(lab.work(), "src/main.rs", "fn main() {\n    work();\n}\n");
    let last = commit(lab.work(), "Work");
    let head = git::take_over(&lab.place).unwrap();
    assert_eq!(head.branch.as_deref(), Some("trunk"));
    assert_eq!(head.commit.as_deref(), Some(last.as_str()));
    let changes = git::changes(&lab.place, &url, Some(&initial), &head).unwrap();
    assert_eq!(
        (
            changes.commits,
            changes.files,
            changes.added,
            changes.removed
        ),
        (1, 1, 3, 1)
    );
    assert_eq!(changes.repository, url.as_str());

    git::push(&lab.place, &url, &last, "agent/one", &access).unwrap();
    git::push(&lab.place, &url, &last, "agent/one", &access).unwrap();
    assert_eq!(
        git(
            &lab.served().join("project.git"),
            &["rev-parse", "agent/one"]
        ),
        last
    );
    git(&lab.served().join("project.git"), &["fsck", "--strict"]);
}

#[test]
fn credentials_in_the_url_are_used_for_nothing_and_shown_nowhere() {
    let lab = Lab::new();
    lab.project();
    let server = Server::start(&lab.served(), LOCKED);
    let mut url = server.url("project.git");
    url.set_username(USER).unwrap();
    url.set_password(Some("sekret")).unwrap();
    let access = Access {
        ca_files: vec![server.ca.clone()],
        ..Access::default()
    };
    let error = lab.try_checkout(&url, None, &access).unwrap_err();
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED);
    assert!(!error.to_string().contains("sekret") && !format!("{error:?}").contains("sekret"));
    assert_eq!(server.passwords_seen(), 0);
    assert_eq!(
        files_with(lab.dir.path(), "sekret"),
        Vec::<std::path::PathBuf>::new()
    );
}

#[test]
fn a_wrong_password_is_refused_once_and_a_missing_one_is_named() {
    let lab = Lab::new();
    lab.project();
    let server = Server::start(&lab.served(), LOCKED);
    let url = server.url("project.git");

    let wrong = Access {
        password: Some("guess".to_owned()),
        ..access(&server)
    };
    let error = within(20, || lab.try_checkout(&url, None, &wrong).unwrap_err());
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED);
    assert!(!error.is_retryable());
    assert!(
        error
            .to_string()
            .contains("refused the username and password"),
        "{error}"
    );
    assert!(!error.to_string().contains("guess"), "{error}");
    assert_eq!(server.passwords_seen(), 1);

    let none = Access {
        password: None,
        ..access(&server)
    };
    let error = lab.try_checkout(&url, None, &none).unwrap_err();
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED);
    assert!(
        error
            .to_string()
            .contains("name a Secret in repository.secretName"),
        "{error}"
    );
    // Nothing was begun: with the right password it goes on by itself.
    lab.try_checkout(&url, None, &access(&server)).unwrap();
    let error = git::push(&lab.place, &url, &head(&lab), "x", &wrong).unwrap_err();
    assert_eq!(error.reason(), reasons::AUTHENTICATION_FAILED);
}

fn head(lab: &Lab) -> String {
    git(lab.work(), &["rev-parse", "HEAD"])
}

#[test]
fn a_password_is_not_sent_to_a_host_that_its_secret_does_not_name() {
    let lab = Lab::new();
    lab.project();
    let server = Server::start(&lab.served(), LOCKED);
    for hosts in [
        vec![],
        vec!["git.example.com".to_owned()],
        vec!["127.0.0.1:1".to_owned()],
        // A bare name is the default port's.
        vec!["127.0.0.1".to_owned()],
    ] {
        let access = Access {
            hosts,
            ..access(&server)
        };
        let error = lab
            .try_checkout(&server.url("project.git"), None, &access)
            .unwrap_err();
        assert_eq!(error.reason(), reasons::HOST_NOT_ALLOWED);
        assert!(
            error
                .to_string()
                .contains(&format!("{} asks for the password", server.address)),
            "{error}"
        );
    }
    assert_eq!(server.passwords_seen(), 0);
    let by_port = format!("127.0.0.1:{}", server.address.port());
    let access = Access {
        hosts: vec![by_port],
        ..access(&server)
    };
    lab.try_checkout(&server.url("project.git"), None, &access)
        .unwrap();
}

#[test]
fn a_redirect_to_another_host_is_not_followed() {
    let lab = Lab::new();
    lab.project();
    let other = Server::start(
        &lab.served(),
        Manner {
            https: false,
            ..LOCKED
        },
    );
    let base = other.url_at("localhost", "").to_string();
    let server = Server::start(
        &lab.served(),
        Manner {
            redirect: Some(base.trim_end_matches('/').to_owned()),
            ..Manner::default()
        },
    );
    let mut access = access(&server);
    access
        .hosts
        .push(format!("localhost:{}", other.address.port()));
    let error = lab
        .try_checkout(&server.url("project.git"), None, &access)
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(
        error
            .to_string()
            .contains("write that address into repository.url"),
        "{error}"
    );
    assert_eq!(other.requests(), 0);
}

#[test]
fn a_certificate_of_an_unknown_ca_is_refused_before_anything_is_asked() {
    let lab = Lab::new();
    lab.project();
    let (server, other) = (
        Server::start(&lab.served(), LOCKED),
        Server::start(&lab.served(), LOCKED),
    );
    let access = Access {
        ca_files: vec![other.ca.clone()],
        ..access(&server)
    };
    let error = lab
        .try_checkout(&server.url("project.git"), None, &access)
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(error.to_string().contains("ca.crt"), "{error}");
    assert_eq!(server.requests(), 0);

    let rubbish = lab.path("rubbish.crt");
    std::fs::write(&rubbish, "no certificate").unwrap();
    let access = Access {
        ca_files: vec![rubbish],
        ..access
    };
    let error = lab
        .try_checkout(&server.url("project.git"), None, &access)
        .unwrap_err();
    assert!(
        error.to_string().contains("no certificate in PEM"),
        "{error}"
    );
}

#[test]
fn who_is_trusted_by_the_machine_is_trusted_where_no_ca_is_given() {
    let lab = Lab::new();
    lab.project();
    let open = Manner {
        https: true,
        ..Manner::default()
    };
    let server = Server::start(&lab.served(), open.clone());
    let other = Server::start(&lab.served(), open);
    let url = server.url("project.git");
    assert!(!kills::checks_out_where(&other.ca, &lab, &url));
    assert!(kills::checks_out_where(&server.ca, &lab, &url));
}

#[test]
fn trouble_of_the_host_is_worth_trying_again_and_trouble_of_the_spec_is_not() {
    let lab = Lab::new();
    lab.project();
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}/project.git").parse().unwrap();
    let error = within(30, || {
        lab.try_checkout(&url, None, &Access::default())
            .unwrap_err()
    });
    assert_eq!(
        (error.reason(), error.is_retryable()),
        (reasons::REPOSITORY_UNREACHABLE, true)
    );
    assert!(
        error
            .to_string()
            .starts_with(&format!("can't reach {url}: ")),
        "{error}"
    );

    for (status, reason, again) in [
        (503, reasons::REPOSITORY_UNREACHABLE, true),
        (429, reasons::REPOSITORY_UNREACHABLE, true),
        (403, reasons::AUTHENTICATION_FAILED, false),
        (404, reasons::CHECKOUT_FAILED, false),
        (400, reasons::CHECKOUT_FAILED, false),
        (200, reasons::CHECKOUT_FAILED, false),
    ] {
        let manner = Manner {
            status: Some(status),
            ..Manner::default()
        };
        let url = Server::start(&lab.served(), manner).url("project.git");
        let error = lab
            .try_checkout(&url, None, &Access::default())
            .unwrap_err();
        assert_eq!(
            (error.reason(), error.is_retryable()),
            (reason, again),
            "{status}: {error}"
        );
        assert!(
            error.to_string().contains(url.as_str()),
            "{status}: {error}"
        );
    }
    let server = lab.plain_server();
    let url = server.url("no-such.git");
    let error = lab
        .try_checkout(&url, None, &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    let url = server.url("project.git");
    let error = lab
        .try_checkout(&url, Some("no-such"), &Access::default())
        .unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED);
    assert!(
        error
            .to_string()
            .contains("has no branch and no tag no-such"),
        "{error}"
    );
    assert!(error.to_string().contains("it has trunk"), "{error}");
    lab.checkout(&url);
}

#[test]
fn a_host_that_accepts_and_hangs_up_is_worth_trying_again() {
    let lab = Lab::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{address}/project.git").parse().unwrap();
        let error = within(30, || {
            lab.try_checkout(&url, None, &Access::default())
                .unwrap_err()
        });
        assert!(error.is_retryable(), "{error}");
    }
}

#[test]
fn only_http_and_branches_that_git_knows_are_asked_for() {
    let lab = Lab::new();
    lab.project();
    let served = lab.served().join("project.git");
    for url in [
        format!("file://{}", served.display()),
        "ext::sh -c touch% /tmp/x".to_owned(),
        "git://example.com/x".to_owned(),
    ] {
        let error = lab
            .try_checkout(&url.parse().unwrap(), None, &Access::default())
            .unwrap_err();
        assert!(error.to_string().contains("repository.url"), "{error}");
    }
    let url = lab.plain_server().url("project.git");
    for branch in ["--upload-pack=x", "a..b", "", "../x", "a b", "HEAD", "x:y"] {
        let error = lab
            .try_checkout(&url, Some(branch), &Access::default())
            .unwrap_err();
        assert!(
            error.to_string().contains("repository.branch"),
            "{branch:?}: {error}"
        );
    }
}

#[test]
fn a_cancelled_checkout_ends_and_the_next_one_starts_over() {
    let lab = Lab::new();
    lab.project();
    let url = lab.plain_server().url("project.git");
    let stop = AtomicBool::new(true);
    let error = git::checkout(
        &lab.place,
        &Wanted::new(url.clone()),
        &Access::default(),
        &stop,
    )
    .unwrap_err();
    assert!(error.is_cancelled() && !error.is_retryable(), "{error}");
    lab.checkout(&url);
}

#[test]
fn a_push_never_overwrites_and_tells_the_remotes_word() {
    let lab = Lab::new();
    let clone = lab.project();
    let url = lab.plain_server().url("project.git");
    lab.checkout(&url);
    write(lab.work(), "mine", "1\n");
    let mine = commit(lab.work(), "Mine");
    git::take_over(&lab.place).unwrap();
    let push = |branch: &str| git::push(&lab.place, &url, &mine, branch, &Access::default());

    write(&clone, "theirs", "1\n");
    let theirs = commit(&clone, "Theirs");
    git(&clone, &["push", "-q", "origin", "HEAD:shared"]);
    let error = push("shared").unwrap_err();
    assert_eq!(error.reason(), reasons::PUSH_CONFLICT);
    assert!(error.to_string().contains("has moved on"), "{error}");
    let bare = lab.served().join("project.git");
    assert_eq!(git(&bare, &["rev-parse", "shared"]), theirs);

    // Fast-forward of what is there already, and a rewind of it, which is none.
    push("ahead").unwrap();
    write(lab.work(), "mine", "2\n");
    let later = commit(lab.work(), "Mine again");
    git::take_over(&lab.place).unwrap();
    git::push(&lab.place, &url, &later, "ahead", &Access::default()).unwrap();
    let error = push("ahead").unwrap_err();
    assert!(error.to_string().contains("has moved on"), "{error}");
    assert_eq!(git(&bare, &["rev-parse", "ahead"]), later);

    let hook = bare.join("hooks/update");
    std::fs::create_dir_all(bare.join("hooks")).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho no >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    let error = push("hooked").unwrap_err();
    assert_eq!(error.reason(), reasons::PUSH_FAILED);
    assert!(error.to_string().contains("hook declined"), "{error}");

    std::fs::remove_file(&hook).unwrap();
    let error = push("main").unwrap_err();
    assert_eq!(error.reason(), reasons::PUSH_FAILED);
    let allowed = git::Target {
        branch: "main",
        allowed: &["main".to_owned()],
    };
    git::push(&lab.place, &url, &mine, allowed, &Access::default()).unwrap();
    assert_eq!(git(&bare, &["rev-parse", "main"]), mine);
    let unknown = "0123456789abcdef0123456789abcdef01234567";
    let error = git::push(&lab.place, &url, unknown, "x", &Access::default()).unwrap_err();
    assert_eq!(error.reason(), reasons::PUSH_FAILED);
}
