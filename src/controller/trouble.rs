//! What a pod waits for before its agent starts, read from the pod, its claim and the Events about
//! both. Pure. The controller may not read Secrets: that one is missing, only Events tell.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::names::{GROUP, reasons};
use crate::wire::Outcome;

use super::end::{self, sentence};
use super::validate::{Resolved, Task};
use super::view::{ContainerView, PodView};

/// What the controller remembers of an Event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sighting {
    /// `reason`, e.g. `FailedMount`.
    pub reason: String,
    /// `message`.
    pub message: String,
}

/// What of a PersistentVolumeClaim the controller looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ClaimView {
    /// Its name.
    pub name: String,
    /// It has its volume.
    pub bound: bool,
    /// Its StorageClass, once it has one.
    pub storage_class_name: Option<String>,
    /// It is being deleted.
    pub deleting: bool,
    /// Whose it is.
    pub owner: ClaimOwner,
    /// Events about it.
    pub sightings: Vec<Sighting>,
}

/// Whose a claim is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ClaimOwner {
    /// The Workspace's that it is named after.
    #[default]
    Workspace,
    /// That of an earlier Workspace of this name: it goes when Kubernetes clears up after that one.
    Earlier,
    /// Somebody else's.
    Stranger,
}

impl ClaimOwner {
    /// Reads whose that claim is, which is named after that Workspace.
    pub(super) fn of(claim: &ObjectMeta, workspace: &ObjectMeta) -> Self {
        let owners = claim.owner_references.as_deref().unwrap_or_default();
        if owners
            .iter()
            .any(|owner| Some(&owner.uid) == workspace.uid.as_ref())
        {
            return Self::Workspace;
        }
        let group = format!("{GROUP}/");
        let is_earlier = owners.iter().any(|owner| {
            owner.kind == "Workspace"
                && owner.api_version.starts_with(&group)
                && Some(&owner.name) == workspace.name.as_ref()
        });
        if is_earlier {
            Self::Earlier
        } else {
            Self::Stranger
        }
    }
}

/// What a pending run waits for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waiting {
    /// One of [`reasons`].
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Somebody has to do something about it, so it is said at once. What is merely under way is
    /// said only when it takes its time.
    pub problem: bool,
    /// Since when it is under way.
    pub since: Option<Timestamp>,
}

/// What a live pod waits for; its agent has not started.
pub(super) fn read(
    pod: &PodView,
    claim: Option<&ClaimView>,
    sightings: &[Sighting],
    run: &Resolved,
) -> Waiting {
    unmounted(pod, sightings, run)
        .or_else(|| unprovisioned(pod, claim))
        .or_else(|| unpulled(pod))
        .or_else(|| unstartable(pod, sightings))
        .or_else(|| unchecked_out(pod))
        .unwrap_or_else(|| under_way(pod, sightings))
}

fn problem(reason: &str, message: impl Into<String>) -> Waiting {
    Waiting {
        reason: reason.to_owned(),
        message: message.into(),
        problem: true,
        since: None,
    }
}

fn progress(reason: &str, message: impl Into<String>, since: Option<Timestamp>) -> Waiting {
    Waiting {
        reason: reason.to_owned(),
        message: message.into(),
        problem: false,
        since,
    }
}

