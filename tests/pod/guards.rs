//! What nobody inside or outside of the pod may do.

use std::os::unix::fs::PermissionsExt;

use runledger::names::reasons;
use runledger::wire::Outcome;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{KEY, Pod, World, eventually, hello, shell_cli};

const DONE: &str = r#"env > env.txt; read task; while [ ! -e go ]; do sleep 0.1; done
echo '{"type":"result","subtype":"success","is_error":false,"total_cost_usd":0}'; cat > /dev/null"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_lets_only_messages_through_and_puts_the_key_in_itself() {
    let world = World::new("turns: [{text: hi, usage: {input: 5, output: 2}}]").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), DONE));
    pod.start().await;
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", pod.ports[0]);
    let body = json!({"model": "m", "max_tokens": 5, "tools": [{"name": "x"}], "messages": [{"role": "user", "content": "x"}]});
    for path in [
        "/",
        "/v1/messages/batches",
        "/v1/models",
        "/v1/messages/../files",
        "//v1/messages",
        "/v1/messages%2fbatches",
    ] {
        let refused = client.post(url(path)).json(&body).send().await.unwrap();
        assert_eq!(refused.status(), 403, "{path}");
        let error: Value = refused.json().await.unwrap();
        assert_eq!(error["error"]["type"], "permission_error");
    }
    assert_eq!(
        client
            .get(url("/v1/messages"))
            .send()
            .await
            .unwrap()
            .status(),
        403
    );
    // The model refuses every key but the one that only the supervisor knows.
    let asked = client
        .post(url("/v1/messages?beta=true"))
        .header("x-api-key", "mine")
        .header("authorization", "Bearer mine");
    let answer = asked.json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!format!("{:?}", answer.headers()).contains(KEY));
    let counted = client
        .post(url("/v1/messages/count_tokens"))
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(counted.status(), 200);
    pod.write("workspace/go", "");
    let (_, termination) = pod.finish().await;
    assert_eq!(
        (termination.usage.requests, termination.usage.tokens.total()),
        (1, 7)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_at_the_door_is_turned_away_and_disturbs_nobody() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), DONE));
    pod.start_supervisor();
    pod.wait_until_started().await;
    let file = pod.root.join("run/runledger/nonce");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let first = std::fs::read_to_string(&file).unwrap();
    pod.start_agent();
    eventually("the CLI", async || {
        pod.root.join("workspace/env.txt").exists()
    })
    .await;
    assert!(!file.exists(), "the agent has unlinked the nonce");
    for line in [
        hello("guess").to_string(),
        json!({"frame": "line", "number": 1, "line": {}}).to_string(),
        "x".repeat(100_000),
    ] {
        let mut stranger = tokio::net::TcpStream::connect(("127.0.0.1", pod.ports[1]))
            .await
            .unwrap();
        let _ = stranger.write_all(format!("{line}\n").as_bytes()).await;
        let mut heard = Vec::new();
        let _ = stranger.read_to_end(&mut heard).await;
        assert!(heard.is_empty(), "{}", String::from_utf8_lossy(&heard));
    }
    pod.write("workspace/go", "");
    let (code, termination) = pod.finish().await;
    assert_eq!((code, termination.outcome), (Some(0), Outcome::Completed));
    assert_eq!(
        pod.log("supervise")
            .matches("its nonce is not good")
            .count(),
        1
    );
    assert!(!pod.log("supervise").contains(&first));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_what_the_agent_or_the_logs_can_show() {
    let world = World::new("turns: []").await;
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Pod::new(&world, "x", shell_cli(folder.path(), DONE));
    pod.write("workspace/go", "");
    pod.start().await;
    pod.finish().await;
    let environment = std::fs::read_to_string(pod.root.join("workspace/env.txt")).unwrap();
    assert!(environment.contains("ANTHROPIC_API_KEY=supervised"));
    let journal = pod
        .root
        .join(format!("state/runs/{}/1.journal", pod.assignment.run_id));
    let journal = std::fs::read_to_string(journal).unwrap();
    for text in [
        &environment,
        &pod.log("agent"),
        &pod.log("supervise"),
        &journal,
    ] {
        assert!(!text.contains(KEY) && !text.contains(crate::server::TOKEN));
    }
}

async fn refused(change: impl FnOnce(&mut Pod)) -> runledger::wire::Termination {
    let world = World::new("turns: []").await;
    let mut pod = Pod::new(&world, "x", "/nowhere".into());
    change(&mut pod);
    pod.start_supervisor();
    assert_eq!(pod.supervisor_exit().await, Some(1));
    pod.termination().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_be_sent_to_the_models_host_is_not_sent() {
    // The model's is at another port than https has.
    for hosts in ["api.anthropic.com", "localhost"] {
        let termination = refused(|pod| pod.write("etc/runledger/model/hosts", hosts)).await;
        assert_eq!(
            (termination.outcome, termination.reason.as_str()),
            (Outcome::Waiting, reasons::HOST_NOT_ALLOWED)
        );
        let message = termination.message;
        assert!(
            message.contains("`hosts` with the value `localhost:"),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_without_the_key_is_waited_for() {
    let termination = refused(|pod| {
        std::fs::remove_file(pod.root.join("etc/runledger/model/ANTHROPIC_API_KEY")).unwrap()
    })
    .await;
    assert_eq!(
        (termination.outcome, termination.reason.as_str()),
        (Outcome::Waiting, reasons::MISSING_SECRET)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_git_secret_must_name_its_hosts() {
    let termination = refused(|pod| {
        pod.write("etc/runledger/git/password", "x");
        pod.repository(runledger::pod::RepositoryAssignment {
            has_secret: true,
            ..runledger::pod::RepositoryAssignment::new(
                "https://git.example/r.git".parse().unwrap(),
            )
        });
    })
    .await;
    assert_eq!(termination.reason, reasons::HOST_NOT_ALLOWED);
    assert!(
        termination.message.contains("git.example"),
        "{}",
        termination.message
    );
}
