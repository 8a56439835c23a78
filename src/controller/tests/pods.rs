//! The pod that is made for a run.

use super::*;
use crate::api::repository::OnReuse;
use crate::controller::{pod as build, validate};
use crate::names::annotations;
use crate::pod::{Assignment, paths};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, VolumeProjection};

fn pod_of(run: &WorkflowRun, claim: Option<&str>) -> Pod {
    let resolved = validate::resolve(run, &config()).unwrap();
    build::build(run, &resolved, 2, claim, "CA", &config()).unwrap()
}

fn mounts(container: &Container) -> Vec<(String, String, String)> {
    let mounts = container.volume_mounts.as_ref().unwrap();
    mounts
        .iter()
        .map(|mount| {
            (
                mount.name.clone(),
                mount.mount_path.clone(),
                mount.sub_path.clone().unwrap_or_default(),
            )
        })
        .collect()
}

#[test]
fn an_author_reaches_the_agent_and_a_ca_the_supervisor_as_they_were_written() {
    let run = run(json!({"spec": {"repository": {
        "url": "https://git.example.com/a", "branch": "v1", "depth": 3, "onReuse": "Update", "caBundle": "PEM",
        "author": {"name": "Ada $(HOME)", "email": "ada@example.com"},
    }}}));
    let pod = pod_of(&run, None);
    let spec = pod.spec.unwrap();
    let env = spec.containers[0].env.as_ref().unwrap();
    let value = |name: &str| {
        let found = env.iter().find(|env| env.name == name).unwrap();
        found.value.clone().unwrap()
    };
    assert_eq!(value("GIT_AUTHOR_NAME"), "Ada $$(HOME)");
    assert_eq!(value("GIT_COMMITTER_NAME"), "Ada $$(HOME)");
    assert_eq!(value("GIT_AUTHOR_EMAIL"), "ada@example.com");
    assert_eq!(value("GIT_COMMITTER_EMAIL"), "ada@example.com");
    let text = &pod.metadata.annotations.unwrap()[annotations::ASSIGNMENT];
    let assignment: Assignment = serde_json::from_str(text).unwrap();
    let repository = assignment.repository.unwrap();
    assert_eq!(repository.ca.as_deref(), Some("PEM"));
    assert_eq!(repository.depth, Some(3));
    assert_eq!(repository.on_reuse, OnReuse::Update);
    assert_eq!(repository.branch.as_deref(), Some("v1"));
}

#[test]
fn only_the_supervisor_sees_secrets_and_tokens() {
    let run = run(
        json!({"spec": {"repository": {"url": "https://git.example.com/a", "secretName": "git"}}}),
    );
    let spec = pod_of(&run, None).spec.unwrap();
    let agent = &spec.containers[0];
    for (name, _, _) in mounts(agent) {
        assert!(
            ["workspace", "door", "bin", "agent-tmp"].contains(&name.as_str()),
            "{name}"
        );
    }
    assert!(agent.env_from.is_none());
    assert_eq!(agent.env, None);
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert!(
        mounts(agent)
            .iter()
            .all(|(_, _, sub)| !sub.starts_with("state")),
        "nor the journal"
    );
    let inits = spec.init_containers.unwrap();
    let supervisor = mounts(&inits[0]);
    for path in [
        paths::MODEL_SECRET,
        paths::GIT_SECRET,
        paths::STATE,
        "/etc/runledger/given",
    ] {
        assert!(supervisor.iter().any(|(_, at, _)| at == path), "{path}");
    }
    assert!(
        supervisor
            .iter()
            .all(|(_, _, sub)| !sub.starts_with("home"))
    );
    assert_eq!(inits[0].restart_policy.as_deref(), Some("Always"));
}

#[test]
fn a_pod_has_as_few_parts_as_can_be() {
    let pod = pod_of(&run(json!({})), None);
    let spec = pod.spec.unwrap();
    let volumes = spec.volumes.unwrap();
    let names: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let all = ["workspace", "bin", "door", "agent-tmp", "given", "model"];
    assert_eq!(names, all);
    let inits = spec.init_containers.unwrap();
    assert_eq!((inits.len(), spec.containers.len()), (1, 1));
    assert_eq!(
        mounts(&inits[0]).len() + mounts(&spec.containers[0]).len(),
        11
    );
}

