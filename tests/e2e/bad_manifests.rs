//! Manifests that can't be carried out, and the word that the refusal has to have in it.

use serde_json::{Value, json};

/// What is wrong, where the answer has to point, and the spec's difference from a good one.
pub(crate) struct Bad {
    pub(crate) what: &'static str,
    pub(crate) names: &'static str,
    pub(crate) change: fn(&mut Value),
}

macro_rules! bad {
    ($what:literal, $names:literal, $spec:ident => $change:expr) => {
        Bad {
            what: $what,
            names: $names,
            change: |$spec: &mut Value| $change,
        }
    };
}

/// Thirty and some.
pub(crate) fn all() -> Vec<Bad> {
    vec![
        bad!("no workflow name", "workflowName", s => remove(s, "workflowName")),
        bad!("a workflow name in capitals", "workflowName", s => s["workflowName"] = json!("Builder")),
        bad!("a workflow name in another script", "workflowName", s => s["workflowName"] = json!("建築者")),
        bad!("a workflow name that is a number", "workflowName", s => s["workflowName"] = json!(7)),
        bad!("no task", "task", s => remove(s, "task")),
        bad!("an empty task", "task", s => s["task"] = json!("")),
        bad!("a task of white space", "task", s => s["task"] = json!(" \n\t ")),
        bad!("a task that is a list", "task", s => s["task"] = json!(["do", "this"])),
        bad!("a task of 2 MiB", "task", s => s["task"] = json!("x".repeat(2 * 1024 * 1024))),
        bad!("both tasks", "task", s => s["taskFrom"] = json!({"configMapKeyRef": {"name": "a", "key": "b"}})),
        bad!("a task from a Secret", "secretKeyRef", s => {
            remove(s, "task");
            s["taskFrom"] = json!({"secretKeyRef": {"name": "a", "key": "b"}});
        }),
        bad!("a task from a key that climbs", "taskFrom.configMapKeyRef.key", s => {
            remove(s, "task");
            s["taskFrom"] = json!({"configMapKeyRef": {"name": "a", "key": "../b"}});
        }),
        bad!("an unknown field", "tusk", s => s["tusk"] = json!("typo")),
        bad!("an unknown field further in", "gpu", s => s["agent"]["gpu"] = json!(1)),
        bad!("a URL without a host", "repository.url", s => s["repository"]["url"] = json!("https://")),
        bad!("a URL of words", "repository.url", s => s["repository"]["url"] = json!("not a url")),
        bad!("a URL of a local file", "repository.url", s => s["repository"]["url"] = json!("file:///etc/passwd")),
        bad!("a URL with a command", "repository.url", s => s["repository"]["url"] = json!("ext::sh -c id")),
        bad!("a URL that is an option", "repository.url", s => s["repository"]["url"] = json!("--upload-pack=id")),
        bad!("a URL with credentials", "repository.url", s => s["repository"]["url"] = json!("https://me:secret@git.example.com/a.git")),
        bad!("a URL that climbs", "repository.url", s => s["repository"]["url"] = json!("https://git.example.com/a/../../b.git")),
        bad!("no URL", "url", s => s["repository"] = json!({"secretName": "git"})),
        bad!("a branch that is an option", "repository.branch", s => s["repository"]["branch"] = json!("-u")),
        bad!("a branch that climbs", "repository.branch", s => s["repository"]["branch"] = json!("a/../b")),
        bad!("a branch with a space", "repository.branch", s => s["repository"]["branch"] = json!("a b")),
        bad!("a push without a branch", "push.branch", s => s["repository"]["push"] = json!({"when": "Always"})),
        bad!("a push to main", "push.branch", s => s["repository"]["push"] = json!({"when": "Always", "branch": "main"})),
        bad!("a push at another time", "push.when", s => s["repository"]["push"] = json!({"when": "Sometimes", "branch": "b"})),
        bad!("a session that climbs", "session.name", s => s["session"] = json!({"name": "../other"})),
        bad!("a session without a name", "session", s => s["session"] = json!({})),
        bad!("a workspace in another script", "workspace.name", s => s["workspace"]["name"] = json!("møbel")),
        bad!("a workspace that climbs", "workspace.name", s => s["workspace"]["name"] = json!("../../etc")),
        bad!("a workspace of no size", "workspace.size", s => s["workspace"]["size"] = json!("0")),
        bad!("a workspace of a negative size", "workspace.size", s => s["workspace"]["size"] = json!("-1Gi")),
        bad!("a workspace of a big size", "workspace.size", s => s["workspace"]["size"] = json!("big")),
        bad!("a workspace that persists perhaps", "workspace.persistent", s => s["workspace"]["persistent"] = json!("maybe")),
        bad!("negative turns", "agent.maxTurns", s => s["agent"]["maxTurns"] = json!(-3)),
        bad!("no turns", "agent.maxTurns", s => s["agent"]["maxTurns"] = json!(0)),
        bad!("turns in words", "agent.maxTurns", s => s["agent"]["maxTurns"] = json!("many")),
        bad!("a model that is an option", "agent.model", s => s["agent"]["model"] = json!("--dangerously-skip-permissions")),
        bad!("an image with a space", "agent.image", s => s["agent"]["image"] = json!("an image")),
        bad!("a Secret that climbs", "agent.secretName", s => s["agent"]["secretName"] = json!("../kube-system/admin")),
        bad!("a negative time limit", "limits.timeout", s => s["limits"] = json!({"timeout": "-5m"})),
        bad!("a time limit of nothing", "limits.timeout", s => s["limits"] = json!({"timeout": "0s"})),
        bad!("a time limit in words", "limits.timeout", s => s["limits"] = json!({"timeout": "soon"})),
        bad!("another state", "desiredState", s => s["desiredState"] = json!("Paused")),
        bad!("a volume of the host", "volumes", s => s["podTemplate"]["volumes"] = json!([{"name": "h", "hostPath": {"path": "/"}}])),
        bad!("a label of ours", "podTemplate.labels", s => s["podTemplate"]["labels"] = json!({"runledger.dev/run-uid": "x"})),
        bad!("a negative request", "podTemplate.resources", s => s["podTemplate"]["resources"] = json!({"requests": {"memory": "-1Gi"}})),
        bad!("a request above its limit", "podTemplate.resources", s => {
            s["podTemplate"]["resources"] = json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}});
        }),
        bad!("a label that Kubernetes refuses", "podTemplate.labels", s => s["podTemplate"]["labels"] = json!({"a b": "c d"})),
        bad!("a node's label that Kubernetes refuses", "podTemplate.nodeSelector", s => {
            s["podTemplate"]["nodeSelector"] = json!({"-": "*"});
        }),
    ]
}

fn remove(spec: &mut Value, field: &str) {
    if let Some(spec) = spec.as_object_mut() {
        spec.remove(field);
    }
}
