//! Runs as tests write them: manifests, and waiting for what becomes of them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use runledger::api::run::{Phase, WorkflowRun, WorkflowRunStatus};
use runledger::api::workspace::Workspace;
use runledger::names::{conditions, labels};
use serde_json::{Value, json};

use crate::case::{START, Space};
use crate::wait::until;

/// A manifest in the making.
pub(crate) struct Manifest(pub(crate) Value);

impl Manifest {
    /// A run on the stage's repository that asks for little.
    pub(crate) fn new(space: &Space, name: &str, scenario: &str) -> Self {
        let mut manifest = Self::bare(name, &space.task(name, scenario));
        manifest.0["spec"]["repository"] = json!({
            "url": space.world.stage.repository_url(),
            "secretName": "git",
            "push": {"when": "Always", "branch": space.tag(name)},
        });
        manifest
    }

    /// A run without a repository.
    pub(crate) fn bare(name: &str, task: &str) -> Self {
        Self(json!({
            "apiVersion": "runledger.dev/v1alpha1",
            "kind": "WorkflowRun",
            "metadata": {"name": name},
            "spec": {
                "workflowName": "builder",
                "task": task,
                "workspace": {"size": "1Gi"},
                // A model of known price.
                "agent": {"secretName": "model", "model": "claude-sonnet-4-5"},
                "podTemplate": {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}}},
            },
        }))
    }

    /// Sets a field, named by its path below `spec`.
    pub(crate) fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let mut at = &mut self.0["spec"];
        for step in path.split('.') {
            at = &mut at[step];
        }
        *at = value.into();
        self
    }

    /// Takes a field of the spec out.
    pub(crate) fn without(mut self, field: &str) -> Self {
        if let Some(spec) = self.0["spec"].as_object_mut() {
            spec.remove(field);
        }
        self
    }

    pub(crate) fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap_or_default()
    }
}

/// A run that was accepted.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) space: Space,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Space {
    /// Creates a run that admission has to let through.
    pub(crate) async fn start(&self, manifest: Manifest) -> Result<Run> {
        let name = manifest.name().to_owned();
        let arguments = ["create", "--validate=strict", "-f", "-"];
        self.kubectl(&arguments, Some(&manifest.0.to_string()))
            .await?;
        let run = self
            .world
            .api::<WorkflowRun>(&self.namespace)
            .get(&name)
            .await?;
        Ok(Run {
            space: self.clone(),
            name,
            uid: run.metadata.uid.unwrap_or_default(),
        })
    }
}

impl Run {
    pub(crate) fn api(&self) -> Api<WorkflowRun> {
        self.space.world.api(&self.space.namespace)
    }

    pub(crate) fn id(&self) -> uuid::Uuid {
        self.uid
            .parse()
            .expect("Kubernetes gives uids that are UUIDs")
    }

    pub(crate) fn tag(&self) -> String {
        self.space.tag(&self.name)
    }

    /// The run as it is now.
    pub(crate) async fn status(&self) -> Result<WorkflowRunStatus> {
        Ok(self.api().get(&self.name).await?.status.unwrap_or_default())
    }

