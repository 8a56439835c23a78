//! What the product stands on in the tests: Postgres, a git server over https and the scripted
//! model, as the stage brings them up; and the chart's installation on top of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::sh;
use crate::world::{RELEASE, SYSTEM, World, command};

/// Namespace of the stage.
pub(crate) const STAGE: &str = "stage";

/// Addresses and credentials of the stage.
pub(crate) struct Stage {
    pub(crate) ledger_url: String,
    pub(crate) api_key: String,
    pub(crate) git_username: String,
    pub(crate) git_password: String,
    /// Certificate that the git server's and the model's chain to.
    pub(crate) ca: String,
    /// Host of the git server, as pods call it.
    pub(crate) git_host: String,
    pub(crate) git_service: String,
    /// The same repository from the host, credentials included.
    pub(crate) git_outside_url: String,
    /// For git's `http.curloptResolve`.
    pub(crate) git_outside_resolve: String,
    pub(crate) model_host: String,
    /// As the API server's proxy wants it.
    pub(crate) model_service: String,
    pub(crate) agent_image: String,
}

impl Stage {
    /// URL of the seeded repository, as runs write it.
    pub(crate) fn repository_url(&self) -> String {
        format!("https://{}/demo.git", self.git_host)
    }

    /// The model's Secret for a run namespace.
    pub(crate) fn model_secret(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {"ANTHROPIC_API_KEY": self.api_key, "hosts": self.model_host},
        })
    }

    /// The repository's Secret for a run namespace.
    pub(crate) fn git_secret(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/basic-auth",
            "stringData": {
                "username": self.git_username, "password": self.git_password,
                "hosts": self.git_host, "ca.crt": self.ca,
            },
        })
    }
}

/// Address by which the host reaches a Service of the cluster: a twin of it on a port of the node.
pub(crate) async fn outside(world: &World, namespace: &str, service: &str) -> Result<SocketAddr> {
    twin(&world.kube, &world.environment, namespace, service).await
}

async fn twin(
    kube: &Client,
    environment: &BTreeMap<String, String>,
    namespace: &str,
    service: &str,
) -> Result<SocketAddr> {
    let api: Api<Service> = Api::namespaced(kube.clone(), namespace);
    let name = format!("{service}-outside");
    if api.get_opt(&name).await?.is_none() {
        let spec = api
            .get(service)
            .await?
            .spec
            .context("a Service without a spec")?;
        let port = spec
            .ports
            .iter()
            .flatten()
            .next()
            .context("a Service without ports")?;
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {
                "type": "NodePort",
                "selector": spec.selector,
                "ports": [{"port": port.port, "targetPort": port.target_port}],
            },
        });
        api.create(
            &kube::api::PostParams::default(),
            &serde_json::from_value(object)?,
        )
        .await?;
    }
    let spec = api
        .get(&name)
        .await?
        .spec
        .context("a Service without a spec")?;
    let port = spec
        .ports
        .iter()
        .flatten()
        .find_map(|port| port.node_port)
        .context("no port on the node")?;
    let node = environment
        .get("RUNLEDGER_NODE_IP")
        .context("the cluster names no node")?;
    Ok(SocketAddr::new(node.parse()?, u16::try_from(port)?))
}

impl Stage {
    pub(crate) async fn up(
        root: &Path,
        environment: &BTreeMap<String, String>,
        kube: &Client,
    ) -> Result<Self> {
        anyhow::bail!(
            "not yet {root:?} {environment:?} {}",
            kube.default_namespace()
        )
    }
}

/// Brings the built images into the cluster.
pub(crate) async fn load(
    root: &Path,
    environment: &BTreeMap<String, String>,
    images: &str,
) -> Result<()> {
    let mut load = command(root, environment, "sh");
    load.args([
        "tests/cluster/cluster.sh",
        "load-image",
        "--name",
        environment.get("RUNLEDGER_CLUSTER").context("no cluster")?,
    ]);
    load.args(
        images
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)),
    );
    sh::run_loudly(&mut load, Duration::from_secs(600)).await?;
    Ok(())
}

pub(crate) async fn install(
    root: &Path,
    environment: &BTreeMap<String, String>,
    images: &str,
) -> Result<()> {
    let _ = (RELEASE, SYSTEM, root, environment, images);
    Ok(())
}
