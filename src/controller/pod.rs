//! Builds a run's pod. Pure: everything in it follows from the run and the configuration, so that
//! the same attempt made twice is the same pod.
//!
//! The API server reads, defaults, checks and compares every field of a pod with each of the six or so
//! writes of its life, and keeps account of who owns it. So a container, a volume or a mount is here only
//! where it can't be spared.

mod volumes;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, HTTPGetAction, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource as _;

use crate::api::WorkflowRun;
use crate::names::{annotations, finalizers, labels};
use crate::pod::{Assignment, ModelEndpoint, ServerEndpoint, containers, paths, ports};

use super::config::Config;
use super::last_resort::LastResort;
use super::naming;
use super::validate::{Resolved, Task};

/// The one user of both containers.
const USER: i64 = 1000;
/// Longest time between the ends of a run's containers and SIGKILL.
const GRACE_SECONDS: i64 = 60;
/// How long a checkout may take.
const CHECKOUT_SECONDS: u64 = 3600;

/// Why there is no pod.
#[derive(Debug, thiserror::Error)]
#[error("the assignment can't be written as JSON")]
pub struct Error(#[from] serde_json::Error);

/// The pod of that attempt.
pub(super) fn build(
    run: &WorkflowRun,
    resolved: &Resolved,
    attempt: u32,
    claim: Option<&str>,
    server_ca: &str,
    config: &Config,
) -> Result<Pod, Error> {
    let assignment = serde_json::to_string(&assignment(resolved, attempt, server_ca, config))?;
    let mut pod_labels = resolved.labels.clone();
    pod_labels.extend(
        [
            (labels::MANAGED_BY, labels::MANAGED_BY_VALUE.to_owned()),
            (labels::RUN, naming::label(&resolved.name)),
            (labels::RUN_UID, resolved.run_id.to_string()),
            (labels::ATTEMPT, attempt.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    );
    let mut pod_annotations = resolved.annotations.clone();
    pod_annotations.insert(annotations::ASSIGNMENT.to_owned(), assignment);
    if let Task::Inline(task) = &resolved.task {
        pod_annotations.insert(annotations::TASK.to_owned(), task.clone());
    }
    Ok(Pod {
        metadata: ObjectMeta {
            name: Some(naming::pod(&resolved.name, attempt)),
            namespace: Some(resolved.namespace.clone()),
            labels: Some(pod_labels),
            annotations: Some(pod_annotations),
            finalizers: Some(vec![finalizers::POD.to_owned()]),
            owner_references: Some(vec![owner(run)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec(resolved, claim, config)),
        status: None,
    })
}

fn owner(run: &WorkflowRun) -> OwnerReference {
    OwnerReference {
        api_version: WorkflowRun::api_version(&()).into_owned(),
        kind: WorkflowRun::kind(&()).into_owned(),
        name: run.metadata.name.clone().unwrap_or_default(),
        uid: run.metadata.uid.clone().unwrap_or_default(),
        // `kubectl drain` asks for a controller, or refuses to evict.
        controller: Some(true),
        block_owner_deletion: None,
    }
}

fn assignment(resolved: &Resolved, attempt: u32, server_ca: &str, config: &Config) -> Assignment {
    Assignment {
        run_id: resolved.run_id,
        namespace: resolved.namespace.clone(),
        name: resolved.name.clone(),
        attempt,
        workflow_name: resolved.workflow_name.clone(),
        session_id: resolved.session_id,
        session_name: resolved.session_name.clone(),
        persistent: resolved.workspace.is_some(),
        repository: resolved.repository.clone(),
        agent: resolved.agent.clone(),
        timeout_seconds: resolved.timeout_seconds,
        model: ModelEndpoint {
            url: config.model_url.clone(),
            ca: config.model_ca.clone(),
        },
        server: ServerEndpoint {
            url: config.server_url.clone(),
            ca: server_ca.to_owned(),
        },
        flush_timeout_seconds: config.flush_timeout_seconds,
    }
}

fn spec(resolved: &Resolved, claim: Option<&str>, config: &Config) -> PodSpec {
    let last_resort = resolved
        .timeout_seconds
        .map(|timeout| LastResort::after(timeout, config));
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        active_deadline_seconds: last_resort.map(LastResort::deadline),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        security_context: Some(PodSecurityContext {
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        node_selector: (!resolved.node_selector.is_empty()).then(|| resolved.node_selector.clone()),
        tolerations: (!resolved.tolerations.is_empty()).then(|| resolved.tolerations.clone()),
        runtime_class_name: resolved.runtime_class_name.clone(),
        image_pull_secrets: (!resolved.image_pull_secrets.is_empty())
            .then(|| resolved.image_pull_secrets.clone()),
        init_containers: Some(vec![supervisor(resolved, config)]),
        containers: vec![agent(resolved, config)],
        volumes: Some(volumes::volumes(resolved, claim, &config.agent_tmp_size)),
        ..PodSpec::default()
    }
}

fn supervisor(resolved: &Resolved, config: &Config) -> Container {
    let mut mounts = vec![
        sub_path("workspace", "work", paths::WORK),
        sub_path("workspace", "state", paths::STATE),
        mount("door", paths::DOOR),
        mount("bin", paths::INSTALL),
        read_only("given", parent(paths::ASSIGNMENT)),
        read_only("model", paths::MODEL_SECRET),
    ];
    if resolved.repository_secret.is_some() {
        mounts.push(read_only("git", paths::GIT_SECRET));
    }
    if matches!(resolved.task, Task::ConfigMap { .. }) {
        mounts.push(read_only("task", parent(paths::TASK_FROM)));
    }
    Container {
        name: containers::SUPERVISOR.to_owned(),
        image: Some(config.image.clone()),
        image_pull_policy: config.image_pull_policy.clone(),
        args: Some(vec![
            "supervise".to_owned(),
            "--install".to_owned(),
            paths::INSTALL.to_owned(),
        ]),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(restricted()),
        resources: Some(resources(
            &[("cpu", "50m"), ("memory", "64Mi")],
            &[("memory", "1Gi")],
        )),
        termination_message_path: Some(paths::TERMINATION.to_owned()),
        startup_probe: Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some("/started".to_owned()),
                port: IntOrString::Int(i32::from(ports::STARTED)),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(1),
            failure_threshold: Some(i32::try_from(CHECKOUT_SECONDS).unwrap_or(i32::MAX)),
            ..Probe::default()
        }),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn agent(resolved: &Resolved, config: &Config) -> Container {
    let pull_policy = config.image_pull_policy.clone();
    Container {
        name: containers::AGENT.to_owned(),
        image: Some(resolved.image.clone()),
        image_pull_policy: pull_policy.filter(|_| resolved.image == config.agent_image),
        command: Some(vec![
            format!("{}/runledger", paths::BIN),
            "agent".to_owned(),
        ]),
        working_dir: Some(paths::WORK.to_owned()),
        env: agent_env(resolved),
        security_context: Some(restricted()),
        resources: resolved.resources.clone(),
        volume_mounts: Some(vec![
            sub_path("workspace", "work", paths::WORK),
            sub_path(
                "workspace",
                &format!("home/{}", resolved.session_id),
                paths::HOME,
            ),
            mount("door", paths::DOOR),
            read_only("bin", paths::BIN),
            mount("agent-tmp", "/tmp"),
        ]),
        ..Container::default()
    }
}

fn agent_env(resolved: &Resolved) -> Option<Vec<EnvVar>> {
    let author = resolved.author.as_ref()?;
    let env = [
        ("GIT_AUTHOR_NAME", author.name.as_str()),
        ("GIT_AUTHOR_EMAIL", &author.email),
        ("GIT_COMMITTER_NAME", &author.name),
        ("GIT_COMMITTER_EMAIL", &author.email),
    ];
    let literal = |(name, value): (&str, &str)| EnvVar {
        name: name.to_owned(),
        // `$$` is how Kubernetes writes a dollar sign that is none of its own references.
        value: Some(value.replace('$', "$$")),
        value_from: None,
    };
    Some(env.into_iter().map(literal).collect())
}

/// What a container has to say for itself; user and seccomp profile are the pod's.
fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        ..SecurityContext::default()
    }
}

fn resources(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
    let map = |entries: &[(&str, &str)]| -> BTreeMap<String, Quantity> {
        entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Quantity((*value).to_owned())))
            .collect()
    };
    ResourceRequirements {
        requests: Some(map(requests)),
        limits: Some(map(limits)),
        ..ResourceRequirements::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(name, path)
    }
}

fn sub_path(name: &str, sub_path: &str, path: &str) -> VolumeMount {
    VolumeMount {
        sub_path: Some(sub_path.to_owned()),
        ..mount(name, path)
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(parent, _)| parent)
}
