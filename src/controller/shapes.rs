//! What goes into a plan and what comes out of it: the shapes that `observe`, `plan` and `apply` agree
//! on. Pure, and without behaviour.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::WorkflowRun;
use crate::api::run::WorkflowRunStatus;
use crate::ledger::records::RunRecord;

use super::trouble::{ClaimView, Sighting};
use super::validate::{Resolved, WorkspaceWanted};
use super::view::PodView;

/// What was observed of a run, with nothing left to look up.
#[derive(Clone, Debug)]
pub(super) struct Observed {
    /// The run, as new as anyone here has seen it.
    pub run: Arc<WorkflowRun>,
    /// The pod of the current attempt (the first, where there was none yet).
    pub pod: CurrentPod,
    /// Pods of earlier attempts that are still there.
    pub leftovers: Vec<PodView>,
    /// Events about the current pod, and about the run, where there is that pod.
    pub sightings: Vec<Sighting>,
    /// The run's Workspace, should it be there.
    pub workspace: Option<WorkspaceView>,
    /// The Workspace's claim, should it be there.
    pub claim: Option<ClaimView>,
    /// That the API server would not take the pod, should that be so.
    pub refusal: Option<Refusal>,
    /// The CA of Runledger's server, once there is one.
    pub server_ca: Option<Arc<str>>,
    /// Many pods are being made: what can wait had better.
    pub crowded: bool,
}

/// The pod of the current attempt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum CurrentPod {
    /// There was none yet.
    None,
    /// There was one, and the API server has been asked: it is there no more.
    Gone,
    /// It is there.
    There(Box<PodView>),
    /// A pod of its name is there, and it isn't ours.
    Foreign(String),
}

/// What of a Workspace a run looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct WorkspaceView {
    /// `metadata.uid`.
    pub uid: String,
    /// Uid of the run that may use it.
    pub holder: Option<String>,
    /// Name of that run.
    pub holder_name: Option<String>,
    /// Its claim's name, once that is its own.
    pub claim_name: Option<String>,
    /// What keeps its claim from being its own, should that be so.
    pub trouble: Option<String>,
    /// It is being deleted.
    pub deleting: bool,
    /// Size of its volume.
    pub size: String,
    /// StorageClass of its volume.
    pub storage_class_name: Option<String>,
}

/// The API server's answer to a pod that it would not take.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    /// Its words.
    pub message: String,
    /// The pod as such is wrong, so that no waiting helps.
    pub for_good: bool,
    /// When to try again.
    pub again: Timestamp,
}

/// What is to be done, in the order of its fields. Where one fails, the rest is left for the next
/// time.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Plan {
    /// Put our finalizer on the run.
    pub protect: bool,
    /// Ask the API server first whether this run is still the newest: what follows could not be
    /// taken back.
    pub verify: bool,
    /// Make the Workspace.
    pub workspace: Option<WorkspaceWanted>,
    /// Make the pod of the attempt.
    pub pod: Option<NewPod>,
    /// Write the row of the ledger.
    pub ledger: Ledger,
    /// Write the status.
    pub status: Option<Box<WorkflowRunStatus>>,
    /// Write this status instead, should the ledger not have taken the final row.
    pub status_unrecorded: Option<Box<WorkflowRunStatus>>,
    /// Tell it as an Event.
    pub event: Option<Note>,
    /// Take our finalizer off these pods.
    pub release: Vec<PodRef>,
    /// Delete these pods.
    pub delete: Vec<PodRef>,
    /// Take our finalizer off the run.
    pub unprotect: Unprotect,
    /// When to look again, should nothing happen before.
    pub again: Again,
}

/// A pod to be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NewPod {
    /// Its attempt.
    pub attempt: u32,
    /// The run, as it is to be carried out.
    pub resolved: Box<Resolved>,
    /// The claim of its volume; an emptyDir where absent.
    pub claim: Option<String>,
}

/// What is to be written into the ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Ledger {
    /// Nothing.
    #[default]
    Nothing,
    /// This, when there is time for it.
    Later(Box<RunRecord>),
    /// This, before anything else goes on.
    Final(Box<RunRecord>),
}

/// Whether our finalizer comes off the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Unprotect {
    /// It stays.
    #[default]
    No,
    /// Once `ledger` is written.
    WhenRecorded,
    /// Whatever the ledger says.
    Now,
}

/// When to look again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Again {
    /// When something changes.
    #[default]
    OnChange,
    /// After that time.
    After(Duration),
}

/// An Event for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Note {
    /// Something is wrong.
    pub warning: bool,
    /// One of [`reasons`].
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// A pod, exactly that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodRef {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl From<&PodView> for PodRef {
    fn from(pod: &PodView) -> Self {
        Self {
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        }
    }
}
