//! What of a run's pod the controller looks at, read off the Pod once. Pure: it judges nothing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus,
};

use crate::names::{finalizers, labels};
use crate::pod::containers;

/// A run's pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PodView {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Uid of the run that it is for, from its label.
    pub run_uid: String,
    /// Its attempt, from its label.
    pub attempt: u32,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// It carries our finalizer.
    pub held: bool,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// It is being deleted, and nobody waits for its containers any more: the kubelet has reported
    /// them stopped, the node is gone, or somebody forced it.
    pub deleted_for_good: bool,
    /// `status.phase`.
    pub phase: String,
    /// `status.reason`, e.g. `Evicted`, `DeadlineExceeded`.
    pub reason: Option<String>,
    /// `status.message`.
    pub message: Option<String>,
    /// Reason of a `DisruptionTarget` condition that is true.
    pub disruption: Option<String>,
    /// `PodScheduled` is true.
    pub scheduled: bool,
    /// Why it is not scheduled, in the scheduler's words.
    pub unschedulable: Option<String>,
    /// Its volumes are mounted and its sandbox runs.
    pub sandbox: bool,
    /// The supervisor.
    pub supervisor: ContainerView,
    /// The agent.
    pub agent: ContainerView,
}

/// A container of a run's pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ContainerView {
    /// Its image, as the pod names it.
    pub image: String,
    /// Reason and message of its waiting.
    pub waiting: Option<(String, String)>,
    /// Since when it runs.
    pub running: Option<Timestamp>,
    /// Its startup probe has succeeded (or it has none and runs).
    pub started: bool,
    /// How it ended.
    pub ended: Option<Ended>,
    /// How it ended before it was restarted.
    pub last: Option<Ended>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Ended {
    /// Exit code.
    pub code: i32,
    /// E.g. `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it had started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

impl PodView {
    /// Reads the pod.
    pub(super) fn read(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let none = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&none);
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let condition = |kind: &str| conditions.iter().find(|c| c.type_ == kind);
        let is_true = |kind: &str| condition(kind).is_some_and(|c| c.status == "True");
        let label = |key: &str| {
            meta.labels
                .as_ref()
                .and_then(|labels| labels.get(key))
                .cloned()
                .unwrap_or_default()
        };
        let said = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let container = |name: &str| {
            [&status.init_container_statuses, &status.container_statuses]
                .into_iter()
                .flatten()
                .flatten()
                .find(|status| status.name == name)
                .map(ContainerView::read)
                .unwrap_or_default()
        };
        let deleting = meta.deletion_timestamp.is_some();
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            run_uid: label(labels::RUN_UID),
            attempt: label(labels::ATTEMPT).parse().unwrap_or(0),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            held: meta
                .finalizers
                .as_ref()
                .is_some_and(|all| all.iter().any(|one| one == finalizers::POD)),
            deleting,
            deleted_for_good: deleting && meta.deletion_grace_period_seconds.unwrap_or(1) == 0,
            phase: status.phase.clone().unwrap_or_default(),
            reason: said(&status.reason),
            message: said(&status.message),
            disruption: condition("DisruptionTarget")
                .filter(|c| c.status == "True")
                .map(|c| c.reason.clone().unwrap_or_default()),
            scheduled: is_true("PodScheduled"),
            unschedulable: condition("PodScheduled")
                .filter(|c| c.status == "False")
                .map(|c| c.message.clone().unwrap_or_default()),
            sandbox: is_true("PodReadyToStartContainers"),
            supervisor: container(containers::SUPERVISOR),
            agent: container(containers::AGENT),
        }
    }

    /// Nothing of it runs any more, nor will.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
            || self.deleted_for_good
            || (self.agent.ended.is_some() && self.supervisor.ended.is_some())
    }

    /// It waits for its node, or its node has said nothing of it yet; and nothing is wrong.
    pub(super) fn is_merely_made(&self) -> bool {
        let is_untold = |container: &ContainerView| *container == ContainerView::default();
        self.phase == "Pending"
            && !self.deleting
            && !self.sandbox
            && self.unschedulable.is_none()
            && is_untold(&self.supervisor)
            && is_untold(&self.agent)
    }

    /// When the agent's container first started, should it have.
    pub(super) fn agent_started(&self) -> Option<Timestamp> {
        self.agent
            .running
            .or_else(|| self.agent.ended.as_ref().and_then(|ended| ended.started))
    }

    /// When the last of its containers ended.
    pub(super) fn finished(&self) -> Option<Timestamp> {
        [&self.agent, &self.supervisor]
            .into_iter()
            .filter_map(|container| container.ended.as_ref().and_then(|ended| ended.finished))
            .max()
    }
}

impl ContainerView {
    fn read(status: &ContainerStatus) -> Self {
        let (state, last) = (status.state.as_ref(), status.last_state.as_ref());
        let running = state
            .and_then(|state| state.running.as_ref())
            .map(|running| running.started_at.as_ref().map(|time| time.0));
        Self {
            image: status.image.clone(),
            waiting: state
                .and_then(|state| state.waiting.as_ref())
                .map(|waiting| {
                    (
                        waiting.reason.clone().unwrap_or_default(),
                        waiting.message.clone().unwrap_or_default(),
                    )
                }),
            running: running.map(|since| since.unwrap_or(Timestamp::UNIX_EPOCH)),
            started: status.started.unwrap_or(false),
            ended: state.and_then(Ended::read),
            last: last.and_then(Ended::read),
        }
    }
}

impl Ended {
    fn read(state: &ContainerState) -> Option<Self> {
        let ContainerStateTerminated {
            exit_code,
            reason,
            message,
            started_at,
            finished_at,
            ..
        } = state.terminated.as_ref()?;
        // The kubelet writes the zero time where it knows none.
        let known = |time: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            time.as_ref()
                .map(|time| time.0)
                .filter(|time| *time > Timestamp::UNIX_EPOCH)
        };
        Some(Self {
            code: *exit_code,
            reason: reason.clone().unwrap_or_default(),
            message: message.clone().unwrap_or_default(),
            started: known(started_at),
            finished: known(finished_at),
        })
    }
}
