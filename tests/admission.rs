//! What a real API server says to specs, good and bad. The definitions are applied from the types.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use kube::{Client, Resource as _, ResourceExt as _};
use runledger::api::{WorkflowRun, Workspace};
use serde_json::{Value, json};

/// A client of the tests' cluster, where there is one, with the definitions applied.
async fn installed() -> Option<Client> {
    let client = support::client().await?;
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, text) in runledger::api::definitions::files().unwrap() {
        let definition: CustomResourceDefinition = serde_saphyr::from_str(&text).unwrap();
        let name = definition.name_any();
        let params = PatchParams::apply("runledger-tests").force();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await
            .expect("accepted, costs and all");
        await_condition(api.clone(), &name, conditions::is_crd_established())
            .await
            .unwrap();
    }
    Some(client)
}

fn runs(client: &Client) -> Api<DynamicObject> {
    let resource = kube::core::ApiResource::erase::<WorkflowRun>(&());
    Api::namespaced_with(client.clone(), "default", &resource)
}

/// A run named `name` with that spec, changed by `with` (an object is merged, null takes out).
fn run(name: &str, with: Value) -> DynamicObject {
    let mut value = json!({
        "apiVersion": WorkflowRun::api_version(&()),
        "kind": "WorkflowRun",
        "metadata": {"name": name},
        "spec": {"workflowName": "builder", "task": "Say hello."}
    });
    merge(&mut value["spec"], with);
    serde_json::from_value(value).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match from {
        Value::Object(from) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in from {
                if value.is_null() {
                    into.as_object_mut().unwrap().remove(&key);
                } else {
                    merge(&mut into[key.as_str()], value);
                }
            }
        }
        other => *into = other,
    }
}

fn dry() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

#[tokio::test]
async fn what_no_controller_has_seen_yet_is_pending_and_not_taken_for_done() {
    let Some(client) = installed().await else {
        return;
    };
    let api = runs(&client);
    let name = format!("unseen-{}", std::process::id());
    let params = PostParams::default();
    api.create(&params, &run(&name, json!({}))).await.unwrap();
    let unseen = api.get(&name).await.unwrap();
    api.delete(&name, &Default::default()).await.unwrap();
    assert_eq!(
        unseen.data["status"],
        json!({"phase": "Pending", "observedGeneration": -1})
    );
    assert_eq!(unseen.metadata.generation, Some(1));
}

#[tokio::test]
async fn a_good_spec_is_taken_and_its_defaults_are_filled_in() {
    let Some(client) = installed().await else {
        return;
    };
    let api = runs(&client);
    let minimal = api
        .create(&dry(), &run("minimal", json!({})))
        .await
        .unwrap();
    assert_eq!(
        minimal.data["spec"]["workspace"],
        json!({"persistent": true, "size": "10Gi"})
    );
    assert_eq!(minimal.data["spec"]["desiredState"], json!("Running"));
    let parsed: WorkflowRun =
        serde_json::from_value(serde_json::to_value(&minimal).unwrap()).unwrap();
    assert!(parsed.spec.workspace.persistent);

    let full = json!({
        "session": {"name": "parser"},
        "repository": {
            "url": "https://git.example.com:8443/team/project.git",
            "branch": "feature/parser-2.0",
            "secretName": "git-credentials",
            "depth": 50,
            "onReuse": "Reset",
            "caBundle": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "author": {"name": "Ada Lovelace (bot), Jr.", "email": "ada+bot@example.com"},
            "push": {"when": "OnSuccess", "branch": "runledger/{workflow}/{run}-{uid}"}
        },
        "workspace": {"name": "parser", "size": "500Mi", "storageClassName": "fast.example"},
        "agent": {"image": "registry.example.com/agent@sha256:abc", "model": "claude-sonnet-4-5[1m]",
                  "maxTurns": 40, "secretName": "model-key"},
        "limits": {"timeout": "2h30m"},
        "podTemplate": {
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": 2}},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "agents", "operator": "Exists", "effect": "NoSchedule"}],
            "runtimeClassName": "gvisor",
            "imagePullSecrets": [{"name": "registry"}],
            "labels": {"kueue.x-k8s.io/queue-name": "agents"},
            "annotations": {"example.com/team": "parsers"}
        }
    });
    api.create(&dry(), &run("full", full)).await.unwrap();
    for (n, with) in [
        json!({"repository": {"url": "http://[::1]:3000/a.git"}}),
        json!({"repository": {"url": "ssh://git@git.example.com:2222/team/a.git"}}),
        json!({"repository": {"url": "ssh://git.example.com/~team/a.git"}}),
        json!({"repository": {"url": "https://git.example.com/a", "push": {"when": "Always", "branch": "release/1", "allowProtected": ["main", "release/1"]}}}),
        json!({"repository": {"url": "https://git.example.com/a", "branch": "0123456789abcdef0123456789abcdef01234567"}}),
        json!({"repository": {"url": "https://git.example.com/%7Eme/a..b.git"}}),
        json!({"repository": {"url": "https://git.example.com/@scope/a"}}),
        json!({"task": null, "taskFrom": {"configMapKeyRef": {"name": "tasks", "key": "long.md"}}}),
        json!({"task": "a".repeat(runledger::api::MAX_TASK)}),
        json!({"limits": {"timeout": "90s"}}),
        json!({"limits": {"timeout": "168h"}}),
        json!({"workspace": {"persistent": false}}),
    ]
    .into_iter()
    .enumerate()
    {
        api.create(&dry(), &run("good", with))
            .await
            .unwrap_or_else(|e| panic!("{n}: {e}"));
    }
}