/// Volumes that the node can't mount: above all, Secrets and ConfigMaps that are not there.
fn unmounted(pod: &PodView, sightings: &[Sighting], run: &Resolved) -> Option<Waiting> {
    if !pod.scheduled || pod.sandbox {
        return None;
    }
    let failed = |kind: &str| sightings.iter().rev().find(|s| s.reason == kind);
    let said = &failed("FailedMount")
        .or_else(|| failed("FailedAttachVolume"))?
        .message;
    let namespace = &run.namespace;
    if said.contains("non-existent secret key") {
        let (name, key) = if said.contains("volume \"git\"") {
            (
                run.repository_secret.as_deref().unwrap_or_default(),
                "password",
            )
        } else {
            (run.model_secret.as_str(), "ANTHROPIC_API_KEY")
        };
        return Some(problem(
            reasons::MISSING_SECRET,
            format!("Secret {name} in namespace {namespace} has no key {key}; add it."),
        ));
    }
    if said.contains("non-existent config key")
        && let Task::ConfigMap { name, key } = &run.task
    {
        return Some(problem(
            reasons::MISSING_CONFIG_MAP,
            format!("ConfigMap {name} in namespace {namespace} has no key {key}; add it."),
        ));
    }
    if let Some(name) = missing(said, "secret") {
        let hint = if name == run.model_secret {
            "create it with key ANTHROPIC_API_KEY"
        } else {
            "create it with keys hosts, username and password, or hosts, ssh-privatekey and known_hosts"
        };
        return Some(problem(
            reasons::MISSING_SECRET,
            format!("Secret {name} is not in namespace {namespace}; {hint}."),
        ));
    }
    if let Some(name) = missing(said, "configmap") {
        let key = match &run.task {
            Task::ConfigMap { key, .. } => key,
            Task::Inline(_) => "",
        };
        return Some(problem(
            reasons::MISSING_CONFIG_MAP,
            format!("ConfigMap {name} is not in namespace {namespace}; create it with key {key}."),
        ));
    }
    Some(problem(
        reasons::VOLUME,
        format!("A volume can't be mounted: {}", sentence(said)),
    ))
}

/// The name in `… secret "name" not found …`.
fn missing<'a>(said: &'a str, kind: &str) -> Option<&'a str> {
    let lower = said
        .find(&format!("{kind} \""))
        .map(|at| at + kind.len() + 2);
    let plural = said
        .find(&format!("{kind}s \""))
        .map(|at| at + kind.len() + 3);
    let rest = &said[lower.or(plural)?..];
    let (name, after) = rest.split_once('"')?;
    after.trim_start().starts_with("not found").then_some(name)
}

/// A claim that gets no volume.
fn unprovisioned(pod: &PodView, claim: Option<&ClaimView>) -> Option<Waiting> {
    let claim = claim.filter(|claim| !claim.bound)?;
    if pod.scheduled {
        return None;
    }
    claim_trouble(claim)
}

/// What keeps a claim's volume from being the Workspace's; one that has its volume is well, if it is the
/// Workspace's own.
pub(super) fn claim_trouble(claim: &ClaimView) -> Option<Waiting> {
    let name = &claim.name;
    match claim.owner {
        ClaimOwner::Workspace => {}
        ClaimOwner::Earlier => {
            return Some(problem(
                reasons::VOLUME,
                format!(
                    "PersistentVolumeClaim {name} is an earlier Workspace's of this name; a new one is made once it is gone."
                ),
            ));
        }
        ClaimOwner::Stranger => {
            return Some(problem(
                reasons::VOLUME,
                format!(
                    "PersistentVolumeClaim {name} is in the way that is not this Workspace's; delete it, or name another workspace in a new run (spec.workspace.name)."
                ),
            ));
        }
    }
    if claim.bound {
        return None;
    }
    if claim.deleting {
        return Some(problem(
            reasons::VOLUME,
            format!("PersistentVolumeClaim {name} is being deleted."),
        ));
    }
    let said = claim
        .sightings
        .iter()
        .rev()
        .find(|s| matches!(s.reason.as_str(), "ProvisioningFailed" | "FailedBinding"))?;
    if let Some(name) = missing(&said.message, "storageclass.storage.k8s.io") {
        return Some(problem(
            reasons::MISSING_STORAGE_CLASS,
            format!(
                "StorageClass {name} does not exist; create it, or name another in a new run (spec.workspace.storageClassName)."
            ),
        ));
    }
    if said.message.contains("no storage class is set") {
        return Some(problem(
            reasons::MISSING_STORAGE_CLASS,
            "The cluster has no default StorageClass; mark one as default, or name one in a new run (spec.workspace.storageClassName).",
        ));
    }
    Some(problem(
        reasons::VOLUME,
        format!(
            "The volume can't be provisioned: {}",
            sentence(&said.message)
        ),
    ))
}

