//! Carries the plan for a Workspace out. Effects only.

use std::sync::Arc;

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
use crate::controller::write::Writer;
use crate::names::{finalizers, labels};

use super::plan::Plan;

/// Carries the plan out.
pub(super) async fn apply(
    context: &Context,
    workspace: Arc<Workspace>,
    plan: Plan,
) -> Result<(), Error> {
    let Plan {
        protect,
        claim,
        status,
        unprotect,
    } = plan;
    let namespace = workspace
        .namespace()
        .ok_or(Error::Incomplete("a namespace"))?;
    let mut workspace = workspace;
    if protect {
        workspace = finalizer(context, &workspace, &namespace, true).await?;
    }
    if let Some(claim) = claim {
        make_claim(context, &workspace, &namespace, &claim).await?;
    }
    if let Some(status) = status {
        workspace = write_status(context, &workspace, &namespace, *status).await?;
    }
    if unprotect {
        finalizer(context, &workspace, &namespace, false).await?;
    }
    Ok(())
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

async fn make_claim(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    name: &str,
) -> Result<(), Error> {
    // The cache may be behind; a claim that was asked for once is looked for before it is asked for
    // again.
    let asked = workspace
        .status
        .as_ref()
        .is_some_and(|status| status.claim_name.is_some());
    if asked {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
        let there = api
            .get_opt(name)
            .await
            .map_err(Error::doing(format!("look for claim {name}")))?;
        if let Some(there) = there {
            context.written.claims.put(there);
            return Ok(());
        }
    }
    let mut claim = claim(workspace, namespace, name);
    let writer = Writer::new(&context.client, namespace);
    match writer.create(&claim).await {
        Ok(meta) => {
            claim.metadata = meta;
            context.written.claims.put(claim);
            Ok(())
        }
        Err(error) if answer(&error).is_some_and(kube::core::Status::is_already_exists) => Ok(()),
        Err(error) => Err(Error::doing(format!("make claim {name}"))(error)),
    }
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
