//! Carries a plan out. Effects only, in the plan's order, and no choices: what could have been known
//! before is in the plan.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ApiResource;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::api::run::WorkflowRunStatus;
use crate::api::workspace::WorkspaceSpec;
use crate::api::{WorkflowRun, Workspace};
use crate::names::{FIELD_MANAGER, finalizers, labels};

use super::context::Context;
use super::error::{Error, answer};
use super::observe;
use super::shapes::{Again, Ledger, NewPod, Note, Plan, PodRef, Unprotect};
use super::validate::WorkspaceWanted;
use super::{end, naming, pod, watches};

/// Longest wait before the ledger is tried again.
const LEDGER_PATIENCE: Duration = Duration::from_secs(30);

/// What came of a plan.
pub(super) enum Applied {
    /// It is carried out.
    Done(Action),
    /// The API server refused the pod, which is remembered: another plan is needed.
    Refused,
}

/// Carries the plan out.
pub(super) async fn apply(
    context: &Context,
    run: Arc<WorkflowRun>,
    plan: Plan,
    now: Timestamp,
) -> Result<Applied, Error> {
    let Plan {
        protect,
        verify,
        workspace,
        pod,
        ledger,
        mut status,
        status_unrecorded,
        event,
        release,
        delete,
        unprotect,
        again,
    } = plan;
    let namespace = run.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let uid = run.uid().ok_or(Error::Incomplete("a uid"))?;
    let api: Api<WorkflowRun> = Api::namespaced(context.client.clone(), &namespace);
    let mut run = run;
    if protect {
        // It carries the resource version, and so verifies as well.
        run = finalizers_of(context, &api, &run, true).await?;
    } else if verify {
        still_the_newest(&api, &run).await?;
    }
    if let Some(wanted) = workspace {
        make_workspace(context, &namespace, wanted).await?;
    }
    if let Some(new) = pod {
        match make_pod(context, &namespace, &run, new).await? {
            Made::Pod(made) => {
                context.setbacks.forget(&uid);
                if let Some(status) = &mut status {
                    status.pod_uid = Some(made);
                }
            }
            Made::Refused { message, for_good } => {
                context.setbacks.refuse(&uid, message, for_good, now);
                return Ok(Applied::Refused);
            }
        }
    }
    let (recorded, later) = match ledger {
        Ledger::Nothing => (false, None),
        Ledger::Later(record) => (false, Some(record)),
        Ledger::Final(record) => (context.mirror.now(&record).await, None),
    };
    let awaits_record = unprotect == Unprotect::WhenRecorded;
    let status = if awaits_record && !recorded {
        status_unrecorded
    } else {
        status
    };
    if let Some(status) = status {
        run = write_status(context, &run, &namespace, *status).await?;
    }
    if let Some(record) = later {
        context.mirror.later(record);
    }
    if let Some(note) = event {
        tell(context, &run, note);
    }
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), &namespace);
    for pod in &release {
        release_pod(context, &pods, &namespace, pod).await?;
    }
    for pod in &delete {
        delete_pod(context, &pods, &namespace, pod).await?;
    }
    let lets_go = match unprotect {
        Unprotect::No => false,
        Unprotect::WhenRecorded => recorded,
        Unprotect::Now => true,
    };
    if lets_go && run.finalizers().iter().any(|one| one == finalizers::RUN) {
        finalizers_of(context, &api, &run, false).await?;
        context.setbacks.forget(&uid);
    }
    if awaits_record && !recorded {
        return Ok(Applied::Done(Action::requeue(
            context.setbacks.failed(&uid, LEDGER_PATIENCE),
        )));
    }
    Ok(Applied::Done(match again {
        Again::OnChange => Action::await_change(),
        Again::After(wait) => Action::requeue(wait),
    }))
}

fn post() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    }
}

fn merge() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

async fn still_the_newest(api: &Api<WorkflowRun>, run: &WorkflowRun) -> Result<(), Error> {
    let name = run.name_any();
    let live = api
        .get_metadata_opt(&name)
        .await
        .map_err(Error::doing(format!("look at run {name}")))?;
    let same = live.is_some_and(|live| {
        live.metadata.resource_version == run.metadata.resource_version
            && live.metadata.uid == run.metadata.uid
    });
    if same { Ok(()) } else { Err(Error::Stale) }
}

