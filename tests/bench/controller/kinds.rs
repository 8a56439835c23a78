//! The three kinds that are measured against each other: what they look like, where they are made,
//! and when one of them is done.

use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use runledger::names::reasons;
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

/// What is made by the thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Pods that no controller looks after.
    Pod,
    /// `batch/v1` Jobs.
    Job,
    /// WorkflowRuns without a volume of their own.
    Run,
}

impl Kind {
    /// As a person calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Pod => "pod, no controller",
            Self::Job => "batch/v1 Job",
            Self::Run => "WorkflowRun",
        }
    }

    /// Path of the objects in the namespace.
    pub(crate) fn path(self, namespace: &str) -> String {
        match self {
            Self::Pod => pods(namespace),
            Self::Job => format!("/apis/batch/v1/namespaces/{namespace}/jobs"),
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
