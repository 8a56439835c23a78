//! The one world of the suite: its cluster, the stage (Postgres, git server, scripted model) and the
//! installed product. Brought up once, reached by kubectl, watch and SQL; taken down with the process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use sqlx::PgPool;
use tokio::process::Command;

use crate::restarts;
use crate::sh;
use crate::stage::{self, Stage};
use crate::wait::{eventually, until};

/// Where the product is installed.
pub(crate) const SYSTEM: &str = "runledger-system";
/// The chart's release.
pub(crate) const RELEASE: &str = "runledger";

pub(crate) struct World {
    pub(crate) kube: Client,
    pub(crate) ledger: PgPool,
    pub(crate) stage: Stage,
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) restarts: restarts::Ledger,
    root: PathBuf,
}

impl World {
    /// Makes all of it, or finds the named one that `RUNLEDGER_E2E_CLUSTER` keeps.
    pub(crate) async fn up() -> Result<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let images = images(&root).await?;
        let environment = cluster(&root).await?;
        let kubeconfig = environment
            .get("KUBECONFIG")
            .context("the cluster names no KUBECONFIG")?;
        let config = Config::from_custom_kubeconfig(
            Kubeconfig::read_from(kubeconfig)?,
            &KubeConfigOptions::default(),
        )
        .await?;
        let kube = Client::try_from(config)?;
        stage::load(&root, &environment, &images).await?;
        let stage = Stage::up(&root, &environment, &images).await?;
        stage::install(&root, &environment, &images, &stage).await?;
        let ledger = sqlx::postgres::PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(10))
            .connect_lazy(&stage.ledger_url)?;
        for name in ["runledger-controller", "runledger-server"] {
            deployment_ready(&kube, SYSTEM, name, Duration::from_secs(120)).await?;
        }
        Ok(Self {
            restarts: restarts::Ledger::begin(&kube).await?,
            kube,
            ledger,
            stage,
            environment,
            root,
        })
    }

    /// A command of the host that sees the cluster's tools and kubeconfig.
    pub(crate) fn command(&self, program: &str) -> Command {
        command(&self.root, &self.environment, program)
    }

    /// kubectl, whatever its end is.
    pub(crate) async fn try_kubectl(
        &self,
        arguments: &[&str],
        input: Option<&str>,
    ) -> Result<sh::Output> {
        let mut command = self.command("kubectl");
        command.args(arguments);
        sh::attempt(&mut command, input, Duration::from_secs(90)).await
    }

    /// kubectl, which has to succeed.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let mut command = self.command("kubectl");
        command.args(arguments);
        sh::run(&mut command, input, Duration::from_secs(90)).await
    }

    /// Objects of that kind in that namespace.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.kube.clone(), namespace)
    }

    /// Where the cluster keeps its files.
    pub(crate) fn cluster_dir(&self) -> PathBuf {
        PathBuf::from(
            self.environment
                .get("RUNLEDGER_CLUSTER_DIR")
                .cloned()
                .unwrap_or_default(),
        )
    }

    /// A variable that the cluster printed.
    pub(crate) fn variable(&self, name: &str) -> Result<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| anyhow!("the cluster printed no {name}"))
    }

    /// Waits until a Deployment has what it wants.
    pub(crate) async fn deployment_ready(
        &self,
        namespace: &str,
        name: &str,
        deadline: Duration,
    ) -> Result<()> {
        deployment_ready(&self.kube, namespace, name, deadline).await
    }

    /// How many pods a Deployment wants.
    pub(crate) async fn replicas(&self, namespace: &str, name: &str) -> Result<u32> {
        let deployment = self.api::<Deployment>(namespace).get(name).await?;
        Ok(deployment
            .spec
            .and_then(|spec| spec.replicas)
            .unwrap_or(1)
            .unsigned_abs())
    }

    /// Scales a Deployment and waits until it is so.
    pub(crate) async fn scale(&self, namespace: &str, name: &str, replicas: u32) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.kubectl(
            &[
                "-n",
                namespace,
                "scale",
                &format!("deployment/{name}"),
                &count,
            ],
            None,
        )
        .await?;
        self.deployment_ready(namespace, name, Duration::from_secs(90))
            .await
    }

    /// Waits until Postgres answers.
    pub(crate) async fn ledger_answers(&self, deadline: Duration) -> Result<()> {
        eventually("Postgres answers", deadline, || async {
            sqlx::query("SELECT 1").execute(&self.ledger).await?;
            Ok(())
        })
        .await
    }
}

async fn deployment_ready(
    kube: &Client,
    namespace: &str,
    name: &str,
    deadline: Duration,
) -> Result<()> {
    until(
        Api::namespaced(kube.clone(), namespace),
        name,
        "all of its replicas are ready",
        deadline,
        |deployment: Option<&Deployment>| {
            let Some(deployment) = deployment else {
                return false;
            };
            let wanted = deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .unwrap_or(1);
            deployment.status.as_ref().is_some_and(|status| {
                status.observed_generation >= deployment.metadata.generation
                    && status.ready_replicas.unwrap_or(0) == wanted
                    && status.updated_replicas.unwrap_or(0) == wanted
                    && status.replicas.unwrap_or(0) == wanted
            })
        },
    )
    .await?;
    Ok(())
}

/// A command with the cluster's variables set, started in the checkout.
pub(crate) fn command(
    root: &Path,
    environment: &BTreeMap<String, String>,
    program: &str,
) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root).envs(environment);
    command
}

/// Makes the cluster and returns the variables that it prints. It goes when this process does,
/// however that ends, unless its name was given.
async fn cluster(root: &Path) -> Result<BTreeMap<String, String>> {
    let mut up = Command::new("sh");
    up.arg(root.join("tests/cluster/cluster.sh")).arg("up");
    match std::env::var("RUNLEDGER_E2E_CLUSTER") {
        Ok(name) => up.args(["--name", &name]),
        Err(_) => {
            let process = std::process::id().to_string();
            up.args(["--name", &format!("e2e-{process}"), "--owner-pid", &process])
        }
    };
    let script = sh::run_loudly(&mut up, Duration::from_secs(20 * 60)).await?;
    let names = [
        "KUBECONFIG",
        "PATH",
        "RUNLEDGER_CLUSTER",
        "RUNLEDGER_CLUSTER_DIR",
        "RUNLEDGER_CLUSTER_BIN",
        "RUNLEDGER_AUDIT_LOG",
        "RUNLEDGER_CONTAINERD_SOCKET",
        "RUNLEDGER_NODE_NAME",
        "RUNLEDGER_NODE_IP",
        "RUNLEDGER_HOST_IP",
    ];
    sh::evaluate(&script, &names).await
}

/// Builds every image that the suite needs and returns what the build printed.
async fn images(root: &Path) -> Result<String> {
    sh::run_loudly(
        &mut Command::new(root.join("tests/images/build")),
        Duration::from_secs(40 * 60),
    )
    .await
}