fn containers(pod: &PodView) -> [(&'static str, &ContainerView); 2] {
    [("supervisor", &pod.supervisor), ("agent", &pod.agent)]
}

/// Images that can't be pulled.
fn unpulled(pod: &PodView) -> Option<Waiting> {
    containers(pod).into_iter().find_map(|(name, container)| {
        let (reason, said) = container.waiting.as_ref()?;
        let is_image = matches!(
            reason.as_str(),
            "ErrImagePull"
                | "ImagePullBackOff"
                | "InvalidImageName"
                | "ErrImageNeverPull"
                | "ImageInspectError"
                | "RegistryUnavailable"
                | "SignatureValidationFailed"
        );
        // The same words whether it is being tried or backed off from, or the status would flap.
        let said = said
            .rsplit("ErrImagePull: ")
            .next()
            .map(sentence)
            .unwrap_or_default();
        let said = if said.is_empty() {
            reason.clone()
        } else {
            said
        };
        is_image.then(|| {
            problem(
                reasons::IMAGE,
                format!(
                    "Image {} of the {name} container can't be pulled: {said}",
                    sentence(&container.image)
                ),
            )
        })
    })
}

/// Containers and sandboxes that the node can't make.
fn unstartable(pod: &PodView, sightings: &[Sighting]) -> Option<Waiting> {
    let container = containers(pod).into_iter().find_map(|(name, container)| {
        let (reason, said) = container.waiting.as_ref()?;
        matches!(
            reason.as_str(),
            "CreateContainerConfigError"
                | "CreateContainerError"
                | "RunContainerError"
                | "PreCreateHookError"
                | "PreStartHookError"
        )
        .then(|| {
            problem(
                reasons::POD_REFUSED,
                format!(
                    "The node can't start the {name} container ({reason}): {}",
                    sentence(said)
                ),
            )
        })
    });
    container.or_else(|| {
        if !pod.scheduled || pod.sandbox {
            return None;
        }
        let said = sightings
            .iter()
            .rev()
            .find(|s| s.reason == "FailedCreatePodSandBox")?;
        Some(problem(
            reasons::POD_REFUSED,
            format!("The node can't start the pod: {}", sentence(&said.message)),
        ))
    })
}

/// A checkout that is tried again: the kubelet restarts the supervisor.
fn unchecked_out(pod: &PodView) -> Option<Waiting> {
    if let Some(termination) = end::checkout(pod).filter(|t| t.outcome == Outcome::Waiting) {
        return Some(problem(&termination.reason, termination.message));
    }
    if pod.supervisor.started {
        return None;
    }
    let last = pod.supervisor.last.as_ref()?;
    Some(problem(
        reasons::CHECKOUT,
        format!(
            "The supervisor ended with exit code {} ({}) during the checkout, and is started again.",
            last.code,
            sentence(&last.reason)
        ),
    ))
}

/// Nothing is wrong; what is being done.
fn under_way(pod: &PodView, sightings: &[Sighting]) -> Waiting {
    if let Some(said) = pod.unschedulable.as_deref().filter(|_| !pod.scheduled) {
        return problem(
            reasons::SCHEDULING,
            format!("The pod can't be scheduled: {}", sentence(said)),
        );
    }
    if !pod.scheduled {
        return progress(
            reasons::SCHEDULING,
            "The pod waits for a node.",
            pod.created,
        );
    }
    let supervisor = &pod.supervisor;
    if !pod.sandbox && supervisor.running.is_none() && supervisor.last.is_none() {
        return progress(
            reasons::VOLUME,
            "The node prepares the pod's volumes.",
            pod.created,
        );
    }
    if supervisor.started {
        let since = supervisor.running;
        return progress(reasons::IMAGE, "The node pulls the agent's image.", since);
    }
    if let Some(since) = supervisor.running {
        let far = (sightings.iter()).find(|s| s.reason == reasons::CHECKOUT_PROGRESS);
        let message = far.map_or_else(
            || "The supervisor prepares the checkout.".to_owned(),
            |far| sentence(&far.message),
        );
        return progress(reasons::CHECKOUT, message, Some(since));
    }
    progress(
        reasons::IMAGE,
        "The node pulls Runledger's image.",
        pod.created,
    )
}
