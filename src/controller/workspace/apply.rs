//! Carries the plan for a Workspace out. Effects only.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::json;

use crate::api::Workspace;
use crate::api::workspace::WorkspaceStatus;
use crate::controller::context::Context;
use crate::controller::error::{Error, answer};
use crate::controller::naming;
use crate::names::{FIELD_MANAGER, finalizers, labels};

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

fn post() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    }
}

async fn finalizer(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    hold: bool,
) -> Result<Arc<Workspace>, Error> {
    let name = workspace.name_any();
    let mut all: Vec<String> = workspace
        .finalizers()
        .iter()
        .filter(|one| *one != finalizers::WORKSPACE)
        .cloned()
        .collect();
    if hold {
        all.push(finalizers::WORKSPACE.to_owned());
    }
    let patch = json!({"metadata": {
        "uid": workspace.metadata.uid,
        "resourceVersion": workspace.metadata.resource_version,
        "finalizers": all,
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<Workspace> = Api::namespaced(context.client.clone(), namespace);
    match api.patch(&name, &params, &Patch::Merge(&patch)).await {
        Ok(written) if hold => Ok(context.written.workspaces.put(stripped(written))),
        Ok(written) => {
            context
                .written
                .workspaces
                .bury(namespace, &name, &written.uid().unwrap_or_default());
            Ok(Arc::new(written))
        }
        Err(error) if !hold && answer(&error).is_some_and(kube::core::Status::is_not_found) => {
            Ok(Arc::new(workspace.clone()))
        }
        Err(error) => Err(Error::doing(format!(
            "change the finalizers of Workspace {name}"
        ))(error)),
    }
}

fn stripped(mut workspace: Workspace) -> Workspace {
    workspace.metadata.managed_fields = None;
    workspace
}

async fn make_claim(
    context: &Context,
    workspace: &Workspace,
    namespace: &str,
    name: &str,
) -> Result<(), Error> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    // The cache may be behind; a claim that was asked for once is looked for before it is asked for
    // again.
    let asked = workspace
        .status
        .as_ref()
        .is_some_and(|status| status.claim_name.is_some());
    if asked {
        let there = api
            .get_opt(name)
            .await
            .map_err(Error::doing(format!("look for claim {name}")))?;
        if let Some(there) = there {
            context.written.claims.put(there);
            return Ok(());
        }
    }
    match api
        .create(&post(), &claim(workspace, namespace, name))
        .await
    {
        Ok(mut made) => {
            made.metadata.managed_fields = None;
            context.written.claims.put(made);
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
    let name = workspace.name_any();
    let resource = ApiResource::erase::<Workspace>(&());
    let mut object = DynamicObject::new(&name, &resource).within(namespace);
    object.metadata.uid = workspace.metadata.uid.clone();
    object.metadata.resource_version = workspace.metadata.resource_version.clone();
    object.data = json!({"status": status});
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), namespace, &resource);
    let written = api
        .replace_status(&name, &post(), &object)
        .await
        .map_err(Error::doing(format!(
            "write the status of Workspace {name}"
        )))?;
    let mut new = workspace.clone();
    new.metadata.resource_version = written.metadata.resource_version;
    new.status = Some(status);
    Ok(context.written.workspaces.put(new))
}
