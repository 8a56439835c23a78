//! What a pod does where room ends: on the disk, in memory, at the server, at its own ports.

use std::time::Duration;

use runledger::names::reasons;
use runledger::wire::{EventBody, Outcome};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Pod, World, eventually, shell_cli};

/// Says that it is there, and then waits to be told to go on.
const WAITS: &str = r#"read task; echo '{"type":"system"}'; touch here
while [ ! -e go ]; do sleep 0.1; done
echo '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":0}'; cat > /dev/null"#;

async fn until_the_cli_is_there(pod: &Pod) {
    eventually("the CLI", async || pod.root.join("workspace/here").exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_volume_is_full_ends_with_that_reason_and_needs_no_time_out() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    // Says 300 KB in all, and then works on for ever.
    let script = r#"long=$(head -c 10000 /dev/zero | tr '\0' x); i=0
while [ $i -lt 30 ]; do i=$((i + 1))
echo '{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"'$i'","content":"'$long'"}]}}'
done; while :; do sleep 1; done"#;
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), script));
    pod.file_limit = Some(128);
    pod.assign(|assignment| assignment.flush_timeout_seconds = 600);
    pod.start().await;
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(1), Outcome::Failed));
    assert_eq!(termination.reason, reasons::OUT_OF_DISK);
    assert!(
        termination.message.contains("too large"),
        "{}",
        termination.message
    );
    // What was on the disk by then is told.
    let told = world.server.events(pod.assignment.run_id, 1);
    assert_eq!(told.last().unwrap().sequence, termination.acknowledged);
    assert!(termination.acknowledged > 5, "{termination:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_full_before_the_start_is_waited_for() {
    let world = World::new("turns: []").await;
    let mut pod = Pod::new(&world, &"x".repeat(10_000), "/nowhere".into());
    pod.file_limit = Some(4);
    pod.start_supervisor();
    assert_eq!(pod.supervisor_exit().await, Some(1));
    let termination = pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Waiting, reasons::VOLUME)
    );
}

/// A request whose body is whole but for its last byte.
async fn hold_back(port: u16, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b' '; 1024 * 1024];
    let mut left = length - 1;
    while left > 0 {
        let now = left.min(chunk.len());
        if stream.write_all(&chunk[..now]).await.is_err() {
            break;
        }
        left -= now;
    }
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_lines_of_any_size_and_number_stay_within_the_supervisors_memory() {
    const LIMIT: u64 = 512 * 1024;
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let script = r#"many() { printf '{"type":"user","a":[0'; yes ,0 | head -n $1 | tr -d '\n'; printf ']}\n'; }
read task; many 3900000; many 15000000; touch here
while [ ! -e go ]; do sleep 0.1; done
echo '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":0}'; cat > /dev/null"#;
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), script));
    pod.start().await;
    until_the_cli_is_there(&pod).await;
    let port = pod.ports[0];
    let length = 32 * 1024 * 1024;
    let held: Vec<_> = (0..32)
        .map(|_| {
            tokio::spawn(async move {
                let mut stream = hold_back(port, length).await;
                let mut answer = vec![0; 4096];
                let read = stream.read(&mut answer).await.unwrap_or(0);
                String::from_utf8_lossy(&answer[..read]).into_owned()
            })
        })
        .collect();
    let (sentences, mut answers) = tokio::sync::mpsc::channel(32);
    for held in held {
        let sentences = sentences.clone();
        tokio::spawn(async move {
            let _ = sentences.send(held.await.unwrap()).await;
        });
    }
    // Four of them fit; the others are told.
    let refused = async {
        for _ in 0..28 {
            let answer = answers.recv().await.unwrap();
            let told = answer.is_empty() || answer.contains("too large for one more");
            assert!(told, "{answer}");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused)
        .await
        .expect("28 are refused");
    assert!(
        pod.supervisor_peak() < LIMIT,
        "{} KiB",
        pod.supervisor_peak()
    );
    pod.write("workspace/go", "");
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(0), Outcome::Completed));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_the_server_never_takes_is_named_in_its_place_and_the_rest_arrives() {
    let world = World::new("turns: []").await;
    world.server.refuse("poisoned");
    let folder = tempfile::tempdir().unwrap();
    let script = r#"i=0; while [ $i -lt 40 ]; do i=$((i + 1)); text=fine; [ $i = 23 ] && text=poisoned
echo '{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"'$i'","content":"'$text'"}]}}'
done; echo '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":0}'; cat > /dev/null"#;
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), script));
    pod.start().await;
    let (_, termination) = pod.finish().await;
    assert_eq!(termination.acknowledged, termination.sequence);
    let events = world.server.events(pod.assignment.run_id, 1);
    let is_omitted = |body: &EventBody| matches!(body, EventBody::Omitted { .. });
    let omitted: Vec<_> = events.iter().filter(|e| is_omitted(&e.body)).collect();
    assert_eq!(omitted.len(), 1);
    let messages = world.server.messages(pod.assignment.run_id, 1);
    let fine = messages.iter().filter(|m| {
        m.tool_outputs
            .iter()
            .any(|output: &Value| output["content"] == "fine")
    });
    assert_eq!(fine.count(), 39);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_refuses_whatever_it_says_is_not_given_up() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), WAITS));
    // In every batch: it is not the events' fault.
    world.server.refuse("sessionName");
    pod.assign(|assignment| assignment.flush_timeout_seconds = 1);
    pod.write("workspace/go", "");
    pod.start().await;
    let (_, termination) = pod.finish().await;
    assert_eq!(termination.acknowledged, 0);
    world.server.refuse("no such thing");
    let run = pod.assignment.run_id;
    let mut next = pod.next_run();
    next.start().await;
    eventually("the hand-in", async || {
        !world.server.events(run, 1).is_empty()
    })
    .await;
    let (_, termination) = next.finish().await;
    assert_eq!(termination.outcome, Outcome::Completed);
    let events = world.server.events(run, 1);
    let omitted = events
        .iter()
        .any(|e| matches!(e.body, EventBody::Omitted { .. }));
    assert!(!omitted, "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_taken_while_the_supervisor_was_away_ends_the_run_with_that_reason() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), WAITS));
    pod.start().await;
    until_the_cli_is_there(&pod).await;
    pod.kill_supervisor();
    let taken = std::net::TcpListener::bind(("127.0.0.1", pod.ports[1])).unwrap();
    pod.start_supervisor();
    eventually("the termination message", async || {
        pod.termination().is_some()
    })
    .await;
    let termination = pod.termination().unwrap();
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Failed, reasons::PORT_TAKEN)
    );
    let port = pod.ports[1].to_string();
    assert!(
        termination.message.contains(&port),
        "{}",
        termination.message
    );
    assert!(pod.is_agent_running());
    // Whoever had it lets go: the agent hears of the end at once.
    drop(taken);
    let (code, termination) = pod.finish().await;
    assert_eq!(
        (code, termination.reason.as_str()),
        (Some(1), reasons::PORT_TAKEN)
    );
}
