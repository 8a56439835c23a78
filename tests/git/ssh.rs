//! ssh, against Debian's own sshd: one process of it for each connection, on loopback.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use runledger::git::{self, Access};
use runledger::names::reasons;
use url::Url;

use crate::dice::Dice;
use crate::lab::*;

struct Sshd {
    address: SocketAddr,
    /// The host's public key, as ssh-keygen wrote it.
    host_key: String,
    /// The user's private key.
    key: String,
}

impl Sshd {
    /// Serves the whole machine to the one key, with a host key of that kind.
    fn start(lab: &Lab, kind: &str) -> Self {
        Self::with(lab, kind, "")
    }

    /// With more lines of its configuration.
    fn with(lab: &Lab, kind: &str, more: &str) -> Self {
        let dir = lab.path("sshd");
        std::fs::create_dir_all(&dir).unwrap();
        for (name, kind) in [("host", kind), ("user", "ed25519")] {
            let _ = std::fs::remove_file(dir.join(name));
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", kind, "-N", "", "-C", name, "-f"])
                .arg(dir.join(name))
                .status();
            assert!(made.unwrap().success());
        }
        // Debian's package makes it when the service starts; sshd asks for it in any case.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let config = dir.join("config");
        let text = format!(
            "HostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\n{more}\n",
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (input, output): (OwnedFd, OwnedFd) =
                    (stream.try_clone().unwrap().into(), stream.into());
                let child = Command::new("/usr/sbin/sshd")
                    .args(["-i", "-e", "-f"])
                    .arg(&config)
                    .stdin(Stdio::from(input))
                    .stdout(Stdio::from(output))
                    .stderr(Stdio::null())
                    .spawn();
                std::thread::spawn(move || child.unwrap().wait());
            }
        });
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
        Self {
            address,
            host_key: read("host.pub"),
            key: read("user"),
        }
    }

    fn url(&self, repository: &std::path::Path) -> Url {
        let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
        format!("ssh://{user}@{}{}", self.address, repository.display())
            .parse()
            .unwrap()
    }

    /// The line of known_hosts that is this server's.
    fn known(&self) -> String {
        let mut fields = self.host_key.split(' ');
        let (kind, key) = (fields.next().unwrap(), fields.next().unwrap());
        format!("[127.0.0.1]:{} {kind} {key}\n", self.address.port())
    }

    fn access(&self, lab: &Lab, known_hosts: &str) -> Access {
        let home = lab.path("home");
        std::fs::create_dir_all(home.join(".ssh")).unwrap();
        std::fs::write(home.join(".ssh/known_hosts"), known_hosts).unwrap();
        Access {
            private_key: Some(self.key.clone()),
            ssh_home: Some(home),
            hosts: vec![format!("127.0.0.1:{}", self.address.port())],
            ..Access::default()
        }
    }
}

fn project(lab: &Lab) -> PathBuf {
    lab.served().join("project.git")
}

#[test]
fn a_run_over_ssh_from_checkout_to_push_whatever_kind_the_host_key_is() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let lab = Lab::new();
        lab.project();
        let sshd = Sshd::start(&lab, kind);
        let url = sshd.url(&project(&lab));
        let access = sshd.access(&lab, &sshd.known());
        let out = within(60, || lab.try_checkout(&url, None, &access)).unwrap();
        assert_eq!(out.branch.as_deref(), Some("trunk"));
        write(lab.work(), "more", "1\n");
        let last = commit(lab.work(), "More");
        git::take_over(&lab.place).unwrap();
        git::push(&lab.place, &url, &last, "work", &access).unwrap();
        assert_eq!(git(&project(&lab), &["rev-parse", "work"]), last);
        let secret = sshd.key.lines().nth(1).unwrap();
        for place in [lab.work(), &lab.place.trusted] {
            assert_eq!(files_with(place, secret), Vec::<PathBuf>::new());
        }
    }
}

