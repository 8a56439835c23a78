//! Runs that don't do their task: each ends in time, with its reason.

use std::time::{Duration, Instant};

use runledger::names::reasons;
use runledger::wire::Outcome;

use crate::harness::{Pod, World, claude, eventually, shell_cli};

/// A CLI that says that it is there, and then listens to nobody.
const DEAF: &str =
    "trap '' TERM INT; echo '{\"type\":\"system\"}'; touch here; while :; do sleep 1; done";

struct Fixture {
    world: World,
    pod: Pod,
    _folder: tempfile::TempDir,
}

async fn with_cli(script: &str) -> Fixture {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let pod = Pod::new(&world, "x", shell_cli(folder.path(), script));
    Fixture {
        world,
        pod,
        _folder: folder,
    }
}

async fn until_the_cli_is_there(pod: &Pod) {
    eventually("the CLI", async || pod.root.join("workspace/here").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deaf_cli_is_gone_five_seconds_after_sigterm_and_the_run_is_stopped() {
    let mut f = with_cli(DEAF).await;
    f.pod.start().await;
    until_the_cli_is_there(&f.pod).await;
    let asked = Instant::now();
    f.pod.term_agent();
    let (code, termination) = f.pod.finish().await;
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!((code, termination.outcome), (Some(1), Outcome::Stopped));
    assert_eq!(termination.reason, reasons::KILLED);
    assert_eq!(termination.acknowledged, termination.sequence);
    assert!(!f.world.server.events(f.pod.assignment.run_id, 1).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_time_is_up_is_stopped_and_says_so() {
    let mut f = with_cli(DEAF).await;
    f.pod
        .assign(|assignment| assignment.timeout_seconds = Some(2));
    f.pod.start().await;
    let (code, termination) = f.pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(1), Outcome::Failed));
    assert_eq!(termination.reason, reasons::TIMEOUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_run_does_not_start_again_with_its_supervisor() {
    let mut f = with_cli(DEAF).await;
    f.pod
        .assign(|assignment| assignment.timeout_seconds = Some(4));
    f.pod.start().await;
    until_the_cli_is_there(&f.pod).await;
    let started = Instant::now();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(900)).await;
        f.pod.kill_supervisor();
        f.pod.start_supervisor();
    }
    let (_, termination) = f.pod.finish().await;
    assert_eq!(termination.reason, reasons::TIMEOUT);
    assert!(
        started.elapsed() < Duration::from_secs(12),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_that_crashes_is_told_with_its_last_words() {
    let mut f = with_cli("echo starting >&2; echo 'oops: no luck' >&2; exit 3").await;
    f.pod.start().await;
    let (code, termination) = f.pod.finish().await;
    assert_eq!(
        (code, termination.reason.as_str()),
        (Some(1), reasons::AGENT_CRASHED)
    );
    assert!(
        termination.message.contains("exit code 3"),
        "{}",
        termination.message
    );
    assert!(
        termination.message.ends_with("oops: no luck"),
        "{}",
        termination.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_the_cli_is_told() {
    let world = World::new("turns: []").await;
    let mut pod = Pod::new(&world, "x", "/nowhere/claude".into());
    pod.start().await;
    let (_, termination) = pod.finish().await;
    assert_eq!(termination.reason, reasons::AGENT_CRASHED);
    assert!(
        termination
            .message
            .contains("/nowhere/claude can't be started"),
        "{}",
        termination.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cli_killed_by_the_kernel_ran_out_of_memory_where_nothing_else_can_be_asked() {
    let mut f = with_cli("kill -9 $$").await;
    f.pod.start().await;
    let (_, termination) = f.pod.finish().await;
    let counted = std::path::Path::new("/sys/fs/cgroup/memory.events").exists()
        || std::path::Path::new("/sys/fs/cgroup/memory/memory.oom_control").exists();
    let expected = if counted {
        reasons::AGENT_CRASHED
    } else {
        reasons::OUT_OF_MEMORY
    };
    assert_eq!(termination.reason, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_leaves_a_supervisor_that_still_seals() {
    let mut f = with_cli(DEAF).await;
    f.pod.start().await;
    until_the_cli_is_there(&f.pod).await;
    f.pod.kill_agent();
    f.pod.term_supervisor();
    assert_eq!(f.pod.supervisor_exit().await, Some(0));
    let termination = f.pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Failed, reasons::AGENT_CRASHED)
    );
    assert_eq!(termination.acknowledged, termination.sequence);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_stopped_before_its_agent_says_so() {
    let mut f = with_cli(DEAF).await;
    f.pod.start_supervisor();
    f.pod.wait_until_started().await;
    f.pod.term_supervisor();
    assert_eq!(f.pod.supervisor_exit().await, Some(0));
    let termination = f.pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Stopped, reasons::KILLED)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_is_not_json_and_processes_left_behind_hold_nobody() {
    let script = "echo 'warning: not json'; printf '\\377\\n'; (trap '' TERM; sleep 1000) & \
                  echo '{\"type\":\"result\",\"subtype\":\"success\",\"is_error\":false,\"total_cost_usd\":0}'; cat >/dev/null";
    let mut f = with_cli(script).await;
    f.pod.start().await;
    let (code, termination) = f.pod.finish().await;
    assert_eq!(code, Some(0), "{}", termination.message);
    assert!(f.pod.log("agent").contains("warning: not json"));
    assert!(f.pod.log("supervise").contains("warning: not json"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_that_refuses_fails_the_run_as_the_models_error() {
    let Some(claude) = claude() else { return };
    let world = World::new("turns: [{errors: [{status: 400, message: 'no such model'}]}]").await;
    let mut pod = Pod::new(&world, "x", claude);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(
        (code, termination.reason.as_str()),
        (Some(1), reasons::MODEL_ERROR)
    );
    assert!(
        termination.message.contains("no such model"),
        "{}",
        termination.message
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_uses_up_its_turns_says_so() {
    let Some(claude) = claude() else { return };
    let turn = "{text: Again., tools: [{name: Bash, input: {command: 'true', description: x}}], usage: {output: 5}}";
    let world = World::new(&format!("{{repeat: true, turns: [{turn}]}}")).await;
    let mut pod = Pod::new(&world, "x", claude);
    pod.assign(|assignment| assignment.agent.max_turns = Some(2));
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!(
        (code, termination.reason.as_str()),
        (Some(1), reasons::MAX_TURNS_REACHED)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_cli_is_stopped_in_the_middle_of_an_answer() {
    let Some(claude) = claude() else { return };
    let world = World::new("turns: [{text: 'At work. ', times: 1000, chunk_delay_ms: 200, usage: {input: 30, output: 4000}}]").await;
    let mut pod = Pod::new(&world, "x", claude);
    pod.start().await;
    let journal = pod
        .root
        .join(format!("state/runs/{}/1.journal", pod.assignment.run_id));
    eventually("an answer to begin", async || {
        std::fs::read_to_string(&journal)
            .unwrap()
            .contains(r#""note":"seen""#)
    })
    .await;
    let asked = Instant::now();
    pod.term_agent();
    let (code, termination) = pod.finish().await;
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!((code, termination.outcome), (Some(1), Outcome::Stopped));
    assert!(termination.usage.estimated_requests >= 1);
}
