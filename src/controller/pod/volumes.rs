//! The volumes of a run's pod. Pure.

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIProjection, DownwardAPIVolumeFile, EmptyDirVolumeSource,
    KeyToPath, ObjectFieldSelector, PersistentVolumeClaimVolumeSource, ProjectedVolumeSource,
    SecretProjection, SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::controller::validate::{Resolved, Task};
use crate::names::{TOKEN_AUDIENCE, annotations};

/// All of them; the workspace is that claim, or an emptyDir where absent.
pub(super) fn volumes(resolved: &Resolved, claim: Option<&str>, tmp_size: &str) -> Vec<Volume> {
    let mut volumes = vec![
        workspace(resolved, claim),
        empty("bin", None, None),
        empty("door", Some("Memory"), Some("1Mi")),
        empty("agent-tmp", None, Some(tmp_size)),
        given_volume(resolved),
        model_volume(resolved),
    ];
    if let Some(secret) = &resolved.repository_secret {
        volumes.push(Volume {
            name: "git".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.clone()),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    if let Task::ConfigMap { name, key } = &resolved.task {
        volumes.push(Volume {
            name: "task".to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: name.clone(),
                items: Some(vec![item(key, "task")]),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

fn workspace(resolved: &Resolved, claim: Option<&str>) -> Volume {
    match claim {
        Some(claim) => Volume {
            name: "workspace".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: None,
            }),
            ..Volume::default()
        },
        None => empty("workspace", None, Some(&resolved.size)),
    }
}

/// What is always there: the assignment, the task and the token. Secrets are apart, since the kubelet
/// renews all of a volume or nothing, and the token has to be renewed also where a Secret is gone.
fn given_volume(resolved: &Resolved) -> Volume {
    let file = |path: &str, annotation: &str| DownwardAPIVolumeFile {
        path: path.to_owned(),
        field_ref: Some(ObjectFieldSelector {
            api_version: None,
            field_path: format!("metadata.annotations['{annotation}']"),
        }),
        ..DownwardAPIVolumeFile::default()
    };
    let mut items = vec![file("assignment", annotations::ASSIGNMENT)];
    if matches!(resolved.task, Task::Inline(_)) {
        items.push(file("task", annotations::TASK));
    }
    let told = VolumeProjection {
        downward_api: Some(DownwardAPIProjection { items: Some(items) }),
        ..VolumeProjection::default()
    };
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            audience: Some(TOKEN_AUDIENCE.to_owned()),
            expiration_seconds: Some(3600),
            path: "token".to_owned(),
        }),
        ..VolumeProjection::default()
    };
    projected("given", vec![told, token])
}

/// The key is asked for by name, so that the kubelet says when it is missing; `hosts` may be.
fn model_volume(resolved: &Resolved) -> Volume {
    let secret = |key: &str, optional: bool| VolumeProjection {
        secret: Some(SecretProjection {
            name: resolved.model_secret.clone(),
            items: Some(vec![item(key, key)]),
            optional: Some(optional),
        }),
        ..VolumeProjection::default()
    };
    let key = secret("ANTHROPIC_API_KEY", false);
    projected("model", vec![key, secret("hosts", true)])
}

fn projected(name: &str, sources: Vec<VolumeProjection>) -> Volume {
    Volume {
        name: name.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(sources),
        }),
        ..Volume::default()
    }
}

fn item(key: &str, path: &str) -> KeyToPath {
    KeyToPath {
        key: key.to_owned(),
        path: path.to_owned(),
        mode: None,
    }
}

fn empty(name: &str, medium: Option<&str>, limit: Option<&str>) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: medium.map(str::to_owned),
            size_limit: limit.map(|limit| Quantity(limit.to_owned())),
        }),
        ..Volume::default()
    }
}
