//! Secrets stay with the supervisor, and a pod speaks for its own run only.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::Pod;
use runledger::api::run::Phase;
use runledger::names::TOKEN_AUDIENCE;
use runledger::pod::{containers, paths, ports};
use runledger::wire::Batch;
use serde_json::json;

use crate::case::{Case, START, Space, WHOLE};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::world::SYSTEM;
use crate::{ends, git, kill, ledger, model};

/// Whether any of the secrets is in the bytes, plain or in base64.
fn leaks(secrets: &[String], bytes: &[u8]) -> Option<String> {
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    secrets
        .iter()
        .find(|secret| {
            let coded = STANDARD.encode(secret);
            holds(secret.as_bytes()) || holds(coded.trim_end_matches('=').as_bytes())
        })
        .map(|secret| secret.chars().take(4).collect())
}

pub(crate) async fn nothing_in_the_agents_reach_holds_a_secret_and_no_door_opens_further(
    case: Case,
) -> Result<()> {
    let space = case.space("snoop").await?;
    let stage = &case.world.stage;
    let mut secrets = vec![stage.api_key.clone(), stage.git_password.clone()];
    let unknown_before = unknown(&case).await?;
    let run = space.start(Manifest::new(&space, "snoop", "snoop")).await?;
    run.running().await?;
    let pod: Pod = case
        .world
        .api::<Pod>(&space.namespace)
        .get(&run.pod().await?)
        .await?;
    secrets.push(projected_token(
        pod.metadata.uid.as_deref().unwrap_or_default(),
    )?);
    let status = run.ends(Phase::Completed, WHOLE).await?;
    let books = Books::of(&run, status).await?;

    // Where they are by right, the search finds them: so it would find them elsewhere.
    let held = space
        .kubectl(&["get", "secrets", "-o", "json"], None)
        .await?;
    ensure!(
        leaks(&secrets, held.as_bytes()).is_some(),
        "the search finds nothing anywhere"
    );
    // What the agent's shell found is a commit: its environment, files, processes and doors.
    let found = git::Clone::of(&case.world).await?;
    let archive = found.archive(&space.tag("snoop")).await?;
    ensure!(
        leaks(&secrets, &archive).is_none(),
        "the agent's shell found a secret: {:?}",
        leaks(&secrets, &archive)
    );
    let read = async |file: &str| {
        found
            .show(&space.tag("snoop"), &format!("found/{file}"))
            .await
    };
    ensure!(
        read("environ").await?.contains("ANTHROPIC_BASE_URL"),
        "the search saw no environment"
    );
    ensure!(
        read("files").await?.contains("/etc/passwd"),
        "the search saw no files"
    );
    ensure!(
        read("processes").await?.contains("runledger"),
        "the search saw no processes"
    );
    for door in read("doors").await?.lines() {
        let (name, answer) = door
            .split_once('|')
            .with_context(|| format!("line {door:?}"))?;
        // The door for the agent hangs up on whoever it doesn't know, without a word.
        let refused = if ["hello", "http"].contains(&name) {
            answer.trim() == "connected"
        } else {
            !answer.contains(" 200") && !answer.contains(" 201") && !answer.contains(" 30")
        };
        ensure!(refused, "the door {name} opened: {answer}");
    }
    ensure!(
        read("doors").await?.lines().count() >= 10,
        "few doors were tried: {}",
        read("doors").await?
    );
    // The shell can read memory where it has the right to, and PID 1's is closed to it.
    let memory = read("memory").await?;
    for (line, means) in [
        ("own: a word that is only in memory", "read no memory"),
        ("maps of 1: denied", "read where PID 1's memory is"),
        ("mem of 1: denied", "opened PID 1's memory"),
    ] {
        ensure!(
            memory.lines().any(|found| found == line),
            "the search {means}: {:?}",
            memory.lines().take(3).collect::<Vec<_>>()
        );
    }
    ensure!(
        read("tokens").await?.trim().is_empty(),
        "a service account's token: {}",
        read("tokens").await?
    );
    ensure!(
        unknown(&case).await? == unknown_before,
        "another path of the model's host was reached"
    );

    // Nor is one anywhere that others read.
    for (what, text) in [
        ("the pod", serde_json::to_string(&pod)?),
        (
            "Events",
            space
                .kubectl(&["get", "events", "-o", "json"], None)
                .await?,
        ),
        (
            "the run",
            space
                .kubectl(&["get", "wfr,wfws", "-o", "json"], None)
                .await?,
        ),
        (
            "run_events",
            books
                .events
                .iter()
                .map(|event| event.body.to_string())
                .collect(),
        ),
        (
            "messages",
            format!(
                "{:?}",
                ledger::messages(&case.world.ledger, run.id()).await?
            ),
        ),
        ("the row", format!("{:?}", books.row)),
        (
            "the controller's log",
            logs(&case, "runledger-controller").await?,
        ),
        ("the server's log", logs(&case, "runledger-server").await?),
    ] {
        ensure!(
            leaks(&secrets, text.as_bytes()).is_none(),
            "{what} holds a secret"
        );
    }
    Ok(())
}

/// The supervisor's token for the server, read as only the host can.
fn projected_token(pod_uid: &str) -> Result<String> {
    let supervisor = kill::runledger(pod_uid, "supervise")?;
    let path = format!("/proc/{}/root{}", supervisor.pid, paths::TOKEN);
    std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
}

/// Requests that the model's host got for any other path.
async fn unknown(case: &Case) -> Result<Vec<String>> {
    let sent = model::sent(&case.world, None).await?;
    let others = sent
        .into_iter()
        .filter(|sent| sent.kind == "unknown" || sent.kind == "refused");
    Ok(others.map(|sent| sent.path).collect())
}

