//! Carries the plan for a Workspace out. Effects only.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Api, Resource as _, ResourceExt as _};

use crate::api::Workspace;
use crate::api::workspace::WorkspaceStatus;
use crate::controller::context::Context;
use crate::controller::error::{Error, answer};
use crate::controller::naming;
use crate::controller::trouble::ClaimOwner;
use crate::controller::write::Writer;
use crate::names::{finalizers, labels};

use super::plan::Plan;

/// What came of a plan.
pub(super) enum Applied {
    /// It is carried out; when to look again, should nothing happen before.
    Done(Option<Duration>),
    /// A claim of that name is there already and not the Workspace's: another plan is needed.
    InTheWay(Box<PersistentVolumeClaim>),
}

/// Carries the plan out.
pub(super) async fn apply(
    context: &Context,
    workspace: Arc<Workspace>,
    plan: Plan,
) -> Result<Applied, Error> {
    let Plan {
        protect,
        claim,
        status,
        unprotect,
        again,
    } = plan;
    let namespace = workspace
        .namespace()
        .ok_or(Error::Incomplete("a namespace"))?;
    let mut workspace = workspace;
    if protect {
        workspace = finalizer(context, &workspace, &namespace, true).await?;
    }
    if let Some(claim) = claim
        && let Some(there) = make_claim(context, &workspace, &namespace, &claim).await?
    {
        return Ok(Applied::InTheWay(Box::new(there)));
    }
    if let Some(status) = status {
        workspace = write_status(context, &workspace, &namespace, *status).await?;
    }
    if unprotect {
        finalizer(context, &workspace, &namespace, false).await?;
    }
    Ok(Applied::Done(again))
}

async fn finalizer(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    hold: bool,
) -> Result<Arc<Workspace>, Error> {
    let name = workspace.name_any();
    let written = Writer::<Workspace>::new(&context.client, namespace)
        .finalizer(&workspace.metadata, finalizers::WORKSPACE, hold)
        .await
        .map_err(Error::doing(format!(
            "change the finalizers of Workspace {name}"
        )))?;
    let mut new = workspace.clone();
    match written {
        Some(meta) => {
            new.metadata = meta;
            Ok(context.written.workspaces.put(new))
        }
        None => {
            let uid = workspace.uid().unwrap_or_default();
            context.written.workspaces.bury(namespace, &name, &uid);
            Ok(Arc::new(new))
        }
    }
}

/// Makes the claim, or finds it made. Returns one that is there and not the Workspace's.
async fn make_claim(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    name: &str,
) -> Result<Option<PersistentVolumeClaim>, Error> {
    // The cache may be behind; a claim that was asked for once is looked for before it is asked for
    // again.
    let asked = workspace
        .status
        .as_ref()
        .is_some_and(|status| !status.conditions.is_empty());
    if asked && let Some(there) = live_claim(context, namespace, name).await? {
        return Ok(checked(context, workspace, there));
    }
    let mut claim = claim(workspace, namespace, name);
    let writer = Writer::new(&context.client, namespace);
    match writer.create(&claim).await {
        Ok(meta) => {
            claim.metadata = meta;
            context.written.claims.put(claim);
            Ok(None)
        }
        Err(error) if answer(&error).is_some_and(kube::core::Status::is_already_exists) => {
            let there = live_claim(context, namespace, name).await?;
            Ok(checked(context, workspace, there.ok_or(Error::Stale)?))
        }
        Err(error) => Err(Error::doing(format!("make claim {name}"))(error)),
    }
}

async fn live_claim(
    context: &Context,
    namespace: &str,
    name: &str,
) -> Result<Option<PersistentVolumeClaim>, Error> {
    Api::namespaced(context.client.clone(), namespace)
        .get_opt(name)
        .await
        .map_err(Error::doing(format!("look for claim {name}")))
}

/// Remembers the claim where it is the Workspace's, or else gives it back.
fn checked(
    context: &Context,
    workspace: &Workspace,
    claim: PersistentVolumeClaim,
) -> Option<PersistentVolumeClaim> {
    if ClaimOwner::of(&claim.metadata, &workspace.metadata) != ClaimOwner::Workspace {
        return Some(claim);
    }
    context.written.claims.put(claim);
    None
}

/// ReadWriteOnce: every driver knows it, and it is the holder that keeps a second pod away.
fn claim(workspace: &Workspace, namespace: &str, name: &str) -> PersistentVolumeClaim {
    let own = workspace.name_any();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(
                [
                    (
                        labels::MANAGED_BY.to_owned(),
                        labels::MANAGED_BY_VALUE.to_owned(),
                    ),
                    (labels::WORKSPACE.to_owned(), naming::label(&own)),
                ]
                .into(),
            ),
            owner_references: Some(vec![OwnerReference {
                api_version: Workspace::api_version(&()).into_owned(),
                kind: Workspace::kind(&()).into_owned(),
                name: own,
                uid: workspace.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: workspace.spec.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(
                    [("storage".to_owned(), Quantity(workspace.spec.size.clone()))].into(),
                ),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

async fn write_status(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    status: WorkspaceStatus,
) -> Result<Arc<Workspace>, Error> {
    let written = Writer::<Workspace>::new(&context.client, namespace)
        .status(&workspace.metadata, &status)
        .await
        .map_err(Error::doing(format!(
            "write the status of Workspace {}",
            workspace.name_any()
        )))?;
    let mut new = workspace.clone();
    new.metadata.resource_version = written.resource_version;
    new.status = Some(status);
    Ok(context.written.workspaces.put(new))
}
