//! The cluster of the measurement: brought up for it alone, with a feigned node whose pods complete at
//! once, the CRDs, and the controller's rights as the chart grants them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::kinds::{NODE_LABEL, termination};
use crate::process::{self, output};

/// Where the controller's own objects are.
pub(crate) const SYSTEM: &str = "runledger-system";
/// Whom the controller is to the API server.
pub(crate) const CONTROLLER: &str = "system:serviceaccount:runledger-system:runledger-controller";
/// Who looks after Jobs.
pub(crate) const JOB_CONTROLLER: &str = "system:serviceaccount:kube-system:job-controller";

/// The cluster; it goes when this process does, however that ends.
pub(crate) struct Cluster {
    root: PathBuf,
    environment: BTreeMap<String, String>,
    pub(crate) client: Client,
}

impl Cluster {
    /// Brings it up.
    pub(crate) async fn up(root: &Path, name: &str) -> Result<Self> {
        let owner = std::process::id().to_string();
        let mut up = script(root);
        up.args(["up", "--name", name, "--owner-pid", &owner]);
        // What is printed is meant for a shell: `export NAME='VALUE'`, where a PATH goes on after that.
        let environment: BTreeMap<String, String> = output(&mut up)
            .await?
            .lines()
            .filter_map(|line| {
                let (name, value) = line.strip_prefix("export ")?.split_once("='")?;
                Some((name.to_owned(), value.split_once('\'')?.0.to_owned()))
            })
            .collect();
        let kubeconfig = environment
            .get("KUBECONFIG")
            .context("the cluster names no KUBECONFIG")?;
        let config = Config::from_custom_kubeconfig(
            Kubeconfig::read_from(kubeconfig)?,
            &KubeConfigOptions::default(),
        )
        .await?;
        Ok(Self {
            root: root.to_owned(),
            client: Client::try_from(config)?,
            environment,
        })
    }

    /// Takes it away.
    pub(crate) async fn down(root: &Path, name: &str) -> Result<()> {
        output(script(root).args(["down", "--name", name])).await?;
        Ok(())
    }

    /// A variable that the cluster printed.
    pub(crate) fn variable(&self, name: &str) -> Result<&str> {
        let value = self.environment.get(name).map(String::as_str);
        value.with_context(|| format!("the cluster printed no {name}"))
    }

    /// A file that goes with the cluster.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf> {
        let folder = Path::new(self.variable("RUNLEDGER_CLUSTER_DIR")?).join("bench");
        std::fs::create_dir_all(&folder)?;
        Ok(folder.join(name))
    }

    fn tool(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(Path::new(self.variable("PATH")?).join(name));
        command.current_dir(&self.root);
        command.env("KUBECONFIG", self.variable("KUBECONFIG")?);
        Ok(command)
    }

    /// The node that is none. The process feigns its kubelet.
    pub(crate) async fn feign_node(&self) -> Result<Child> {
        let folder = output(script(&self.root).args(["tools", "kwok"])).await?;
        let stages = self.file("kwok.yaml")?;
        let message = serde_json::to_string(&termination())?;
        ensure!(
            !message.contains('\''),
            "the stages hold it in single quotes"
        );
        std::fs::write(
            &stages,
            include_str!("kwok.yaml").replace("TERMINATION", &message),
        )?;
        let mut kwok = process::tied(&format!("{}/kwok", folder.trim()));
        kwok.arg("--config").arg(&stages).args([
            "--kubeconfig",
            self.variable("KUBECONFIG")?,
            "--manage-nodes-with-label-selector",
            &format!("{NODE_LABEL}=true"),
            "--v=ERROR",
        ]);
        kwok.env("HOME", self.file("")?);
        let log = self.file("kwok.log")?;
        let mut kwok = process::start(&mut kwok, &log)?;
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "feigned", "labels": {NODE_LABEL: "true"}},
            "spec": {"taints": [{"key": NODE_LABEL, "value": "true", "effect": "NoSchedule"}]},
        }))?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.create(&PostParams::default(), &node).await?;
        wait("the feigned node is ready", async || {
            if kwok.try_wait()?.is_some() {
                bail!("kwok has ended: {}", std::fs::read_to_string(&log)?);
            }
            let status = nodes.get_status("feigned").await?.status;
            let conditions = status.and_then(|status| status.conditions);
            Ok(conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"))
        })
        .await?;
        Ok(kwok)
    }

    /// CRDs, rights, priority and, if wanted, the policy that gives runs their finalizer, as the chart has
    /// them; returns the controller's kubeconfig.
    pub(crate) async fn install(&self, with_policy: bool) -> Result<PathBuf> {
        self.namespace(SYSTEM).await?;
        let mut crds = self.tool("kubectl")?;
        output(crds.args(["apply", "--server-side", "--filename", "crds"])).await?;
        let mut template = self.tool("helm")?;
        template.args(["template", "runledger", "charts/runledger"]);
        // Helm's own build knows no version of Kubernetes.
        template.args(["--kube-version", &self.version().await?]);
        template.args(["--namespace", SYSTEM, "--values", "tests/chart/values.yaml"]);
        template.args(["--show-only", "templates/controller-rbac.yaml"]);
        template.args(["--show-only", "templates/controller-flow.yaml"]);
        if with_policy {
            template.args(["--show-only", "templates/admission.yaml"]);
            let policies = "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy";
            template.args(["--api-versions", policies]);
        }
        let rights = self.file("rights.yaml")?;
        std::fs::write(&rights, output(&mut template).await?)?;
        let mut apply = self.tool("kubectl")?;
        output(apply.args(["apply", "--filename"]).arg(&rights)).await?;
        // Empty: the controller fills it.
        let mut secret = self.tool("kubectl")?;
        secret.args(["--namespace", SYSTEM, "create", "secret", "generic"]);
        output(secret.arg("runledger-server-tls")).await?;
        self.kubeconfig().await
    }

    async fn kubeconfig(&self) -> Result<PathBuf> {
        let mut token = self.tool("kubectl")?;
        token.args(["--namespace", SYSTEM, "create", "token"]);
        token.args(["runledger-controller", "--duration", "4h"]);
        let token = output(&mut token).await?;
        let mut config =
            serde_json::to_value(Kubeconfig::read_from(self.variable("KUBECONFIG")?)?)?;
        let user = config
            .pointer_mut("/users/0/user")
            .context("a kubeconfig without a user")?;
        *user = json!({"token": token.trim()});
        let file = self.file("controller.kubeconfig")?;
        std::fs::write(&file, serde_json::to_vec::<Value>(&config)?)?;
        Ok(file)
    }

    /// Makes a namespace in which pods can be made.
    pub(crate) async fn namespace(&self, name: &str) -> Result<()> {
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.create(&PostParams::default(), &object).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        wait("the namespace has its service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await
    }

    /// Deletes a namespace with all that is in it.
    pub(crate) async fn clear(&self, name: &str) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(name, &DeleteParams::default()).await?;
        wait("the namespace is gone", async || {
            Ok(namespaces.get_opt(name).await?.is_none())
        })
        .await
    }

    /// Version of the API server.
    pub(crate) async fn version(&self) -> Result<String> {
        Ok(self.client.apiserver_version().await?.git_version)
    }
}

fn script(root: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg(root.join("tests/cluster/cluster.sh"));
    command
}

/// Asks until the answer is yes.
pub(crate) async fn wait(what: &str, mut ask: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let until = tokio::time::Instant::now() + Duration::from_secs(120);
    while !ask().await? {
        if tokio::time::Instant::now() > until {
            bail!("not within 120 s: {what}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
