//! The kinds that are measured against each other: what they look like, where they are made, and when
//! one of them is done.

use std::sync::OnceLock;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use kube::Client;
use kube::api::{PostParams, WatchParams};
use kube::core::{Request, WatchEvent};
use runledger::names::{self, reasons};
use runledger::wire::{Changes, Outcome, Termination, Tokens, Usage};
use serde_json::{Value, json};

/// Label of the feigned node, which nothing else is scheduled to.
pub(crate) const NODE_LABEL: &str = "bench.runledger.test/node";
/// What the runs are asked to do.
pub(crate) const TASK: &str = "Find out why the parser's test fails on an empty file, and mend it.";
/// Tokens that each run says it has used.
pub(crate) const TOKENS: Tokens = Tokens {
    input: 1200,
    output: 340,
    cache_read: 56_000,
    cache_creation: 7800,
};

/// The pod that the controller makes for a run, as a Job's template.
static POD_OF_A_RUN: OnceLock<Value> = OnceLock::new();

/// What is made by the thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Pods that no controller looks after.
    Pod,
    /// `batch/v1` Jobs.
    Job,
    /// `batch/v1` Jobs of the very pod that a run has; see [`learn_pod_of_a_run`].
    JobOfRunPod,
    /// WorkflowRuns without a volume of their own.
    Run,
}

impl Kind {
    /// As a person calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Pod => "pod, no controller",
            Self::Job => "batch/v1 Job",
            Self::JobOfRunPod => "batch/v1 Job of a run's pod",
            Self::Run => "WorkflowRun",
        }
    }

    /// Path of the objects in the namespace.
    pub(crate) fn path(self, namespace: &str) -> String {
        match self {
            Self::Pod => pods(namespace),
            Self::Job | Self::JobOfRunPod => format!("/apis/batch/v1/namespaces/{namespace}/jobs"),
            Self::Run => {
                format!("/apis/runledger.dev/v1alpha1/namespaces/{namespace}/workflowruns")
            }
        }
    }

    /// Makes one of them.
    pub(crate) async fn create(
        self,
        client: &Client,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        let body = serde_json::to_vec(&self.object(name))?;
        let request = Request::new(self.path(namespace)).create(&PostParams::default(), body)?;
        client.request_text(request).await?;
        Ok(())
    }

    /// Whether a run that came now would have its finalizer as it is made.
    pub(crate) async fn is_held(client: &Client, namespace: &str) -> anyhow::Result<bool> {
        let asked = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let body = serde_json::to_vec(&Self::Run.object("probe"))?;
        let request = Request::new(Self::Run.path(namespace)).create(&asked, body)?;
        let made: Value = client.request(request).await?;
        Ok(made["metadata"]["finalizers"] == json!([names::finalizers::RUN]))
    }

    fn object(self, name: &str) -> Value {
        let metadata = json!({"name": name});
        match self {
            Self::Pod => json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec(),
            }),
            Self::Job => json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
                "spec": {"backoffLimit": 0, "template": {"spec": pod_spec()}},
            }),
            Self::JobOfRunPod => json!({
                "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
                "spec": {"backoffLimit": 0, "template": POD_OF_A_RUN.get()},
            }),
            Self::Run => json!({
                "apiVersion": "runledger.dev/v1alpha1", "kind": "WorkflowRun", "metadata": metadata,
                "spec": {
                    "workflowName": "builder",
                    "task": TASK,
                    "repository": {"url": "https://git.example.com/team/parser.git", "branch": "main"},
                    "workspace": {"persistent": false},
                    "limits": {"timeout": "30m"},
                    "podTemplate": placement(),
                },
            }),
        }
    }
}

/// Makes a run, and keeps its pod as it is made: what a Job of [`Kind::JobOfRunPod`] has for a template.
pub(crate) async fn learn_pod_of_a_run(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let request = Request::new(pods(namespace)).watch(&WatchParams::default(), "")?;
    let mut events = std::pin::pin!(client.request_events::<Value>(request).await?);
    Kind::Run.create(client, namespace, "learnt").await?;
    let pod = loop {
        let event = events.try_next().await?;
        if let WatchEvent::Added(pod) = event.context("the watch of its pod has ended")? {
            break pod;
        }
    };
    let at = |pointer: &str| pod.pointer(pointer).cloned().unwrap_or_default();
    let mut labels = at("/metadata/labels");
    // With it, the controller of runs would look at it.
    if let Some(labels) = labels.as_object_mut() {
        labels.remove(names::labels::MANAGED_BY);
    }
    let template = json!({
        "metadata": {"labels": labels, "annotations": at("/metadata/annotations")},
        "spec": at("/spec"),
    });
    POD_OF_A_RUN.get_or_init(|| template);
    Ok(())
}

/// Path of the pods in the namespace.
pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn placement() -> Value {
    json!({
        "nodeSelector": {NODE_LABEL: "true"},
        "tolerations": [{"key": NODE_LABEL, "operator": "Exists", "effect": "NoSchedule"}],
    })
}

fn pod_spec() -> Value {
    let mut spec = placement();
    spec["restartPolicy"] = json!("Never");
    spec["automountServiceAccountToken"] = json!(false);
    spec["containers"] = json!([{
        "name": "work", "image": "registry.example.com/work:1",
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
    }]);
    spec
}

/// What the supervisor of every run leaves behind.
pub(crate) fn termination() -> Termination {
    Termination {
        outcome: Outcome::Completed,
        reason: reasons::COMPLETED.to_owned(),
        message: "The agent finished its task.".to_owned(),
        usage: Usage {
            tokens: TOKENS,
            cost_micro_usd: Some(48_840),
            turns: 7,
            requests: 8,
            estimated_requests: 0,
        },
        earlier: Vec::new(),
        model: Some("claude-haiku-4-5".to_owned()),
        git: Some(Changes {
            repository: "https://git.example.com/team/parser.git".to_owned(),
            branch: "main".to_owned(),
            initial_commit: "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3".to_owned(),
            final_commit: "de9f2c7fd25e1b3afad3e85a0bd17d9b100db4b3".to_owned(),
            commits: 1,
            files: 3,
            added: 40,
            removed: 2,
            pushed: None,
            undelivered: None,
            stats: None,
        }),
        sequence: 31,
        acknowledged: 31,
    }
}
