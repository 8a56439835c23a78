//! Processes that are really killed, in the midst of a checkout, a commit, a push: whatever they leave,
//! the next run can use. The moments are random; `GIT_SEED` repeats them as far as moments repeat.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use runledger::api::repository::OnReuse;
use runledger::git::{self, Access, Place, Wanted};
use url::Url;
use uuid::Uuid;

use crate::dice::Dice;
use crate::lab::*;

const CHILD: &str = "RUNLEDGER_GIT_CHILD";

/// The supervisor's part of the tests below, in a process that can be killed.
#[test]
#[ignore = "a process of other tests"]
fn child() {
    let Ok(text) = std::env::var(CHILD) else {
        return;
    };
    let words: Vec<&str> = text.split('\n').collect();
    let dir = Path::new(words[1]);
    let place = Place {
        trusted: dir.join("state/git"),
        worktree: dir.join("work"),
    };
    let url: Url = words[2].parse().unwrap();
    println!("begun");
    match words[0] {
        "checkout" => {
            let (wanted, stop) = (Wanted::new(url), AtomicBool::new(false));
            git::checkout(&place, &wanted, &Access::default(), &stop).unwrap();
        }
        "reset" => {
            let wanted = Wanted {
                run: words[3].parse().unwrap(),
                on_reuse: OnReuse::Reset,
                ..Wanted::new(url)
            };
            let stop = AtomicBool::new(false);
            git::checkout(&place, &wanted, &Access::default(), &stop).unwrap();
        }
        "deliver" => {
            let head = git::take_over(&place).unwrap();
            let commit = head.commit.unwrap();
            git::push(&place, &url, &commit, words[3], &Access::default()).unwrap();
        }
        other => panic!("{other}"),
    }
}

/// Runs that part, and kills it after so long, counted from when it begins; how long it took.
fn part(lab: &Lab, words: [&str; 3], kill_after: Duration) -> Duration {
    let dir = lab.dir.path().to_str().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--ignored", "--nocapture"])
        .env(CHILD, [words[0], dir, words[1], words[2]].join("\n"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("begun")));
    let begun = Instant::now();
    while begun.elapsed() < kill_after && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(200));
    }
    let _ = child.kill();
    child.wait().unwrap();
    begun.elapsed()
}

/// Whether a checkout succeeds on a machine that trusts these certificates, and no others.
pub(crate) fn checks_out_where(trusted: &Path, lab: &Lab, url: &Url) -> bool {
    let script = "mount --bind \"$1\" /etc/ssl/certs/ca-certificates.crt && shift && exec \"$@\"";
    let dir = lab.dir.path().to_str().unwrap();
    Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(trusted)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--ignored"])
        .env(CHILD, ["checkout", dir, url.as_str()].join("\n"))
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap()
        .status
        .success()
}

fn moment(dice: &mut Dice, whole: Duration) -> Duration {
    whole.mul_f64(dice.below(1200) as f64 / 1000.0)
}

const FOREVER: Duration = Duration::from_secs(60);

/// Checkout, a commit by the agent, report and push, as the next run does them.
fn next_run(lab: &Lab, remote: &Lab, url: &Url, branch: &str) {
    let out = within(60, || lab.checkout(url));
    let fsck = git(lab.work(), &["fsck", "--strict"]);
    assert!(
        !fsck.contains("missing") && !fsck.contains("error"),
        "{fsck}"
    );
    write(lab.work(), "of-the-next-run", format!("{branch}\n"));
    let last = commit(lab.work(), "Next run");
    let head = git::take_over(&lab.place).unwrap();
    assert_eq!(head.commit.as_ref(), Some(&last));
    let initial = out.initial_commit.unwrap();
    let changes = git::changes(&lab.place, url, Some(&initial), &head).unwrap();
    let counted = (changes.files, changes.added, changes.removed);
    assert_eq!(counted, numstat(lab.work(), &initial, &last));
    git::push(&lab.place, url, &last, branch, &Access::default()).unwrap();
    let bare = remote.served().join("project.git");
    assert_eq!(git(&bare, &["rev-parse", branch]), last);
    for dir in [bare, lab.place.trusted.join("repository.git")] {
        git(&dir, &["fsck", "--strict"]);
    }
}

