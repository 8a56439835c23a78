//! What a run's spec means here: defaults filled in, strings turned into what they stand for, and
//! what admission could not judge judged. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{LocalObjectReference, ResourceRequirements, Toleration};
use url::Url;
use uuid::Uuid;

use crate::api::WorkflowRun;
use crate::api::repository::{Author, Push, PushWhen, Repository};
use crate::delivery::{self, Placeholders};
use crate::ids;
use crate::pod::{AgentAssignment, PushAssignment, RepositoryAssignment};

use super::config::Config;
use super::naming;

/// A run as it is to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Resolved {
    /// `metadata.uid`.
    pub run_id: Uuid,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.workflowName`.
    pub workflow_name: String,
    /// Where the task is.
    pub task: Task,
    /// Name of the session.
    pub session_name: String,
    /// Id of the session.
    pub session_id: Uuid,
    /// What to check out.
    pub repository: Option<RepositoryAssignment>,
    /// Secret for the repository.
    pub repository_secret: Option<String>,
    /// Whose name stands on the agent's commits.
    pub author: Option<Author>,
    /// Workspace, or nothing where the volume is an emptyDir.
    pub workspace: Option<WorkspaceWanted>,
    /// Size of the volume.
    pub size: String,
    /// Image of the agent.
    pub image: String,
    /// Secret with the model's key.
    pub model_secret: String,
    /// The CLI's options.
    pub agent: AgentAssignment,
    /// `limits.timeout`.
    pub timeout_seconds: Option<u64>,
    /// `podTemplate`, as it is.
    pub resources: Option<ResourceRequirements>,
    /// `podTemplate`, as it is.
    pub node_selector: BTreeMap<String, String>,
    /// `podTemplate`, as it is.
    pub tolerations: Vec<Toleration>,
    /// `podTemplate`, as it is.
    pub runtime_class_name: Option<String>,
    /// `podTemplate`, as it is.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// `podTemplate`, as it is.
    pub labels: BTreeMap<String, String>,
    /// `podTemplate`, as it is.
    pub annotations: BTreeMap<String, String>,
}

/// Where a task is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Task {
    /// In the spec.
    Inline(String),
    /// In a ConfigMap.
    ConfigMap {
        /// Its name.
        name: String,
        /// Its key.
        key: String,
    },
}

/// The Workspace that a run works on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkspaceWanted {
    /// Its name.
    pub name: String,
    /// Size of its volume, should it be made.
    pub size: String,
    /// StorageClass of its volume, should it be made.
    pub storage_class_name: Option<String>,
}

/// Name of the session of a run.
pub(super) fn session_name(run: &WorkflowRun) -> String {
    run.spec.session.as_ref().map_or_else(
        || run.metadata.name.clone().unwrap_or_default(),
        |session| session.name.clone(),
    )
}

/// Name of the Workspace of a run: its own, else after the session, else after the run.
pub(super) fn workspace_name(run: &WorkflowRun) -> Option<String> {
    let spec = &run.spec;
    if !spec.workspace.persistent {
        return None;
    }
    let session = || spec.session.as_ref().map(|session| session.name.clone());
    Some(
        spec.workspace
            .name
            .clone()
            .or_else(session)
            .unwrap_or_else(|| naming::workspace(run.metadata.name.as_deref().unwrap_or_default())),
    )
}

/// Reads the spec; the errors are sentences that name the field.
pub(super) fn resolve(run: &WorkflowRun, config: &Config) -> Result<Resolved, Vec<String>> {
    let mut errors = Vec::new();
    let spec = &run.spec;
    let name = run.metadata.name.clone().unwrap_or_default();
    let namespace = run.metadata.namespace.clone().unwrap_or_default();
    let run_id = run.metadata.uid.as_deref().and_then(|uid| uid.parse().ok());
    if run_id.is_none() {
        errors.push("metadata.uid: it is not a UUID".to_owned());
    }
    let task = match (&spec.task, &spec.task_from) {
        (Some(task), None) if !task.trim().is_empty() => Some(Task::Inline(task.clone())),
        (None, Some(from)) => Some(Task::ConfigMap {
            name: from.config_map_key_ref.name.clone(),
            key: from.config_map_key_ref.key.clone(),
        }),
        _ => {
            errors.push(
                "spec.task: write either spec.task or spec.taskFrom, and not both".to_owned(),
            );
            None
        }
    };
    let repository = spec.repository.as_ref().and_then(|repository| {
        let with = Placeholders {
            run: &name,
            uid: run.metadata.uid.as_deref().unwrap_or_default(),
            namespace: &namespace,
            session: &session_name(run),
            workflow: &spec.workflow_name,
        };
        repository_of(repository, &with)
            .map_err(|error| errors.push(error))
            .ok()
    });
    let timeout_seconds = spec.limits.timeout.as_deref().and_then(|timeout| {
        let seconds = seconds(timeout);
        if seconds.is_none() {
            errors.push("spec.limits.timeout: write a duration, e.g. 45m or 2h30m".to_owned());
        }
        seconds
    });
    errors.extend(wrong_keys(run));
    let (Some(run_id), Some(task), true) = (run_id, task, errors.is_empty()) else {
        return Err(errors);
    };
    // What was decided for the first attempt holds for the others.
    let decided = run
        .status
        .as_ref()
        .and_then(|status| status.resolved.clone());
    let session_name = session_name(run);
    let (image, model_secret, agent) = match decided {
        Some(decided) => (
            decided.agent_image,
            decided.secret_name,
            AgentAssignment {
                model: decided.model,
                max_turns: decided.max_turns,
            },
        ),
        None => (
            spec.agent
                .image
                .clone()
                .unwrap_or_else(|| config.agent_image.clone()),
            spec.agent
                .secret_name
                .clone()
                .unwrap_or_else(|| config.model_secret.clone()),
            AgentAssignment {
                model: spec.agent.model.clone().or_else(|| config.model.clone()),
                max_turns: spec.agent.max_turns.or(config.max_turns),
            },
        ),
    };
    let template = spec.pod_template.clone();
    Ok(Resolved {
        run_id,
        session_id: ids::session(&namespace, &session_name),
        session_name,
        namespace,
        name,
        workflow_name: spec.workflow_name.clone(),
        task,
        repository_secret: spec.repository.as_ref().and_then(|r| r.secret_name.clone()),
        author: spec.repository.as_ref().and_then(|r| r.author.clone()),
        repository,
        workspace: workspace_name(run).map(|name| WorkspaceWanted {
            name,
            size: spec.workspace.size.clone(),
            storage_class_name: spec.workspace.storage_class_name.clone(),
        }),
        size: spec.workspace.size.clone(),
        image,
        model_secret,
        agent,
        timeout_seconds,
        resources: template
            .resources
            .or_else(|| config.agent_resources.clone()),
        node_selector: template.node_selector,
        tolerations: template.tolerations,
        runtime_class_name: template.runtime_class_name,
        image_pull_secrets: template.image_pull_secrets,
        labels: template.labels,
        annotations: template.annotations,
    })
}

fn repository_of(
    repository: &Repository,
    with: &Placeholders<'_>,
) -> Result<RepositoryAssignment, String> {
    let wrong = |why: &str| format!("spec.repository.url: {why}");
    let url = Url::parse(&repository.url).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https" | "ssh") {
        return Err(wrong("write an https://, http:// or ssh:// URL"));
    }
    let has_user = !url.username().is_empty() && url.scheme() != "ssh";
    if has_user || url.password().is_some() {
        return Err(wrong(
            "leave out user name and password; name a Secret in spec.repository.secretName",
        ));
    }
    let push = match repository.push.as_ref() {
        None => None,
        Some(push) if push.when == PushWhen::Never => None,
        Some(push) => Some(PushAssignment {
            always: push.when == PushWhen::Always,
            branch: branch_of(push, with)
                .map_err(|why| format!("spec.repository.push.branch: {why}"))?,
            allow_protected: push.allow_protected.clone(),
        }),
    };
    Ok(RepositoryAssignment {
        url,
        branch: repository.branch.clone(),
        depth: repository.depth,
        on_reuse: repository.on_reuse,
        ca: repository.ca_bundle.clone(),
        has_secret: repository.secret_name.is_some(),
        push,
    })
}

/// What admission can't judge: a template is a branch only once it is this run's.
fn branch_of(push: &Push, with: &Placeholders<'_>) -> Result<String, String> {
    let template = push.branch.as_deref().ok_or("name the branch to push to")?;
    let branch = delivery::branch(template, with)?;
    if delivery::is_protected(&branch, &push.allow_protected) {
        return Err(format!(
            "{branch} is protected; name another branch, or this one in spec.repository.push.allowProtected"
        ));
    }
    Ok(branch)
}

/// Seconds of `limits.timeout`, where that is one.
pub(super) fn timeout(run: &WorkflowRun) -> Option<u64> {
    run.spec.limits.timeout.as_deref().and_then(seconds)
}

/// Seconds of a duration like `2h30m`, from one second to seven days.
fn seconds(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut number = String::new();
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    (number.is_empty() && (1..=7 * 24 * 3600).contains(&total)).then_some(total)
}

/// Keys and values of labels that no pod can have; the API server would refuse the pod each time.
fn wrong_keys(run: &WorkflowRun) -> Vec<String> {
    let template = &run.spec.pod_template;
    let mut errors = Vec::new();
    for (field, entries, are_labels) in [
        ("labels", &template.labels, true),
        ("nodeSelector", &template.node_selector, true),
        ("annotations", &template.annotations, false),
    ] {
        for (key, value) in entries {
            if !is_qualified_name(key) {
                errors.push(format!(
                    "spec.podTemplate.{field}: {key:?} is no key that Kubernetes takes"
                ));
            } else if are_labels && !value.is_empty() && !is_name(value, 63) {
                errors.push(format!(
                    "spec.podTemplate.{field}.{key}: write at most 63 letters, digits, '-', '_' and '.'"
                ));
            }
        }
    }
    errors
}

fn is_qualified_name(key: &str) -> bool {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(p, n)| (Some(p), n));
    let is_label = |label: &str| {
        label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    is_name(name, 63)
        && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label))
}

fn is_name(name: &str, longest: usize) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= longest
        && ends(name.as_bytes().first())
        && ends(name.as_bytes().last())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
