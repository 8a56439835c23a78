//! What the product stands on in the tests: Postgres, a git server over https and the scripted
//! model, as the stage brings them up; and the chart's installation on top of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::sh;
use crate::world::{RELEASE, SYSTEM, command};

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
    /// The git server's user key, and the line of known_hosts that is its own.
    pub(crate) git_key: String,
    pub(crate) git_known_hosts: String,
    /// Host of the git server, as pods call it.
    pub(crate) git_host: String,
    /// The same repository from the host, credentials included.
    pub(crate) git_outside_url: String,
    pub(crate) model_host: String,
    pub(crate) agent_image: String,
}

impl Stage {
    /// URL of the seeded repository, as runs write it.
    pub(crate) fn repository_url(&self) -> String {
        self.url_of("demo")
    }

    /// URL of another repository of the same server.
    pub(crate) fn url_of(&self, name: &str) -> String {
        format!("https://{}/{name}.git", self.git_host)
    }

    /// The model's Secret for a run namespace.
    pub(crate) fn model_secret(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": {"ANTHROPIC_API_KEY": self.api_key, "hosts": self.model_host},
        })
    }

    /// URL of the same repository by ssh.
    pub(crate) fn ssh_url(&self) -> String {
        format!("ssh://git@{}/srv/git/demo.git", self.git_host)
    }

    /// The Secret for it, which knows that host key.
    pub(crate) fn ssh_secret(&self, name: &str, known_hosts: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "type": "kubernetes.io/ssh-auth",
            "stringData": {
                "ssh-privatekey": self.git_key, "known_hosts": known_hosts, "hosts": self.git_host,
            },
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

impl Stage {
    /// Brings the stage up, or finds it.
    pub(crate) async fn up(
        root: &Path,
        environment: &BTreeMap<String, String>,
        images: &str,
    ) -> Result<Self> {
        let list = tempfile::NamedTempFile::new()?;
        std::fs::write(list.path(), images)?;
        let mut up = command(root, environment, "tests/stage/up");
        up.arg(list.path());
        let printed = sh::run_loudly(&mut up, Duration::from_secs(400)).await?;
        let script = format!(". '{}'", printed.trim());
        let names = ["STAGE_CA", "STAGE_DATABASE_URL", "STAGE_GIT_URL"];
        let values = sh::evaluate(&script, &names).await?;
        let value = |name: &str| {
            values
                .get(name)
                .cloned()
                .context("the stage printed no address")
        };
        let secret = async |name: &str, key: &str| {
            let path = format!("jsonpath={{.data.{key}}}");
            let mut get = command(root, environment, "kubectl");
            get.args(["-n", STAGE, "get", "secret", name, "-o", &path]);
            let coded = sh::run(&mut get, None, Duration::from_secs(30)).await?;
            anyhow::Ok(String::from_utf8(STANDARD.decode(coded.trim())?)?)
        };
        Ok(Self {
            ledger_url: value("STAGE_DATABASE_URL")?,
            api_key: secret("model", "ANTHROPIC_API_KEY").await?,
            git_username: secret("git", "username").await?,
            git_password: secret("git", "password").await?,
            git_key: secret("git-ssh", "ssh-privatekey").await?,
            git_known_hosts: secret("git-ssh", "known_hosts").await?,
            ca: std::fs::read_to_string(value("STAGE_CA")?)?,
            git_host: format!("git.{STAGE}.svc"),
            git_outside_url: value("STAGE_GIT_URL")?,
            model_host: format!("model.{STAGE}.svc"),
            agent_image: reference(images, "agent")?,
        })
    }
}

/// Reference of an image, as its build printed it.
fn reference(images: &str, name: &str) -> Result<String> {
    images
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(first, _)| *first == name)
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .map(str::to_owned)
        .with_context(|| format!("no image {name} was built:\n{images}"))
}

/// Brings the built images into the cluster, those that it does not have yet.
pub(crate) async fn load(
    root: &Path,
    environment: &BTreeMap<String, String>,
    images: &str,
) -> Result<()> {
    let variable = |name: &str| {
        environment
            .get(name)
            .context("the cluster printed too little")
    };
    let cluster = ["--name", variable("RUNLEDGER_CLUSTER")?.as_str()];
    let tool = || {
        let mut tool = command(root, environment, "sh");
        tool.arg("tests/cluster/cluster.sh");
        tool
    };
    let mut list = tool();
    list.arg("exec")
        .args(cluster)
        .args(["--", "ctr", "--address"]);
    list.args([
        variable("RUNLEDGER_CONTAINERD_SOCKET")?,
        "-n",
        "k8s.io",
        "images",
        "ls",
        "-q",
    ]);
    let there = sh::run(&mut list, None, Duration::from_secs(60)).await?;
    for line in images.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(image), Some(archive)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !there.lines().any(|line| line == image) {
            let mut load = tool();
            load.arg("load-image").args(cluster).arg(archive);
            sh::run_loudly(&mut load, Duration::from_secs(600)).await?;
        }
    }
    Ok(())
}

/// Installs the chart as its README says, with the stage's Postgres and model; runs are taken right then.
pub(crate) async fn install(
    root: &Path,
    environment: &BTreeMap<String, String>,
    images: &str,
    stage: &Stage,
) -> Result<()> {
    let mut give = command(root, environment, "tests/stage/give");
    give.args(["database", SYSTEM]);
    sh::run(&mut give, None, Duration::from_secs(60)).await?;
    let ca = tempfile::NamedTempFile::new()?;
    std::fs::write(ca.path(), &stage.ca)?;
    let mut helm = command(root, environment, "helm");
    helm.args([
        "upgrade",
        "--install",
        RELEASE,
        "charts/runledger",
        "-n",
        SYSTEM,
    ])
    .args(["--wait", "--timeout", "5m"])
    .args(["--set", "database.existingSecret=postgres"])
    .args([
        "--set",
        &format!("images.runledger={}", reference(images, "runledger")?),
    ])
    .args(["--set", &format!("agent.image={}", stage.agent_image)])
    .args([
        "--set",
        &format!("model.baseUrl=https://{}", stage.model_host),
    ])
    .args([
        "--set-file",
        &format!("model.caBundle={}", ca.path().display()),
    ]);
    sh::run(&mut helm, None, Duration::from_secs(360))
        .await
        .context("helm upgrade --install")?;
    let run = r#"{"apiVersion": "runledger.dev/v1alpha1", "kind": "WorkflowRun",
        "metadata": {"name": "first"}, "spec": {"workflowName": "none", "task": "Nothing."}}"#;
    let mut kubectl = command(root, environment, "kubectl");
    kubectl.args(["create", "--dry-run=server", "-f", "-"]);
    sh::run(&mut kubectl, Some(run), Duration::from_secs(20))
        .await
        .context("a run just after the install")?;
    Ok(())
}
