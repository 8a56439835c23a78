//! What the chart's NetworkPolicy for runs' pods lets them reach, seen from an agent's shell: on a
//! cluster that enforces it.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use runledger::api::run::Phase;
use runledger::pod::{containers, ports};
use tokio::process::Child;

use crate::case::{Case, START, Space, WHOLE};
use crate::runs::{Manifest, Run};
use crate::stage::STAGE;
use crate::wait::eventually;
use crate::world::{RELEASE, SYSTEM};
use crate::{ends, sh};

pub(crate) async fn a_run_in_a_confined_namespace_completes_and_reaches_nothing_else(
    case: Case,
) -> Result<()> {
    let (confined, open) = (case.space("confined").await?, case.space("open").await?);
    confine(&confined).await?;
    let run = confined
        .start(Manifest::new(&confined, "steady", "steady"))
        .await?;
    let free = open.start(Manifest::new(&open, "slow", "slow")).await?;
    ends::at_work(&free).await?;
    ends::at_work(&run).await?;

    let needed = [
        (
            "server",
            format!("runledger-server.{SYSTEM}.svc"),
            ports::SERVER,
        ),
        ("model", case.world.stage.model_host.clone(), 443),
        ("git", case.world.stage.git_host.clone(), 443),
    ];
    let dns = dns_pod(&case).await?;
    let forbidden = [
        ("API server", "kubernetes.default.svc".to_owned(), 443),
        ("Postgres", format!("postgres.{STAGE}.svc"), 5432),
        ("another pod", dns, 8080),
        ("metadata", METADATA.to_owned(), 443),
    ];
    let _metadata = metadata_service(&case, &free).await?;
    let another_run = [("another run", address(&free).await?, ports::STARTED)];
    let everything = [&needed[..], &forbidden, &another_run].concat();
    let reached = reach(&run, &everything).await?;
    for (name, ..) in &everything {
        let wanted = needed.iter().any(|(needed, ..)| needed == name);
        ensure!(
            reached.get(*name) == Some(&wanted),
            "{name} from the confined pod: {reached:?}"
        );
    }
    // From a pod that nobody confines the same probe gets through, so it was the policy above.
    let confined_run = [("the confined run", address(&run).await?, ports::STARTED)];
    let free_reaches = reach(&free, &[&forbidden[..], &confined_run].concat()).await?;
    for (name, ..) in &forbidden {
        ensure!(
            free_reaches.get(*name) == Some(&true),
            "{name} from a free pod: {free_reaches:?}"
        );
    }
    ensure!(
        free_reaches.get("the confined run") == Some(&false),
        "the confined pod lets others in"
    );
    free.kill().await?;
    run.ends(Phase::Completed, WHOLE).await?;
    free.ends(Phase::Killed, START).await?;
    Ok(())
}

/// Where clouds tell whoever asks who the node is. The port is one that runs may use elsewhere, so that
/// it is the address that is refused.
const METADATA: &str = "169.254.169.254";

/// Has somebody answer there, for as long as the answer is kept, and waits until a free pod gets through.
async fn metadata_service(case: &Case, free: &Run) -> Result<Child> {
    let on_node = |words: &str| {
        let mut command = case.world.command("sh");
        command.arg("tests/cluster/cluster.sh").arg("exec");
        command.args(["--name", &case.world.environment["RUNLEDGER_CLUSTER"]]);
        command.args(["--", "sh", "-c", words]).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // It says of each that it hung up.
        command.stderr(Stdio::null());
        command
    };
    let address = format!("ip addr replace {METADATA}/32 dev lo");
    sh::run(&mut on_node(&address), None, START).await?;
    // It ends by itself, should nobody be there to end it.
    let answers =
        format!("exec timeout 120 openssl s_server -quiet -nocert -accept {METADATA}:443");
    let service = on_node(&answers).spawn().context("openssl s_server")?;
    eventually("the metadata service answers a free pod", START, || async {
        let reached = reach(free, &[("metadata", METADATA.to_owned(), 443)]).await?;
        ensure!(reached.get("metadata") == Some(&true), "{reached:?}");
        Ok(())
    })
    .await?;
    Ok(service)
}

/// Applies what the chart renders for a namespace in `networkPolicy.runs.namespaces`.
async fn confine(space: &Space) -> Result<()> {
    let namespace = &space.namespace;
    let stage = format!(
        r#"[{{"to":[{{"namespaceSelector":{{"matchLabels":{{"kubernetes.io/metadata.name":"{STAGE}"}}}}}}],"ports":[{{"port":443}},{{"port":8443}}]}}]"#
    );
    let mut template = space.world.command("helm");
    template
        .args(["template", RELEASE, "charts/runledger", "-n", SYSTEM])
        .args(["-s", "templates/networkpolicy.yaml"])
        // The Kubernetes that it is rendered for would otherwise be that of Helm's own build.
        .args(["--kube-version", "1.35.0"])
        .args([
            "--set",
            "images.runledger=x,agent.image=x,database.existingSecret=x",
        ])
        .args([
            "--set",
            &format!("networkPolicy.runs.namespaces={{{namespace}}}"),
        ])
        // Model and git server are in the cluster, which a run's pod otherwise never reaches.
        .args(["--set-json", &format!("networkPolicy.runs.egress={stage}")]);
    let rendered = sh::run(&mut template, None, START).await?;
    let policy = rendered
        .split("\n---\n")
        .find(|document| document.contains("name: runledger-runs"))
        .context("the chart renders no policy for the namespace")?;
    space.kubectl(&["apply", "-f", "-"], Some(policy)).await?;
    Ok(())
}

async fn dns_pod(case: &Case) -> Result<String> {
    let of_dns = ListParams::default().labels("k8s-app=kube-dns");
    let pods = case.world.api::<Pod>("kube-system").list(&of_dns).await?;
    let pod = pods.items.into_iter().next().context("no DNS")?;
    ip(pod)
}

async fn address(run: &Run) -> Result<String> {
    let pods = run.space.world.api::<Pod>(&run.space.namespace);
    ip(pods.get(&run.pod().await?).await?)
}

fn ip(pod: Pod) -> Result<String> {
    pod.status
        .and_then(|status| status.pod_ip)
        .context("the pod has no address")
}

/// Which of the places the agent's shell can connect to.
async fn reach(run: &Run, places: &[(&str, String, u16)]) -> Result<BTreeMap<String, bool>> {
    let mut script = String::new();
    for (name, host, port) in places {
        script.push_str(&format!(
            "timeout 4 bash -c 'exec 3<>/dev/tcp/{host}/{port}' 2>/dev/null && echo '{name}|yes' || echo '{name}|no'\n"
        ));
    }
    let pod = run.pod().await?;
    let arguments = [
        "exec",
        &pod,
        "-c",
        containers::AGENT,
        "--",
        "bash",
        "-c",
        &script,
    ];
    let printed = run.space.kubectl(&arguments, None).await?;
    let answers = printed.lines().filter_map(|line| line.split_once('|'));
    Ok(answers
        .map(|(name, answer)| (name.to_owned(), answer == "yes"))
        .collect())
}