/// A remote with some hundred files.
fn remote() -> (Lab, crate::server::Server, Url) {
    let remote = Lab::new();
    let clone = remote.project();
    for n in 0..300 {
        write(
            &clone,
            &format!("d{}/{n}", n % 9),
            format!("{n}\n").repeat(n),
        );
    }
    commit(&clone, "Many");
    git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
    let server = remote.plain_server();
    let url = server.url("project.git");
    (remote, server, url)
}

#[test]
fn a_supervisor_killed_in_mid_checkout_leaves_what_the_next_can_use() {
    let mut dice = Dice::from_environment();
    let (remote, _server, url) = remote();
    let words = ["checkout", url.as_str(), ""];
    let whole = part(&Lab::new(), words, FOREVER);
    for round in 0..4 {
        let lab = Lab::new();
        for _ in 0..3 {
            part(&lab, words, moment(&mut dice, whole));
        }
        next_run(&lab, &remote, &url, &format!("round-{round}"));
    }
}

#[test]
fn a_supervisor_killed_in_mid_delivery_leaves_what_the_next_can_deliver() {
    let mut dice = Dice::from_environment();
    let (remote, _server, url) = remote();
    let lab = Lab::new();
    lab.checkout(&url);
    let mut whole = FOREVER;
    for round in 0..5 {
        let branch = format!("round-{round}");
        for n in 0..60 {
            let (name, text) = (format!("n{round}/{n}"), dice.text());
            write(lab.work(), &name, text);
        }
        git(
            lab.work(),
            &["switch", "-q", "-c", &format!("work/{round}")],
        );
        commit(lab.work(), "Work");
        if round % 2 == 1 {
            git(lab.work(), &["repack", "-q", "-a", "-d"]);
            git(lab.work(), &["pack-refs", "--all"]);
        }
        let words = ["deliver", url.as_str(), branch.as_str()];
        if round == 0 {
            whole = part(&lab, words, FOREVER);
            continue;
        }
        for _ in 0..3 {
            part(&lab, words, moment(&mut dice, whole));
        }
        next_run(&lab, &remote, &url, &branch);
    }
}

#[test]
fn a_supervisor_killed_in_mid_reset_loses_nothing_and_the_next_ends_it() {
    let mut dice = Dice::from_environment();
    let (remote, _server, url) = remote();
    let clone = remote.path("clone-project.git");
    let lab = Lab::new();
    lab.checkout(&url);
    let mut whole = FOREVER;
    for round in 0..5u32 {
        for n in 0..40 {
            write(
                &clone,
                &format!("d{}/{n}", n % 9),
                format!("{round}\n").repeat(n),
            );
            write(
                lab.work(),
                &format!("d{}/{n}", n % 7),
                format!("mine {round}\n"),
            );
        }
        let theirs = commit(&clone, "Theirs");
        git(&clone, &["push", "-q", "origin", "HEAD:trunk"]);
        let mine = commit(lab.work(), "Mine");
        write(lab.work(), "uncommitted", format!("{round}\n"));
        // None is that of the first checkout.
        let run = Uuid::from_u128(u128::from(round) + 1);
        let name = run.to_string();
        let words = ["reset", url.as_str(), name.as_str()];
        if round == 0 {
            whole = part(&lab, words, FOREVER);
        } else {
            for _ in 0..3 {
                part(&lab, words, moment(&mut dice, whole));
            }
            part(&lab, words, FOREVER);
        }
        assert_eq!(git(lab.work(), &["rev-parse", "HEAD"]), theirs);
        assert_eq!(git(lab.work(), &["status", "--porcelain"]), "");
        // What it would have lost is all behind one name, as the agent's git sees it.
        let backup = format!("refs/runledger/backup/{run}");
        git(lab.work(), &["merge-base", "--is-ancestor", &mine, &backup]);
        let untracked = git(lab.work(), &["show", &format!("{backup}^3:uncommitted")]);
        assert_eq!(untracked, round.to_string());
        git(lab.work(), &["fsck", "--strict"]);
        git(
            &lab.place.trusted.join("repository.git"),
            &["fsck", "--strict"],
        );
    }
    next_run(&lab, &remote, &url, "after-resets");
}