/// Puts our finalizer on the run, or takes it off.
async fn finalizers_of(
    context: &Context,
    api: &Api<WorkflowRun>,
    run: &WorkflowRun,
    hold: bool,
) -> Result<Arc<WorkflowRun>, Error> {
    let name = run.name_any();
    let mut all: Vec<String> = run
        .finalizers()
        .iter()
        .filter(|one| *one != finalizers::RUN)
        .cloned()
        .collect();
    if hold {
        all.push(finalizers::RUN.to_owned());
    }
    let patch = json!({"metadata": {
        "uid": run.metadata.uid,
        "resourceVersion": run.metadata.resource_version,
        "finalizers": all,
    }});
    let result = api.patch(&name, &merge(), &Patch::Merge(&patch)).await;
    match result {
        Ok(mut written) => {
            watches::strip_run(&mut written);
            Ok(context.written.runs.put(written))
        }
        // Without finalizers it went at once.
        Err(error) if !hold && answer(&error).is_some_and(kube::core::Status::is_not_found) => {
            Ok(Arc::new(run.clone()))
        }
        Err(error) => Err(Error::doing(format!("change the finalizers of run {name}"))(error)),
    }
}

async fn make_workspace(
    context: &Context,
    namespace: &str,
    wanted: WorkspaceWanted,
) -> Result<(), Error> {
    let WorkspaceWanted {
        name,
        size,
        storage_class_name,
    } = wanted;
    let mut workspace = Workspace::new(
        &name,
        WorkspaceSpec {
            size,
            storage_class_name,
        },
    );
    workspace.metadata.namespace = Some(namespace.to_owned());
    workspace.metadata.finalizers = Some(vec![finalizers::WORKSPACE.to_owned()]);
    workspace.metadata.labels = Some(
        [(
            labels::MANAGED_BY.to_owned(),
            labels::MANAGED_BY_VALUE.to_owned(),
        )]
        .into(),
    );
    let api: Api<Workspace> = Api::namespaced(context.client.clone(), namespace);
    match api.create(&post(), &workspace).await {
        Ok(mut made) => {
            made.metadata.managed_fields = None;
            context.written.workspaces.put(made);
            Ok(())
        }
        Err(error) if answer(&error).is_some_and(kube::core::Status::is_already_exists) => Ok(()),
        Err(error) => Err(Error::doing(format!("make Workspace {name}"))(error)),
    }
}

enum Made {
    Pod(String),
    Refused { message: String, for_good: bool },
}

async fn make_pod(
    context: &Context,
    namespace: &str,
    run: &WorkflowRun,
    new: NewPod,
) -> Result<Made, Error> {
    let NewPod {
        attempt,
        resolved,
        claim,
    } = new;
    let ca = context.server_ca.borrow().clone().unwrap_or_default();
    let pod = pod::build(
        run,
        &resolved,
        attempt,
        claim.as_deref(),
        &ca,
        &context.config,
    )?;
    let name = naming::pod(&resolved.name, attempt);
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let error = match api.create(&post(), &pod).await {
        Ok(mut made) => {
            context.counters.pods.fetch_add(1, Ordering::Relaxed);
            watches::strip_pod(&mut made);
            let uid = made.uid().ok_or(Error::Incomplete("a uid"))?;
            context.written.pods.put(made);
            return Ok(Made::Pod(uid));
        }
        Err(error) => error,
    };
    let Some(status) = answer(&error) else {
        return Err(Error::doing(format!("make pod {name}"))(error));
    };
    if status.is_already_exists() {
        let there = observe::live_pod(context, namespace, &name)
            .await?
            .ok_or(Error::Stale)?;
        let ours = there.labels().get(labels::RUN_UID) == run.metadata.uid.as_ref();
        return Ok(match there.uid().filter(|_| ours) {
            Some(uid) => Made::Pod(uid),
            None => Made::Refused {
                message: format!(
                    "a pod named {name} is in the way that is not this run's; delete it"
                ),
                for_good: false,
            },
        });
    }
    // The namespace is going, the API server is busy: not the pod's business.
    if status.code >= 500 || status.code == 429 || status.is_conflict() {
        return Err(Error::doing(format!("make pod {name}"))(error));
    }
    let for_good = status.reason == "Invalid"
        && status
            .details
            .as_ref()
            .is_some_and(|d| !d.causes.is_empty());
    Ok(Made::Refused {
        message: end::sentence(&status.message),
        for_good,
    })
}

