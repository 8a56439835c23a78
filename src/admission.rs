//! The chart's MutatingAdmissionPolicy, which gives runs their finalizer as they are made: puts it in
//! force, and takes it out of force. Owns its binding; what the policy does is the chart's, and what is
//! done where there is none is the controller's.
//!
//! The binding is not the chart's, because it must not come at once: until an API server has read the
//! schema of a definition that was just made (it asks for schemas each 5 s), it answers 503 to each new
//! object of it that a bound policy matches, whatever the `failurePolicy`
//! (`apiserver/pkg/admission/plugin/policy/mutating`, `patch/typeconverter.go`).

use std::time::Duration;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::names::{ADMISSION_POLICY, FIELD_MANAGER, labels};

const GROUP: &str = "admissionregistration.k8s.io";
const POLICY: &str = "MutatingAdmissionPolicy";
const BINDING: &str = "MutatingAdmissionPolicyBinding";
/// How long an API server that lists runs may take until its policies know their schema, with room to
/// spare for one that is slow, or one of several.
const SETTLED: Duration = Duration::from_secs(30);

/// Version of the API that the policy is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Version {
    /// From Kubernetes 1.36 on.
    V1,
    /// From Kubernetes 1.34 on, where it is turned on.
    V1beta1,
}

impl Version {
    const ALL: [Self; 2] = [Self::V1, Self::V1beta1];

    fn resource(self, kind: &str, plural: &str) -> ApiResource {
        let version = match self {
            Self::V1 => "v1",
            Self::V1beta1 => "v1beta1",
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(GROUP, version, kind), plural)
    }

    fn policies(self) -> ApiResource {
        self.resource(POLICY, "mutatingadmissionpolicies")
    }

    fn bindings(self) -> ApiResource {
        self.resource(BINDING, "mutatingadmissionpolicybindings")
    }
}

/// Why the policy is not in force yet.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot {0} {BINDING} {ADMISSION_POLICY}")]
    Binding(&'static str, #[source] kube::Error),
    #[error("cannot look at {POLICY} {ADMISSION_POLICY}")]
    Policy(#[source] kube::Error),
    #[error("there is no {POLICY} {ADMISSION_POLICY}; the chart has it")]
    Missing,
}

/// Binds the policy, once the API server has listed runs for long enough; to be called when it first
/// has. Ends when the policy is bound, and tries for as long as it is not.
///
/// A binding that somebody deletes afterwards is not made again before the next controller starts.
pub async fn bind(client: &Client, version: Version) {
    let mut last = None;
    loop {
        tokio::time::sleep(SETTLED).await;
        match look(client, version).await {
            Ok(()) => return,
            Err(error) => {
                let said = error.to_string();
                // Once per cause, not each time.
                if last.as_ref() != Some(&said) {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(error, "new runs get their finalizer from the controller");
                    last = Some(said);
                }
            }
        }
    }
}

async fn look(client: &Client, version: Version) -> Result<(), Error> {
    let kind = version.bindings();
    let bindings: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let there = bindings.get_metadata_opt(ADMISSION_POLICY).await;
    if there
        .map_err(|error| Error::Binding("look at", error))?
        .is_some()
    {
        return Ok(());
    }
    let owner = version.policies();
    let policies: Api<DynamicObject> = Api::all_with(client.clone(), &owner);
    let policy = policies.get_metadata_opt(ADMISSION_POLICY).await;
    let policy = policy.map_err(Error::Policy)?.ok_or(Error::Missing)?;
    let binding = Patch::Apply(json!({
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {
            "name": ADMISSION_POLICY,
            "labels": {labels::MANAGED_BY: labels::MANAGED_BY_VALUE},
            // It goes when the chart's policy does.
            "ownerReferences": [{
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": ADMISSION_POLICY,
                "uid": policy.uid(),
            }],
        },
        "spec": {"policyName": ADMISSION_POLICY},
    }));
    // Applied, not created: rights to create can't be limited to a name, rights to apply can.
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let made = bindings.patch(ADMISSION_POLICY, &params, &binding);
    made.await.map_err(|error| Error::Binding("make", error))?;
    tracing::info!("new runs have their finalizer from the API server from now on");
    Ok(())
}

/// Takes the binding away, in whichever version there is one; answers whether there was.
///
/// # Errors
///
/// What the API server answers, but for that it is not there.
pub async fn unbind(client: &Client) -> Result<bool, kube::Error> {
    let mut there = false;
    for version in Version::ALL {
        let bindings: Api<DynamicObject> = Api::all_with(client.clone(), &version.bindings());
        match bindings
            .delete(ADMISSION_POLICY, &DeleteParams::default())
            .await
        {
            Ok(_) => there = true,
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}
