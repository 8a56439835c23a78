//! Carries a plan out. Effects only, in the plan's order, and no choices: what could have been known
//! before is in the plan.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use kube::{Api, ResourceExt as _};

use crate::api::run::WorkflowRunStatus;
use crate::api::workspace::WorkspaceSpec;
use crate::api::{WorkflowRun, Workspace};
use crate::names::{finalizers, labels};

use super::context::Context;
use super::error::{Error, answer};
use super::observe;
use super::shapes::{Again, Ledger, NewPod, Plan, PodRef, Unprotect};
use super::validate::WorkspaceWanted;
use super::write::Writer;
use super::{end, naming, pod, watches};

/// Longest wait before the ledger is tried again.
const LEDGER_PATIENCE: Duration = Duration::from_secs(30);

/// What came of a plan.
pub(super) enum Applied {
    /// It is carried out; when to look again, should nothing happen before.
    Done(Option<Duration>),
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
        status,
        status_unrecorded,
        event,
        release,
        delete,
        unprotect,
        again,
    } = plan;
    let namespace = run.namespace().ok_or(Error::Incomplete("a namespace"))?;
    let uid = run.uid().ok_or(Error::Incomplete("a uid"))?;
    let mut run = run;
    if protect {
        // It carries the resource version, and so verifies as well.
        run = finalizer(context, &namespace, &run, true).await?;
    } else if verify {
        still_the_newest(context, &namespace, &run).await?;
    }
    if let Some(wanted) = workspace {
        make_workspace(context, &namespace, wanted).await?;
    }
    if let Some(new) = pod {
        match make_pod(context, &namespace, &run, new).await? {
            Made::Pod => context.setbacks.forget(&uid),
            Made::Refused { message, for_good } => {
                context.setbacks.refuse(&uid, message, for_good, now);
                return Ok(Applied::Refused);
            }
        }
    }
    let (recorded, later) = match ledger {
        Ledger::Nothing => (None, None),
        Ledger::Later(record) => (None, Some(record)),
        Ledger::Final(record) => (Some(context.mirror.now(&record).await), None),
    };
    let unrecorded = recorded == Some(false);
    let status = if unrecorded {
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
        context.teller.tell(&run, note);
    }
    for pod in &release {
        release_pod(context, &namespace, pod).await?;
    }
    for pod in &delete {
        delete_pod(context, &namespace, pod).await?;
    }
    let lets_go = match unprotect {
        Unprotect::No => false,
        Unprotect::WhenRecorded => recorded == Some(true),
        Unprotect::Now => true,
    };
    if lets_go && run.finalizers().iter().any(|one| one == finalizers::RUN) {
        finalizer(context, &namespace, &run, false).await?;
        context.setbacks.forget(&uid);
    }
    if unrecorded {
        let wait = context.setbacks.failed(&uid, LEDGER_PATIENCE);
        return Ok(Applied::Done(Some(wait)));
    }
    Ok(Applied::Done(match again {
        Again::OnChange => None,
        Again::After(wait) => Some(wait),
    }))
}

async fn still_the_newest(
    context: &Context,
    namespace: &str,
    run: &WorkflowRun,
) -> Result<(), Error> {
    let name = run.name_any();
    let api: Api<WorkflowRun> = Api::namespaced(context.client.clone(), namespace);
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
async fn finalizer(
    context: &Context,
    namespace: &str,
    run: &WorkflowRun,
    hold: bool,
) -> Result<Arc<WorkflowRun>, Error> {
    let written = Writer::<WorkflowRun>::new(&context.client, namespace)
        .finalizer(&run.metadata, finalizers::RUN, hold)
        .await
        .map_err(Error::doing(format!(
            "change the finalizers of run {}",
            run.name_any()
        )))?;
    let mut new = run.clone();
    let Some(meta) = written else {
        return Ok(Arc::new(new));
    };
    new.metadata = meta;
    watches::strip_run(&mut new);
    Ok(context.written.runs.put(new))
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
    let writer = Writer::new(&context.client, namespace);
    match writer.create(&workspace).await {
        Ok(meta) => {
            workspace.metadata = meta;
            context.written.workspaces.put(workspace);
            Ok(())
        }
        Err(error) if answer(&error).is_some_and(kube::core::Status::is_already_exists) => Ok(()),
        Err(error) => Err(Error::doing(format!("make Workspace {name}"))(error)),
    }
}

enum Made {
    Pod,
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
    let mut pod = pod::build(
        run,
        &resolved,
        attempt,
        claim.as_deref(),
        &ca,
        &context.config,
    )?;
    let name = naming::pod(&resolved.name, attempt);
    let writer = Writer::new(&context.client, namespace);
    let error = match writer.create(&pod).await {
        Ok(meta) => {
            context.counters.pods.fetch_add(1, Ordering::Relaxed);
            context.crowd.add();
            pod.metadata = meta;
            watches::strip_pod(&mut pod);
            context.written.pods.put(pod);
            return Ok(Made::Pod);
        }
        Err(error) => error,
    };
    let Some(status) = answer(&error) else {
        return Err(Error::doing(format!("make pod {name}"))(error));
    };
    if status.is_already_exists() {
        let mut there = observe::live_pod(context, namespace, &name)
            .await?
            .ok_or(Error::Stale)?;
        if there.labels().get(labels::RUN_UID) != run.metadata.uid.as_ref() {
            return Ok(Made::Refused {
                message: format!(
                    "a pod named {name} is in the way that is not this run's; delete it"
                ),
                for_good: false,
            });
        }
        // The cache doesn't have it yet.
        watches::strip_pod(&mut there);
        context.written.pods.put(there);
        return Ok(Made::Pod);
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

async fn write_status(
    context: &Context,
    run: &WorkflowRun,
    namespace: &str,
    status: WorkflowRunStatus,
) -> Result<Arc<WorkflowRun>, Error> {
    let written = Writer::<WorkflowRun>::new(&context.client, namespace)
        .status(&run.metadata, &status)
        .await
        .map_err(Error::doing(format!(
            "write the status of run {}",
            run.name_any()
        )))?;
    let mut new = run.clone();
    new.metadata.resource_version = written.resource_version;
    new.status = Some(status);
    Ok(context.written.runs.put(new))
}

async fn release_pod(context: &Context, namespace: &str, pod: &PodRef) -> Result<(), Error> {
    let PodRef { name, uid } = pod;
    let left = Writer::<Pod>::new(&context.client, namespace)
        .release(name, uid, finalizers::POD)
        .await
        .map_err(Error::doing(format!("let go of pod {name}")))?;
    remember(context, namespace, pod, left);
    Ok(())
}

async fn delete_pod(context: &Context, namespace: &str, pod: &PodRef) -> Result<(), Error> {
    let PodRef { name, uid } = pod;
    let left = Writer::<Pod>::new(&context.client, namespace)
        .delete(name, uid)
        .await
        .map_err(Error::doing(format!("delete pod {name}")))?;
    remember(context, namespace, pod, left);
    Ok(())
}

/// What is left of the pod after a write; what its containers do, the cache will tell.
fn remember(context: &Context, namespace: &str, pod: &PodRef, left: Option<ObjectMeta>) {
    let PodRef { name, uid } = pod;
    let Some(meta) = left else {
        context.written.pods.bury(namespace, name, uid);
        return;
    };
    if let Some(cached) = observe::cached_pod(context, namespace, name) {
        let mut pod = cached.as_ref().clone();
        pod.metadata = meta;
        watches::strip_pod(&mut pod);
        context.written.pods.put(pod);
    }
}