#[test]
fn an_agents_git_killed_in_mid_commit_leaves_what_the_next_run_can_use() {
    let mut dice = Dice::from_environment();
    let (remote, _server, url) = remote();
    let lab = Lab::new();
    lab.checkout(&url);
    let agent = |round: usize, kill_after: Duration| {
        let script = format!(
            "git switch -q -c side/{round} && git add -A && git commit -q -m Work && \
             git pack-refs --all && git repack -q -a -d && git config x.y {round}"
        );
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .current_dir(lab.work())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_NAME"), "Ada")))
            .envs(["AUTHOR", "COMMITTER"].map(|who| (format!("GIT_{who}_EMAIL"), "a@b")))
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while begun.elapsed() < kill_after && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
        child.wait().unwrap();
        begun.elapsed()
    };
    let mut whole = FOREVER;
    for round in 0..16 {
        for n in 0..40 {
            let (name, text) = (format!("n{}/{n}", round % 3), dice.text());
            write(lab.work(), &name, text);
        }
        if round == 0 {
            whole = agent(round, FOREVER);
        } else {
            agent(round, moment(&mut dice, whole));
        }
        next_run(&lab, &remote, &url, &format!("round-{round}"));
    }
}

#[test]
fn locks_and_drafts_of_the_killed_are_taken_away_and_nothing_else() {
    let (remote, _server, url) = remote();
    let lab = Lab::new();
    lab.checkout(&url);
    let (ours, theirs) = (
        lab.place.trusted.join("repository.git"),
        lab.work().join(".git"),
    );
    let outside = lab.path("outside");
    std::fs::write(&outside, "stays").unwrap();
    let plant = |git: &Path, names: &[&str]| -> Vec<PathBuf> {
        let plant = |name: &&str| {
            let path = git.join(name);
            write(git, name, "");
            path
        };
        names.iter().map(plant).collect()
    };
    for round in 0..2 {
        let mut planted = plant(
            &ours,
            &[
                "HEAD.lock",
                "config.lock",
                "index.lock",
                "packed-refs.lock",
                "shallow.lock",
                "refs/agent/heads/trunk.lock",
                "refs/agent/heads/side/new.lock",
                "refs/runledger/push.lock",
                "objects/tmp_object_git2_x",
                "objects/pack/tmp_pack_x",
            ],
        );
        planted.extend(plant(
            &theirs,
            &[
                "HEAD.lock",
                "config.lock",
                "index.lock",
                "packed-refs.lock",
                "shallow.lock",
                "refs/heads/trunk.lock",
                "refs/heads/side/new.lock",
                "objects/info/commit-graph.lock",
            ],
        ));
        symlink(&outside, theirs.join("link.lock")).unwrap();
        write(lab.work(), "Cargo.lock", "not git's\n");
        next_run(&lab, &remote, &url, &format!("round-{round}"));
        for path in planted {
            assert!(!path.exists(), "{} is still there", path.display());
        }
        // What the locks locked can be written again.
        git(lab.work(), &["config", "a.b", "c"]);
        git(lab.work(), &["switch", "-q", "-C", "side/new"]);
        git(lab.work(), &["pack-refs", "--all"]);
        assert_eq!(std::fs::read(&outside).unwrap(), b"stays");
        assert!(!theirs.join("link.lock").is_symlink());
        assert!(lab.work().join("Cargo.lock").exists());
    }
}

#[test]
fn a_pack_whose_index_was_never_made_is_taken_over_again() {
    let (remote, _server, url) = remote();
    let lab = Lab::new();
    lab.checkout(&url);
    write(lab.work(), "work", "1\n");
    commit(lab.work(), "Work");
    git(lab.work(), &["repack", "-q", "-a", "-d"]);
    let packs = |dir: &Path| -> Vec<PathBuf> {
        let files = std::fs::read_dir(dir.join("objects/pack"))
            .unwrap()
            .flatten();
        let packs = files.map(|file| file.path());
        packs
            .filter(|path| path.extension().is_some_and(|e| e == "pack"))
            .collect()
    };
    let theirs = &packs(&lab.work().join(".git"))[0];
    let ours = lab.place.trusted.join("repository.git");
    let copy = ours.join("objects/pack").join(theirs.file_name().unwrap());
    std::fs::copy(theirs, &copy).unwrap();
    std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o444)).unwrap();
    next_run(&lab, &remote, &url, "work");
    assert!(copy.with_extension("idx").exists());
}