#[test]
fn an_unknown_host_gets_nothing_and_is_told_with_its_fingerprint_and_what_to_add() {
    let lab = Lab::new();
    lab.project();
    let sshd = Sshd::start(&lab, "ed25519");
    let url = sshd.url(&project(&lab));
    let other = Sshd::start(&Lab::new(), "ed25519");
    let its_line = sshd.known();
    let another_key = its_line.replace(
        its_line.split(' ').nth(2).unwrap().trim(),
        other.host_key.split(' ').nth(1).unwrap(),
    );
    let another_host = its_line.replace("127.0.0.1", "127.0.0.2");
    for known in ["", "# nobody\n", &another_host, &another_key] {
        let access = sshd.access(&lab, known);
        let error = within(60, || lab.try_checkout(&url, None, &access)).unwrap_err();
        assert_eq!(error.reason(), reasons::HOST_KEY_UNKNOWN, "{error}");
        let text = error.to_string();
        assert!(text.contains(its_line.trim()), "{text}");
        let printed = Command::new("ssh-keygen")
            .args(["-l", "-f"])
            .arg(lab.path("sshd/host.pub"))
            .output()
            .unwrap();
        let printed = String::from_utf8(printed.stdout).unwrap();
        let fingerprint = printed.split(' ').nth(1).unwrap();
        assert!(text.contains(fingerprint), "{text} has no {fingerprint}");
    }
    let access = sshd.access(&lab, "git.example.com ssh-ed25519 AAAA\n");
    let error = within(60, || lab.try_checkout(&url, None, &access)).unwrap_err();
    assert_eq!(error.reason(), reasons::HOST_KEY_UNKNOWN);
    assert!(error.to_string().contains("can't be read"), "{error}");
    // What it says to add is what it takes.
    let access = sshd.access(&lab, &its_line);
    within(60, || lab.try_checkout(&url, None, &access)).unwrap();
}

#[test]
fn a_key_that_is_refused_missing_or_not_for_this_host_is_told() {
    let lab = Lab::new();
    lab.project();
    let sshd = Sshd::start(&lab, "ed25519");
    let url = sshd.url(&project(&lab));
    let right = sshd.access(&lab, &sshd.known());
    let other = Sshd::start(&Lab::new(), "ed25519");
    let refused = Access {
        private_key: Some(other.key.clone()),
        ..right.clone()
    };
    let missing = Access {
        private_key: None,
        ..right.clone()
    };
    let elsewhere = Access {
        hosts: vec!["git.example.com".to_owned()],
        ..right.clone()
    };
    for (access, reason, says) in [
        (refused, reasons::AUTHENTICATION_FAILED, "refused the key"),
        (missing, reasons::AUTHENTICATION_FAILED, "ssh-privatekey"),
        (elsewhere, reasons::HOST_NOT_ALLOWED, "under hosts"),
    ] {
        let error = within(60, || lab.try_checkout(&url, None, &access)).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let nothing = sshd.url(&lab.served().join("no-such.git"));
    let error = within(60, || lab.try_checkout(&nothing, None, &right)).unwrap_err();
    assert_eq!(error.reason(), reasons::CHECKOUT_FAILED, "{error}");
    assert!(!error.is_retryable(), "{error}");
}

#[test]
fn a_host_that_is_gone_in_mid_transfer_is_worth_trying_again() {
    for end in ["", "kill -9 $PPID"] {
        let lab = Lab::new();
        let clone = lab.project();
        let mut dice = Dice::new(7);
        let noise: Vec<u8> = (0..200_000)
            .flat_map(|_| dice.next().to_le_bytes())
            .collect();
        write(&clone, "noise", noise);
        commit(&clone, "Noise");
        git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
        let script = lab.path("cut");
        // So many pieces of at most 8 KiB, each passed on as it comes.
        let pieces = "dd bs=8192 count=60 status=none";
        let text = format!("#!/bin/bash\neval \"$SSH_ORIGINAL_COMMAND\" | {pieces}\n{end}\n");
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let cuts = Sshd::with(
            &lab,
            "ed25519",
            &format!("ForceCommand {}", script.display()),
        );
        let url = cuts.url(&project(&lab));
        let access = cuts.access(&lab, &cuts.known());
        let error = within(60, || lab.try_checkout(&url, None, &access)).unwrap_err();
        assert_eq!(
            error.reason(),
            reasons::REPOSITORY_UNREACHABLE,
            "{end:?}: {error}"
        );
        assert!(error.is_retryable(), "{error}");
        let sshd = Sshd::start(&lab, "ed25519");
        let url = sshd.url(&project(&lab));
        let access = sshd.access(&lab, &sshd.known());
        within(60, || lab.try_checkout(&url, None, &access)).unwrap();
        assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
    }
}