    /// Waits until its status is as wanted.
    pub(crate) async fn until(
        &self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&WorkflowRunStatus) -> bool + Send + Sync,
    ) -> Result<WorkflowRunStatus> {
        let seen = until(
            self.api(),
            &self.name,
            what,
            deadline,
            |run: Option<&WorkflowRun>| {
                run.and_then(|run| run.status.as_ref()).is_some_and(&wanted)
            },
        )
        .await?;
        seen.and_then(|run| run.status)
            .context("the run has no status")
    }

    /// Waits until the agent works.
    pub(crate) async fn running(&self) -> Result<WorkflowRunStatus> {
        let status = self
            .until("Running or ended", START, |status| {
                status.phase != Phase::Pending
            })
            .await?;
        if status.phase != Phase::Running {
            bail!(
                "{} was to be Running and is {:?}: {:?} {:?}",
                self.name,
                status.phase,
                status.reason,
                status.message
            );
        }
        Ok(status)
    }

    /// Waits for its end, recorded in the ledger, and requires the phase.
    pub(crate) async fn ends(&self, phase: Phase, deadline: Duration) -> Result<WorkflowRunStatus> {
        let status = self
            .until("ended and Recorded", deadline, |status| {
                matches!(
                    status.phase,
                    Phase::Completed | Phase::Failed | Phase::Killed
                ) && recorded(status)
            })
            .await?;
        if status.phase != phase {
            bail!(
                "{} ended {:?}, not {phase:?}: {:?} {:?}",
                self.name,
                status.phase,
                status.reason,
                status.message
            );
        }
        Ok(status)
    }

    /// Waits until it is Pending for that reason.
    pub(crate) async fn waits_for(
        &self,
        reason: &str,
        deadline: Duration,
    ) -> Result<WorkflowRunStatus> {
        let status = self
            .until(&format!("Pending for {reason}"), deadline, |status| {
                status.reason.as_deref() == Some(reason) || !matches!(status.phase, Phase::Pending)
            })
            .await?;
        if status.phase != Phase::Pending {
            bail!(
                "{} is {:?} ({:?}: {:?}) and was to wait for {reason}",
                self.name,
                status.phase,
                status.reason,
                status.message
            );
        }
        Ok(status)
    }

    pub(crate) async fn kill(&self) -> Result<()> {
        let patch = r#"{"spec":{"desiredState":"Killed"}}"#;
        self.space
            .kubectl(
                &["patch", "wfr", &self.name, "--type=merge", "-p", patch],
                None,
            )
            .await?;
        Ok(())
    }

    pub(crate) async fn delete(&self) -> Result<()> {
        self.space
            .kubectl(&["delete", "wfr", &self.name, "--wait=false"], None)
            .await?;
        Ok(())
    }

    /// Waits until the object is gone.
    pub(crate) async fn gone(&self, deadline: Duration) -> Result<()> {
        until(
            self.api(),
            &self.name,
            "gone",
            deadline,
            |run: Option<&WorkflowRun>| run.is_none(),
        )
        .await?;
        Ok(())
    }

    /// Waits until none of its pods is left.
    pub(crate) async fn pods_gone(&self, deadline: Duration) -> Result<()> {
        let pods: Api<Pod> = self.space.world.api(&self.space.namespace);
        for (_, pod) in self.space.witness.pods_of(&self.uid) {
            let name = pod.metadata.name.unwrap_or_default();
            until(
                pods.clone(),
                &name,
                "gone",
                deadline,
                |pod: Option<&Pod>| pod.is_none(),
            )
            .await?;
        }
        let selector = format!("{}={}", labels::RUN_UID, self.uid);
        let left = pods.list(&ListParams::default().labels(&selector)).await?;
        anyhow::ensure!(
            left.items.is_empty(),
            "{} still has {} pods",
            self.name,
            left.items.len()
        );
        Ok(())
    }

    /// Name of the pod that it has now.
    pub(crate) async fn pod(&self) -> Result<String> {
        let status = self
            .until("has a pod", START, |status| status.pod_name.is_some())
            .await?;
        status.pod_name.context("no pod")
    }

    /// Its workspace, which has to be there.
    pub(crate) async fn workspace(&self) -> Result<Workspace> {
        let name = self
            .status()
            .await?
            .workspace
            .context("the run has no workspace")?;
        Ok(self
            .space
            .world
            .api::<Workspace>(&self.space.namespace)
            .get(&name)
            .await?)
    }
}

/// Whether the final row is in the ledger.
pub(crate) fn recorded(status: &WorkflowRunStatus) -> bool {
    condition(status, conditions::RECORDED).as_deref() == Some("True")
}

/// A condition's status.
pub(crate) fn condition(status: &WorkflowRunStatus, kind: &str) -> Option<String> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
        .map(|condition| condition.status.clone())
}