#[test]
fn the_token_is_renewed_also_where_a_secret_or_config_map_is_gone() {
    let with = json!({"spec": {
        "task": null, "taskFrom": {"configMapKeyRef": {"name": "tasks", "key": "k"}},
        "repository": {"url": "https://git.example.com/a", "secretName": "git"},
    }});
    let volumes = pod_of(&run(with), None).spec.unwrap().volumes.unwrap();
    let sources = |name: &str| {
        let volume = volumes.iter().find(|volume| volume.name == name).unwrap();
        volume.projected.as_ref().unwrap().sources.clone().unwrap()
    };
    let given = sources("given");
    let has_token = |source: &VolumeProjection| source.service_account_token.is_some();
    assert!(given.iter().any(has_token));
    for source in given {
        assert!(source.secret.is_none() && source.config_map.is_none());
    }
}

#[test]
fn the_supervisor_brings_the_agents_program_which_the_agent_can_not_change() {
    let spec = pod_of(&run(json!({})), None).spec.unwrap();
    let of = |container: &Container| {
        let mounts = container.volume_mounts.clone().unwrap();
        let bin = mounts
            .into_iter()
            .find(|mount| mount.name == "bin")
            .unwrap();
        (bin.mount_path, bin.read_only.unwrap_or(false))
    };
    let supervisor = &spec.init_containers.unwrap()[0];
    assert_eq!(of(supervisor), (paths::INSTALL.to_owned(), false));
    let args = supervisor.args.clone().unwrap();
    assert_eq!(args, ["supervise", "--install", paths::INSTALL]);
    assert_eq!(of(&spec.containers[0]), (paths::BIN.to_owned(), true));
}

#[test]
fn the_kubelets_deadline_leaves_a_week_to_wait_in() {
    let deadline = |spec| {
        pod_of(&run(spec), None)
            .spec
            .unwrap()
            .active_deadline_seconds
    };
    // A quarter of an hour, ten minutes for the flush and fifteen for the rest of the seal.
    let limited = deadline(json!({"spec": {"limits": {"timeout": "15m"}}}));
    assert_eq!(limited, Some(7 * 24 * 3600 + 40 * 60));
    assert_eq!(deadline(json!({})), None);
}

#[test]
fn every_container_is_restricted() {
    let spec = pod_of(&run(json!({})), None).spec.unwrap();
    let inits = spec.init_containers.unwrap();
    for container in inits.iter().chain(&spec.containers) {
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.allow_privilege_escalation, Some(false));
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(
            security.capabilities.as_ref().unwrap().drop.as_deref(),
            Some(&["ALL".to_owned()][..])
        );
    }
    let security = spec.security_context.unwrap();
    assert_eq!(
        (security.run_as_user, security.run_as_non_root),
        (Some(1000), Some(true))
    );
    assert_eq!(security.seccomp_profile.unwrap().type_, "RuntimeDefault");
}

#[test]
fn the_assignment_is_what_the_supervisor_reads() {
    let run = run(json!({"spec": {
        "limits": {"timeout": "1h30m"},
        "agent": {"model": "sonnet", "maxTurns": 3},
        "repository": {"url": "https://git.example.com/a", "push": {"when": "Always", "branch": "x/{namespace}/{workflow}"}},
    }}));
    let pod = pod_of(&run, Some("workspace-hello"));
    let annotations = pod.metadata.annotations.as_ref().unwrap();
    let assignment: Assignment =
        serde_json::from_str(&annotations[annotations::ASSIGNMENT]).unwrap();
    assert_eq!(
        (assignment.attempt, assignment.timeout_seconds),
        (2, Some(5400))
    );
    assert_eq!(assignment.run_id.to_string(), UID);
    assert_eq!(assignment.agent.max_turns, Some(3));
    assert_eq!(assignment.server.ca, "CA");
    let push = assignment.repository.unwrap().push.unwrap();
    assert!(push.always);
    assert_eq!(
        push.branch,
        format!("x/{}/{}", assignment.namespace, assignment.workflow_name)
    );
    assert_eq!(annotations[annotations::TASK], "Say hello.");
    assert_eq!(pod.metadata.name.as_deref(), Some("hello-2"));
    assert_eq!(
        pod.metadata.finalizers.as_deref(),
        Some(&[finalizers::POD.to_owned()][..])
    );
    assert_eq!(pod.metadata.owner_references.as_ref().unwrap()[0].uid, UID);
}