#[tokio::test]
async fn a_bad_spec_is_refused_with_a_sentence_that_names_the_field() {
    let Some(client) = installed().await else {
        return;
    };
    let api = runs(&client);
    let url = |url: &str| json!({"repository": {"url": url}});
    let branch = |branch: &str| json!({"repository": {"url": "https://git.example.com/a", "branch": branch}});
    let author = |name: &str, email: &str| json!({"repository": {"url": "https://git.example.com/a", "author": {"name": name, "email": email}}});
    let push = |branch: &str| json!({"repository": {"url": "https://git.example.com/a", "push": {"when": "Always", "branch": branch}}});
    let bad = vec![
        (json!({"task": null}), "spec.task: write either"),
        (
            json!({"taskFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}),
            "spec.task: write either",
        ),
        (
            json!({"task": ""}),
            "spec.task: write what the agent is to do",
        ),
        (
            json!({"task": " \n\t "}),
            "spec.task: write what the agent is to do",
        ),
        (json!({"task": "a\u{0}b"}), "spec.task: take out the NUL"),
        (
            json!({"task": "a".repeat(runledger::api::MAX_TASK + 1)}),
            "use spec.taskFrom",
        ),
        (
            json!({"task": "a".repeat(2 * 1024 * 1024)}),
            "spec.task: Too long",
        ),
        (json!({"task": 7}), "spec.task"),
        (
            json!({"task": null, "taskFrom": {"configMapKeyRef": {"name": "Tasks", "key": "b"}}}),
            "spec.taskFrom.configMapKeyRef.name: write",
        ),
        (
            json!({"task": null, "taskFrom": {"configMapKeyRef": {"name": "tasks", "key": "../b"}}}),
            "spec.taskFrom.configMapKeyRef.key: write",
        ),
        (json!({"workflowName": null}), "spec.workflowName"),
        (
            json!({"workflowName": "Bäcker"}),
            "spec.workflowName: write",
        ),
        (json!({"workflowName": "a".repeat(64)}), "spec.workflowName"),
        (
            json!({"session": {"name": "../other"}}),
            "spec.session.name: write",
        ),
        (
            json!({"repository": {"url": "https://git.example.com/a", "onReuse": "Pull"}}),
            "spec.repository.onReuse: Unsupported value",
        ),
        (url("ext::sh -c id"), "spec.repository.url: write"),
        (url("--upload-pack=id"), "spec.repository.url: write"),
        (url("file:///etc/passwd"), "spec.repository.url: write"),
        (
            url("ssh://git:pw@example.com/a"),
            "spec.repository.url: write",
        ),
        (
            url("ssh://-oProxyCommand=id/a"),
            "spec.repository.url: write",
        ),
        (url("git@example.com:a.git"), "spec.repository.url: write"),
        (
            url("https://user:secret@example.com/a"),
            "spec.repository.url: write",
        ),
        (
            url("https://example.com/a/../b"),
            "spec.repository.url: write",
        ),
        (url("https://example.com/a b"), "spec.repository.url: write"),
        (url("https://-example.com/a"), "spec.repository.url: write"),
        (
            url("https://example.com\\@evil.example/a"),
            "spec.repository.url: write",
        ),
        (url("not a url"), "spec.repository.url: write"),
        (branch("--force"), "spec.repository.branch: write"),
        (branch("a..b"), "spec.repository.branch: write"),
        (branch("a b"), "spec.repository.branch: write"),
        (branch("a\nb"), "spec.repository.branch: write"),
        (branch("a~1"), "spec.repository.branch: write"),
        (branch("a^"), "spec.repository.branch: write"),
        (branch("a\\b"), "spec.repository.branch: write"),
        (branch("a[0]"), "spec.repository.branch: write"),
        (branch("a.lock"), "spec.repository.branch: write"),
        (branch("a/"), "spec.repository.branch: write"),
        (branch("refs/heads/a"), "spec.repository.branch: write"),
        (
            json!({"repository": {"url": "https://git.example.com/a", "depth": 0}}),
            "spec.repository.depth",
        ),
        (
            json!({"repository": {"url": "https://git.example.com/a", "caBundle": "AAAA"}}),
            "spec.repository.caBundle: write certificates",
        ),
        (
            author("Ada <a>", "a@b"),
            "spec.repository.author.name: write",
        ),
        (author("", "a@b"), "spec.repository.author.name: write"),
        (author("Ada", "a\nb"), "spec.repository.author.email: write"),
        (push("main"), "spec.repository.push.branch: name another"),
        (push("Master"), "spec.repository.push.branch: name another"),
        (
            push("release/1.0"),
            "spec.repository.push.branch: name another",
        ),
        (
            push("a/{ran}"),
            "spec.repository.push.branch: write no other",
        ),
        (
            push("a/{run"),
            "spec.repository.push.branch: write no other",
        ),
        (
            json!({"repository": {"url": "https://git.example.com/a", "push": {"when": "Always", "branch": "main", "allowProtected": ["master"]}}}),
            "spec.repository.push.branch: name another",
        ),
        (push("+a:b"), "spec.repository.push.branch: write"),
        (
            json!({"repository": {"url": "https://git.example.com/a", "push": {"when": "OnSuccess"}}}),
            "spec.repository.push.branch: name the branch",
        ),
        (
            json!({"repository": {"url": "https://git.example.com/a", "push": {"when": "Sometimes", "branch": "a"}}}),
            "spec.repository.push.when",
        ),
        (
            json!({"workspace": {"name": "a/b"}}),
            "spec.workspace.name: write",
        ),
        (
            json!({"workspace": {"size": "-1Gi"}}),
            "spec.workspace.size: write",
        ),
        (
            json!({"workspace": {"size": "big"}}),
            "spec.workspace.size: write",
        ),
        (
            json!({"workspace": {"size": "1000Ti"}}),
            "spec.workspace.size: write",
        ),
        (
            json!({"workspace": {"persistent": "no"}}),
            "spec.workspace.persistent",
        ),
        (
            json!({"workspace": {"storageClassName": ""}}),
            "spec.workspace.storageClassName: write",
        ),
        (json!({"agent": {"image": "-v"}}), "spec.agent.image: write"),
        (
            json!({"agent": {"model": "--dangerously"}}),
            "spec.agent.model: write",
        ),
        (json!({"agent": {"maxTurns": 0}}), "spec.agent.maxTurns"),
        (json!({"agent": {"maxTurns": -1}}), "spec.agent.maxTurns"),
        (
            json!({"agent": {"secretName": "a/../b"}}),
            "spec.agent.secretName: write",
        ),
        (
            json!({"limits": {"timeout": "-5m"}}),
            "spec.limits.timeout: write",
        ),
        (
            json!({"limits": {"timeout": "0s"}}),
            "spec.limits.timeout: write",
        ),
        (
            json!({"limits": {"timeout": "soon"}}),
            "spec.limits.timeout: write",
        ),
        (
            json!({"limits": {"timeout": ""}}),
            "spec.limits.timeout: write",
        ),
        (
            json!({"limits": {"timeout": "169h"}}),
            "spec.limits.timeout: write",
        ),
        (json!({"limits": {"timeout": 60}}), "spec.limits.timeout"),
        (json!({"desiredState": "Paused"}), "spec.desiredState"),
        (
            json!({"podTemplate": {"resources": {"limits": {"cpu": "lots"}}}}),
            "spec.podTemplate.resources.limits.cpu",
        ),
        (
            json!({"podTemplate": {"labels": {"runledger.dev/run-uid": "x"}}}),
            "spec.podTemplate.labels: leave out",
        ),
        (
            json!({"podTemplate": {"labels": {"app.kubernetes.io/managed-by": "x"}}}),
            "spec.podTemplate.labels: leave out",
        ),
        (
            json!({"podTemplate": {"annotations": {"runledger.dev/task": "x"}}}),
            "spec.podTemplate.annotations: leave out",
        ),
        (
            json!({"podTemplate": {"runtimeClassName": "A"}}),
            "spec.podTemplate.runtimeClassName: write",
        ),
    ];
    let mut wrong = Vec::new();
    for (with, expected) in bad {
        let short: String = with.to_string().chars().take(120).collect();
        match api.create(&dry(), &run("bad", with)).await {
            Ok(_) => wrong.push(format!("{short} was taken")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{short}: {error} does not say {expected}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_spec_stays_as_it_was_written_but_can_be_killed_once() {
    let Some(client) = installed().await else {
        return;
    };
    let api = runs(&client);
    let name = format!("fixed-{}", uuid::Uuid::new_v4());
    api.create(
        &PostParams::default(),
        &run(
            &name,
            json!({"session": {"name": "a"}, "agent": {"maxTurns": 3}}),
        ),
    )
    .await
    .unwrap();
    let merge = PatchParams::default();
    for (change, field) in [
        (json!({"task": "Something else."}), "spec.task"),
        (
            json!({"task": null, "taskFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}),
            "spec.task",
        ),
        (json!({"workflowName": "other"}), "spec.workflowName"),
        (json!({"session": null}), "spec.session"),
        (json!({"session": {"name": "b"}}), "spec.session"),
        (
            json!({"repository": {"url": "https://git.example.com/a"}}),
            "spec.repository",
        ),
        (
            json!({"workspace": {"persistent": false}}),
            "spec.workspace",
        ),
        (json!({"agent": {"maxTurns": 4}}), "spec.agent"),
        (json!({"limits": {"timeout": "5m"}}), "spec.limits"),
        (
            json!({"podTemplate": {"nodeSelector": {"a": "b"}}}),
            "spec.podTemplate",
        ),
    ] {
        let error = api
            .patch(&name, &merge, &Patch::Merge(json!({"spec": change})))
            .await
            .expect_err("a changed spec is refused")
            .to_string();
        assert!(
            error.contains(field) && error.contains("make a new WorkflowRun"),
            "{error}"
        );
    }
    let kill = json!({"spec": {"desiredState": "Killed"}});
    api.patch(&name, &merge, &Patch::Merge(&kill))
        .await
        .unwrap();
    let revive = json!({"spec": {"desiredState": "Running"}});
    let error = api
        .patch(&name, &merge, &Patch::Merge(&revive))
        .await
        .expect_err("killed is for good");
    assert!(
        error
            .to_string()
            .contains("spec.desiredState: Killed is for good"),
        "{error}"
    );
    api.delete(&name, &kube::api::DeleteParams::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_workspace_keeps_its_size_and_class() {
    let Some(client) = installed().await else {
        return;
    };
    let api: Api<Workspace> = Api::namespaced(client.clone(), "default");
    let name = format!("kept-{}", uuid::Uuid::new_v4());
    let workspace: Workspace = serde_json::from_value(json!({
        "apiVersion": Workspace::api_version(&()), "kind": "Workspace",
        "metadata": {"name": name}, "spec": {"size": "1Gi"}
    }))
    .unwrap();
    api.create(&PostParams::default(), &workspace)
        .await
        .unwrap();
    for (change, field) in [
        (json!({"size": "2Gi"}), "spec.size"),
        (
            json!({"storageClassName": "other"}),
            "spec.storageClassName",
        ),
    ] {
        let error = api
            .patch(
                &name,
                &PatchParams::default(),
                &Patch::Merge(json!({"spec": change})),
            )
            .await
            .expect_err("refused")
            .to_string();
        assert!(error.contains(field), "{error}");
    }
    api.delete(&name, &kube::api::DeleteParams::default())
        .await
        .unwrap();
}