/// Writes the whole status, against the resource version that it was made from.
async fn write_status(
    context: &Context,
    run: &WorkflowRun,
    namespace: &str,
    status: WorkflowRunStatus,
) -> Result<Arc<WorkflowRun>, Error> {
    let name = run.name_any();
    let resource = ApiResource::erase::<WorkflowRun>(&());
    let mut object = DynamicObject::new(&name, &resource).within(namespace);
    object.metadata.uid = run.metadata.uid.clone();
    object.metadata.resource_version = run.metadata.resource_version.clone();
    object.data = json!({"status": status});
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let written = api
        .replace_status(&name, &post(), &object)
        .await
        .map_err(Error::doing(format!("write the status of run {name}")))?;
    let mut new = run.clone();
    new.metadata.resource_version = written.metadata.resource_version;
    new.status = Some(status);
    Ok(context.written.runs.put(new))
}

/// Tells people, without waiting for it: Events are no part of the run's state.
fn tell(context: &Context, run: &WorkflowRun, note: Note) {
    let Note {
        warning,
        reason,
        message,
    } = note;
    let recorder = context.recorder.clone();
    let reference = run.object_ref(&());
    let event = Event {
        type_: if warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        action: reason.clone(),
        reason,
        note: Some(message),
        secondary: None,
    };
    tokio::spawn(async move {
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(%error, "an Event was not taken");
        }
    });
}

async fn release_pod(
    context: &Context,
    api: &Api<Pod>,
    namespace: &str,
    pod: &PodRef,
) -> Result<(), Error> {
    let PodRef { name, uid } = pod;
    let patch = json!({"metadata": {
        "uid": uid,
        "$deleteFromPrimitiveList/finalizers": [finalizers::POD],
    }});
    match api.patch(name, &merge(), &Patch::Strategic(&patch)).await {
        Ok(mut released) => {
            let gone = released.finalizers().is_empty()
                && released.metadata.deletion_timestamp.is_some()
                && released.metadata.deletion_grace_period_seconds.unwrap_or(0) == 0;
            if gone {
                context.written.pods.bury(namespace, name, uid);
            } else {
                watches::strip_pod(&mut released);
                context.written.pods.put(released);
            }
            Ok(())
        }
        Err(error) if answer(&error).is_some_and(kube::core::Status::is_not_found) => {
            context.written.pods.bury(namespace, name, uid);
            Ok(())
        }
        Err(error) => Err(Error::doing(format!("let go of pod {name}"))(error)),
    }
}

async fn delete_pod(
    context: &Context,
    api: &Api<Pod>,
    namespace: &str,
    pod: &PodRef,
) -> Result<(), Error> {
    let PodRef { name, uid } = pod;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(name, &params).await {
        Ok(either) => {
            let left = either.left().filter(|left| {
                left.metadata.deletion_timestamp.is_some()
                    && (left.metadata.deletion_grace_period_seconds.unwrap_or(0) > 0
                        || !left.finalizers().is_empty())
            });
            match left {
                Some(mut left) => {
                    watches::strip_pod(&mut left);
                    context.written.pods.put(left);
                }
                None => context.written.pods.bury(namespace, name, uid),
            }
            Ok(())
        }
        Err(error)
            if answer(&error)
                .is_some_and(|status| status.is_not_found() || status.is_conflict()) =>
        {
            context.written.pods.bury(namespace, name, uid);
            Ok(())
        }
        Err(error) => Err(Error::doing(format!("delete pod {name}"))(error)),
    }
}