async fn logs(case: &Case, deployment: &str) -> Result<String> {
    let target = format!("deployment/{deployment}");
    case.world
        .kubectl(&["-n", SYSTEM, "logs", &target], None)
        .await
}

pub(crate) async fn an_event_for_another_run_is_refused(case: Case) -> Result<()> {
    let space = case.space("forge").await?;
    let mine = space.start(Manifest::new(&space, "mine", "slow")).await?;
    let theirs = space.start(Manifest::new(&space, "theirs", "slow")).await?;
    ends::at_work(&mine).await?;
    ends::at_work(&theirs).await?;
    let server = Server::of(&space, &mine).await?;
    let token = token(&space, &mine, TOKEN_AUDIENCE).await?;
    let before = ledger::events(&case.world.ledger, theirs.id()).await?.len();

    let forged = batch(&space, &theirs);
    ensure!(
        server.post(&theirs, &forged, Some(&token)).await? == 403,
        "another run's events were taken"
    );
    // The path is one run's and the body another's.
    let status = server.post(&mine, &forged, Some(&token)).await?;
    ensure!(
        (400..500).contains(&status),
        "a batch of another run was taken under our own path: {status}"
    );
    let other = self::token(
        &space,
        &mine,
        "https://kubernetes.default.svc.cluster.local",
    )
    .await?;
    ensure!(
        server
            .post(&mine, &batch(&space, &mine), Some(&other))
            .await?
            == 401,
        "a token for another audience was taken"
    );
    ensure!(
        server
            .post(&mine, &batch(&space, &mine), Some("nonsense"))
            .await?
            == 401,
        "a token of nobody was taken"
    );
    ensure!(
        server.post(&mine, &batch(&space, &mine), None).await? == 401,
        "no token was asked for"
    );
    // With the right token the same request goes through, so the refusals above were for their reason.
    let own = batch(&space, &mine);
    let status = server.post(&mine, &own, Some(&token)).await?;
    ensure!(status == 200, "our own events: {status}");

    let events = ledger::events(&case.world.ledger, theirs.id()).await?;
    ensure!(
        !events
            .iter()
            .any(|event| event.body.to_string().contains("forged")),
        "the forged event is in the ledger"
    );
    ensure!(events.len() >= before, "events went away");
    // Its number was taken: what the supervisor said first stays.
    let own = ledger::events(&case.world.ledger, mine.id()).await?;
    let first = own.first().context("no events of our own")?;
    ensure!(
        !first.body.to_string().contains("forged"),
        "a later event took the first one's place: {first:?}"
    );
    mine.kill().await?;
    theirs.kill().await?;
    for run in [&mine, &theirs] {
        run.ends(Phase::Killed, START).await?;
    }
    Ok(())
}

/// A batch with one message that nobody said.
fn batch(space: &Space, run: &Run) -> serde_json::Value {
    let batch: Batch = serde_json::from_value(json!({
        "runId": run.id(),
        "attempt": 1,
        "sessionId": runledger::ids::session(&space.namespace, &run.name),
        "sessionName": run.name,
        "events": [{
            "sequence": 1, "at": "2026-01-01T00:00:00Z", "type": "message",
            "id": uuid::Uuid::new_v4(), "role": "assistant", "kind": "assistant",
            "text": "forged", "source": "meter",
        }],
    }))
    .expect("a batch as the wire has it");
    serde_json::to_value(batch).expect("a batch is JSON")
}

/// A token of the run's pod, as the kubelet would project it.
async fn token(space: &Space, run: &Run, audience: &str) -> Result<String> {
    let status = run.status().await?;
    let (name, uid) = (
        status.pod_name.context("no pod")?,
        status.pod_uid.context("no pod")?,
    );
    let token = space
        .kubectl(
            &[
                "create",
                "token",
                "default",
                "--audience",
                audience,
                "--bound-object-kind",
                "Pod",
                "--bound-object-name",
                &name,
                "--bound-object-uid",
                &uid,
            ],
            None,
        )
        .await?;
    Ok(token.trim().to_owned())
}

/// Runledger's server, as the run's own pod reaches it: the agent's shell can try all this.
struct Server {
    space: Space,
    pod: String,
}

impl Server {
    async fn of(space: &Space, run: &Run) -> Result<Self> {
        Ok(Self {
            space: space.clone(),
            pod: run.pod().await?,
        })
    }

    async fn post(&self, run: &Run, batch: &serde_json::Value, token: Option<&str>) -> Result<u16> {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let mut request = format!(
            "url = \"https://runledger-server.{SYSTEM}.svc:{}/v1/namespaces/{}/runs/{}/events\"\n\
             header = \"content-type: application/json\"\ndata-binary = \"{}\"\n",
            ports::SERVER,
            run.space.namespace,
            run.name,
            quoted(&batch.to_string()),
        );
        if let Some(token) = token {
            request.push_str(&format!(
                "header = \"authorization: Bearer {}\"\n",
                quoted(token)
            ));
        }
        // The certificate is the supervisor's to check; here only the answer counts.
        let curl = "curl -k -s -m 20 -o /dev/null -w '%{http_code}' -K -";
        let arguments = [
            "exec",
            "-i",
            &self.pod,
            "-c",
            containers::AGENT,
            "--",
            "sh",
            "-c",
            curl,
        ];
        let code = self.space.kubectl(&arguments, Some(&request)).await?;
        code.trim()
            .parse()
            .with_context(|| format!("curl printed {code:?}"))
    }
}