#[test]
fn a_task_in_a_config_map_is_mounted_and_not_copied() {
    let from = json!({"spec": {"task": null, "taskFrom": {"configMapKeyRef": {"name": "tasks", "key": "k"}}}});
    let pod = pod_of(&run(from), None);
    assert!(
        !pod.metadata
            .annotations
            .unwrap()
            .contains_key(annotations::TASK)
    );
    let spec = pod.spec.unwrap();
    let volume = spec
        .volumes
        .as_ref()
        .unwrap()
        .iter()
        .find(|volume| volume.name == "task")
        .unwrap();
    let items = volume.config_map.as_ref().unwrap().items.as_ref().unwrap();
    assert_eq!(
        (items[0].key.as_str(), items[0].path.as_str()),
        ("k", "task")
    );
}

#[test]
fn a_run_can_not_overwrite_what_the_pod_is_known_by() {
    // Admission refuses it; should it be off, ours still wins.
    let run = run(json!({"spec": {"podTemplate": {
        "labels": {(labels::RUN_UID): "other", "team": "a"},
        "annotations": {(annotations::ASSIGNMENT): "{}"},
    }}}));
    let meta = pod_of(&run, None).metadata;
    assert_eq!(meta.labels.as_ref().unwrap()[labels::RUN_UID], UID);
    assert_eq!(meta.labels.as_ref().unwrap()["team"], "a");
    assert!(meta.annotations.unwrap()[annotations::ASSIGNMENT].contains(UID));
}

#[test]
fn a_run_without_a_lasting_volume_gets_an_empty_one_of_its_size() {
    let volumes = pod_of(&run(json!({})), None).spec.unwrap().volumes.unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume.name == "workspace")
        .unwrap();
    assert_eq!(
        volume
            .empty_dir
            .as_ref()
            .unwrap()
            .size_limit
            .as_ref()
            .unwrap()
            .0,
        "1Gi"
    );
    let volumes = pod_of(&run(json!({})), Some("c"))
        .spec
        .unwrap()
        .volumes
        .unwrap();
    let volume = volumes
        .iter()
        .find(|volume| volume.name == "workspace")
        .unwrap();
    assert_eq!(
        volume.persistent_volume_claim.as_ref().unwrap().claim_name,
        "c"
    );
}

#[test]
fn an_agent_is_bounded_by_the_runs_own_resources_or_else_by_the_controllers() {
    let bounded = Config {
        agent_resources: Some(
            serde_json::from_value(json!({"limits": {"memory": "4Gi"}})).unwrap(),
        ),
        agent_tmp_size: "3Gi".to_owned(),
        ..config()
    };
    let spec_of = |run: &WorkflowRun| {
        let resolved = validate::resolve(run, &bounded).unwrap();
        let pod = build::build(run, &resolved, 1, None, "CA", &bounded).unwrap();
        pod.spec.unwrap()
    };
    let spec = spec_of(&run(json!({})));
    let limits = |spec: &PodSpec| {
        let resources = spec.containers[0].resources.clone().unwrap();
        serde_json::to_value(resources).unwrap()
    };
    assert_eq!(limits(&spec), json!({"limits": {"memory": "4Gi"}}));
    let volumes = serde_json::to_value(&spec.volumes).unwrap();
    let tmp = (volumes.as_array().unwrap().iter()).find(|volume| volume["name"] == "agent-tmp");
    assert_eq!(tmp.unwrap()["emptyDir"]["sizeLimit"], "3Gi");

    let own = json!({"requests": {"memory": "8Gi"}});
    let spec = spec_of(&run(
        json!({"spec": {"podTemplate": {"resources": own.clone()}}}),
    ));
    assert_eq!(limits(&spec), own, "they would not fit the defaults");
}
