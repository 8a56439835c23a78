//! The server's certificate: made anew where it is lost, served by every server without a restart,
//! trusted by pods that were there before, and left alone by upgrades and rendered manifests.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt as _;
use kube::api::ListParams;
use nix::sys::signal::Signal;
use runledger::api::run::Phase;
use runledger::pod::{containers, ports};

use crate::case::{Case, START};
use crate::check::Books;
use crate::runs::{Manifest, Run};
use crate::wait::eventually;
use crate::world::{RELEASE, SYSTEM, World};
use crate::{ends, kill, ledger, sh};

const SECRET: &str = "runledger-server-tls";
/// Longest until the controller looks at the Secret again, with room to spare.
const RENEWED: Duration = Duration::from_secs(100);
/// Longest until the kubelet has brought it to the servers, and they have read it.
const SERVED: Duration = Duration::from_secs(150);

type Kept = BTreeMap<String, ByteString>;

async fn kept(world: &World) -> Result<Kept> {
    let secret = world.api::<Secret>(SYSTEM).get(SECRET).await?;
    secret.data.context("the Secret is empty")
}

fn pem(kept: &Kept, key: &str) -> Result<String> {
    let bytes = kept.get(key).with_context(|| format!("no {key}"))?;
    Ok(String::from_utf8(bytes.0.clone())?)
}

pub(crate) async fn a_lost_certificate_is_made_anew_and_a_run_in_mid_work_trusts_it(
    case: Case,
) -> Result<()> {
    let world = &case.world;
    let space = case.space("rotate").await?;
    let run = space.start(Manifest::new(&space, "slow", "slow")).await?;
    ends::at_work(&run).await?;
    let before = kept(world).await?;
    serve(&run, &before, START).await?;

    let empty = r#"{"data":{"tls.crt":""}}"#;
    world
        .kubectl(
            &["-n", SYSTEM, "patch", "secret", SECRET, "-p", empty],
            None,
        )
        .await?;
    let after = eventually("a new certificate is in the Secret", RENEWED, || async {
        let now = kept(world).await?;
        ensure!(pem(&now, "tls.crt")?.contains("BEGIN"), "it is empty");
        Ok(now)
    })
    .await?;
    for key in ["ca.crt", "ca.key"] {
        ensure!(
            before.get(key) == after.get(key),
            "{key} was made anew, too"
        );
    }
    ensure!(
        before.get("tls.crt") != after.get("tls.crt"),
        "the old certificate came back"
    );
    // A change of a pod has the kubelet look at its volumes now, and not in a minute.
    let look = format!("e2e/{}=yes", space.namespace);
    let servers = "app.kubernetes.io/component=server";
    world
        .kubectl(
            &["-n", SYSTEM, "annotate", "pod", "-l", servers, &look],
            None,
        )
        .await?;
    serve(&run, &after, SERVED).await?;

    // A supervisor that connects anew trusts it, as its pod was given the authority alone.
    let pod = run.status().await?.pod_uid.context("no pod")?;
    let told = ledger::events(&world.ledger, run.id()).await?.len();
    kill::runledger(&pod, "supervise")?.signal(Signal::SIGKILL)?;
    eventually("events come from the next supervisor", START, || async {
        let now = ledger::events(&world.ledger, run.id()).await?.len();
        ensure!(now > told, "{now} events, as before");
        Ok(())
    })
    .await?;
    run.kill().await?;
    let status = run.ends(Phase::Killed, START).await?;
    let books = Books::of(&run, status).await?;
    books.sealed(&run).await?;

    nothing_takes_it_away(world, &after).await
}

/// Waits until every server shows that certificate, to whom trusts the authority.
async fn serve(run: &Run, kept: &Kept, deadline: Duration) -> Result<()> {
    let (authority, leaf) = (pem(kept, "ca.crt")?, pem(kept, "tls.crt")?);
    let of_server = ListParams::default().labels("app.kubernetes.io/component=server");
    let servers = run.space.world.api::<Pod>(SYSTEM).list(&of_server).await?;
    ensure!(servers.items.len() > 1, "{} servers", servers.items.len());
    let pod = run.pod().await?;
    for server in servers {
        let name = server.name_any();
        let address = server.status.and_then(|status| status.pod_ip);
        let curl = format!(
            "curl -s -m 20 -o /dev/null -w '%{{certs}}' --cacert /dev/stdin --resolve {host}:{port}:{address} https://{host}:{port}/",
            host = format_args!("runledger-server.{SYSTEM}.svc"),
            port = ports::SERVER,
            address = address.context("a server without an address")?,
        );
        let shell = [
            "exec",
            "-i",
            &pod,
            "-c",
            containers::AGENT,
            "--",
            "sh",
            "-c",
            &curl,
        ];
        eventually(
            &format!("{name} serves the certificate"),
            deadline,
            || async {
                let shown = run.space.kubectl(&shell, Some(&authority)).await?;
                ensure!(shown.contains(leaf.trim()), "{shown}\nis not\n{leaf}");
                Ok(())
            },
        )
        .await?;
    }
    Ok(())
}

/// An upgrade, and a pipeline that applies the rendered Secret in either way.
async fn nothing_takes_it_away(world: &World, before: &Kept) -> Result<()> {
    let unchanged = async |what: &str| {
        ensure!(kept(world).await? == *before, "{what} changed the Secret");
        Ok(())
    };
    let mut upgrade = world.command("helm");
    upgrade.args(["upgrade", RELEASE, "charts/runledger", "-n", SYSTEM]);
    upgrade.args(["--reuse-values", "--wait", "--timeout", "3m"]);
    sh::run(&mut upgrade, None, Duration::from_secs(200)).await?;
    unchanged("helm upgrade").await?;

    let mut rendered = world.command("helm");
    rendered.args(["get", "manifest", RELEASE, "-n", SYSTEM]);
    let rendered = sh::run(&mut rendered, None, START).await?;
    let secret = rendered
        .split("\n---\n")
        .find(|document| document.contains("kind: Secret") && document.contains(SECRET))
        .context("the chart renders no such Secret")?;
    for way in [
        &["apply"][..],
        &["apply", "--server-side", "--force-conflicts"],
    ] {
        let arguments = [way, &["-n", SYSTEM, "-f", "-"]].concat();
        world.kubectl(&arguments, Some(secret)).await?;
        unchanged(&arguments.join(" ")).await?;
    }
    Ok(())
}
