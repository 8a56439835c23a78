//! A run's repository, over https with a password, as git itself sees it afterwards.

use std::path::Path;
use std::process::Command;

use runledger::names::reasons;
use runledger::pod::{PushAssignment, RepositoryAssignment};
use runledger::wire::patch::PatchText;
use runledger::wire::{EventBody, Outcome, Termination};

use crate::git_server::{Manner, PASSWORD, Server, USER};
use crate::harness::{Pod, World, claude, eventually, shell_cli};

const COMMITS: &str = r#"
turns:
  - text: I commit twice.
    tools:
      - name: Bash
        input:
          command: "printf '1\n2\n3\n' > new.txt && git add new.txt && git commit -qm One && sed -i 1d README.md && git mv README.md READ.md && git commit -qam Two && echo rest > rest.txt"
          description: Commit
    usage: {input: 10, output: 5}
  - text: Done.
"#;

/// The same by a CLI of our own, which then waits to be told how it goes on.
const SHELL: &str = "printf '1\\n2\\n' > new.txt && git add new.txt && git commit -qm One && touch ../done
while [ ! -e ../go ]; do sleep 0.1; done
echo '{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"total_cost_usd\":0}'; cat >/dev/null";

struct Remote {
    folder: tempfile::TempDir,
    server: Server,
}

impl Remote {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bare = folder.path().join("project.git");
        std::fs::create_dir_all(&bare).unwrap();
        git(&bare, &["init", "-q", "--bare", "-b", "trunk"]);
        git(&bare, &["config", "http.receivepack", "true"]);
        let seed = folder.path().join("seed");
        git(folder.path(), &["clone", "-q", "project.git", "seed"]);
        std::fs::write(seed.join("README.md"), "one\ntwo\nthree\nfour\n").unwrap();
        git(&seed, &["add", "-A"]);
        git(&seed, &["commit", "-qm", "Begin"]);
        git(&seed, &["push", "-q", "origin", "HEAD:trunk"]);
        let manner = Manner {
            https: true,
            wants_password: true,
            ..Manner::default()
        };
        let server = Server::start(folder.path(), manner);
        Self { folder, server }
    }

    fn bare(&self, args: &[&str]) -> String {
        git(&self.folder.path().join("project.git"), args)
    }

    fn give_to(&self, pod: &mut Pod, always: bool) {
        pod.write("etc/runledger/git/username", USER);
        pod.write("etc/runledger/git/password", PASSWORD);
        pod.write("etc/runledger/git/hosts", &self.server.address.to_string());
        let ca = std::fs::read_to_string(&self.server.ca).unwrap();
        pod.write("etc/runledger/git/ca.crt", &ca);
        pod.repository(RepositoryAssignment {
            has_secret: true,
            push: Some(PushAssignment {
                always,
                branch: "work/one".into(),
                allow_protected: Vec::new(),
            }),
            ..RepositoryAssignment::new(self.server.url("project.git"))
        });
    }

    /// Against what git counts between the same commits.
    fn check(&self, termination: &Termination) {
        let changes = termination.git.as_ref().unwrap();
        let (from, to) = (
            changes.initial_commit.as_str(),
            changes.final_commit.as_str(),
        );
        assert_eq!(from, self.bare(&["rev-parse", "trunk"]));
        assert_eq!(to, self.bare(&["rev-parse", "work/one"]));
        let numstat = self.bare(&["diff", "--numstat", "-M", from, to]);
        let column = |n: usize| -> u64 {
            let figures = numstat.lines().map(|line| line.split('\t').nth(n).unwrap());
            figures.map(|figure| figure.parse::<u64>().unwrap()).sum()
        };
        assert_eq!(changes.files as usize, numstat.lines().count());
        assert_eq!((changes.added, changes.removed), (column(0), column(1)));
        let commits = self.bare(&["rev-list", "--count", &format!("{from}..{to}")]);
        assert_eq!(changes.commits.to_string(), commits);
        assert_eq!(changes.pushed.as_deref(), Some("work/one"));
        assert_eq!(changes.branch, "trunk");
        assert!(!changes.repository.contains(PASSWORD));
    }
}

fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(args).current_dir(folder);
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Ada");
        command.env(format!("GIT_{who}_EMAIL"), "ada@example.com");
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_done_is_pushed_and_counted_as_git_counts() {
    let Some(claude) = claude() else { return };
    let world = World::new(COMMITS).await;
    let remote = Remote::new();
    let mut pod = Pod::new(&world, "Commit.", claude);
    remote.give_to(&mut pod, false);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(code, Some(0), "{}", termination.message);
    remote.check(&termination);
    assert_eq!(termination.git.unwrap().commits, 2);
    assert_eq!(
        remote.bare(&["log", "-1", "--format=%an", "work/one"]),
        "Claude"
    );
    assert!(pod.root.join("workspace/rest.txt").exists());

    let events = world.server.events(pod.assignment.run_id, 1);
    let patches = events.iter().filter_map(|event| match &event.body {
        EventBody::Patch(patch) => Some(patch),
        _ => None,
    });
    let patches: Vec<_> = patches.collect();
    assert_eq!(patches.len(), 1, "{events:#?}");
    let text = |part: &PatchText| String::from_utf8(part.text.clone()).unwrap();
    let gits = remote.bare(&["diff", "-M", "--full-index", "trunk", "work/one"]);
    assert_eq!(text(&patches[0].committed), gits + "\n");
    let left = text(&patches[0].uncommitted);
    assert!(
        left.ends_with("+++ b/rest.txt\n@@ -0,0 +1 @@\n+rest\n"),
        "{left}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_after_a_lost_one_counts_from_the_runs_beginning() {
    let world = World::new("turns: []").await;
    let remote = Remote::new();
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), SHELL));
    remote.give_to(&mut pod, false);
    pod.start().await;
    eventually("a commit", async || pod.root.join("done").exists()).await;
    let mut pod = pod.next_attempt();
    pod.write("go", "");
    let again = SHELL
        .replace("One", "Two")
        .replace("> new.txt", ">> new.txt");
    shell_cli(folder.path(), &again);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(code, Some(0), "{}", termination.message);
    remote.check(&termination);
    assert_eq!(termination.git.unwrap().commits, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_cannot_be_pushed_fails_the_run_and_stays_in_the_workspace() {
    let world = World::new("turns: []").await;
    let remote = Remote::new();
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), SHELL));
    remote.give_to(&mut pod, false);
    pod.start().await;
    eventually("a commit", async || pod.root.join("done").exists()).await;
    // Somebody else was faster: not a fast-forward any more.
    let seed = remote.folder.path().join("seed");
    git(&seed, &["commit", "-q", "--allow-empty", "-m", "Other"]);
    git(&seed, &["push", "-q", "origin", "HEAD:work/one"]);
    pod.write("go", "");
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(1), Outcome::Failed));
    assert_eq!(termination.reason, reasons::PUSH_CONFLICT);
    assert!(
        termination.message.contains("work/one"),
        "{}",
        termination.message
    );
    let changes = termination.git.unwrap();
    assert_eq!((changes.commits, changes.pushed), (1, None));
    assert_eq!(changes.undelivered.as_deref(), Some(reasons::PUSH_CONFLICT));
    let head = git(&pod.root.join("workspace"), &["rev-parse", "HEAD"]);
    assert_eq!(changes.final_commit, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_dir_that_the_agent_deleted_or_broke_is_the_reason_that_the_run_ends_with() {
    for damage in ["rm -rf .git", "echo nonsense > .git/HEAD"] {
        let world = World::new("turns: []").await;
        let remote = Remote::new();
        let folder = tempfile::tempdir().unwrap();
        let script = SHELL.replace("touch ../done", &format!("{damage}; touch ../done"));
        let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), &script));
        remote.give_to(&mut pod, false);
        pod.write("go", "");
        pod.start().await;
        let (code, termination) = pod.finish().await;
        assert_eq!(
            (code, termination.outcome),
            (Some(1), Outcome::Failed),
            "{damage}"
        );
        assert_eq!(termination.reason, reasons::CHECKOUT_FAILED, "{damage}");
        let sentence = "What the agent left in the repository can't be read: ";
        assert!(
            termination.message.starts_with(sentence),
            "{damage}: {}",
            termination.message
        );
        let events = world.server.events(pod.assignment.run_id, 1);
        assert!(
            matches!(events.last().unwrap().body, EventBody::Sealed(_)),
            "{damage}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_does_not_answer_and_a_right_password_are_waited_for() {
    let world = World::new("turns: []").await;
    let remote = Remote::new();
    let mut pod = Pod::new(&world, "x", "/nowhere".into());
    remote.give_to(&mut pod, false);
    pod.write("etc/runledger/git/password", "wrong");
    pod.start_supervisor();
    assert_eq!(pod.supervisor_exit().await, Some(1));
    let termination = pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Waiting, reasons::AUTHENTICATION_FAILED)
    );
    assert!(
        !termination.message.contains("wrong"),
        "{}",
        termination.message
    );

    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    pod.write("etc/runledger/git/hosts", &nobody.to_string());
    pod.assign(|assignment| {
        let repository = assignment.repository.as_mut().unwrap();
        repository.url = format!("https://{nobody}/project.git").parse().unwrap();
    });
    pod.start_supervisor();
    assert_eq!(pod.supervisor_exit().await, Some(1));
    let termination = pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Waiting, reasons::REPOSITORY_UNREACHABLE)
    );
}
