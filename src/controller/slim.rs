//! What is read of the objects that the API server sends: no more than is looked at. Who owns which of
//! an object's fields is a third of it, and the spec of a pod another; taken in only to be thrown away,
//! they were a good part of this process' work. Of the owners, those of `spec.desiredState` are kept: one
//! of them killed the run. Owns the reading; whom it is for is `watches`' and `write`'s.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldsV1, ManagedFieldsEntry, OwnerReference, Time,
};
use kube::Resource;
use kube::core::ObjectMeta;
use kube::runtime::watcher::Event;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::json;

use crate::api::WorkflowRun;
use crate::api::run::{WorkflowRunSpec, WorkflowRunStatus};

/// An object of that kind, as far as it is looked at.
#[derive(Clone, Debug)]
pub(super) struct Slim<K>(K);

/// An answer of which only the metadata count.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default, deserialize_with = "Meta::deserialize")]
    pub metadata: ObjectMeta,
}

/// How [`ObjectMeta`] is read: a field that it gains, the compiler wants here too.
#[derive(Deserialize)]
#[serde(remote = "ObjectMeta", rename_all = "camelCase")]
struct Meta {
    name: Option<String>,
    #[serde(skip)]
    generate_name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    finalizers: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
    #[serde(default, deserialize_with = "owners_of_desired_state")]
    managed_fields: Option<Vec<ManagedFieldsEntry>>,
    #[serde(skip)]
    self_link: Option<String>,
}

/// Of an entry of `managedFields`, what `record` asks it for.
#[derive(Deserialize)]
struct Owner {
    manager: Option<String>,
    time: Option<Time>,
    #[serde(rename = "fieldsV1")]
    fields: Option<Owned>,
}

#[derive(Deserialize)]
struct Owned {
    #[serde(rename = "f:spec")]
    spec: Option<OwnedSpec>,
}

#[derive(Deserialize)]
struct OwnedSpec {
    #[serde(rename = "f:desiredState")]
    desired_state: Option<IgnoredAny>,
}

impl Owner {
    fn of_desired_state(self) -> Option<ManagedFieldsEntry> {
        self.fields?.spec?.desired_state?;
        Some(ManagedFieldsEntry {
            manager: self.manager,
            time: self.time,
            fields_v1: Some(FieldsV1(json!({"f:spec": {"f:desiredState": {}}}))),
            ..ManagedFieldsEntry::default()
        })
    }
}

fn owners_of_desired_state<'de, D: Deserializer<'de>>(
    source: D,
) -> Result<Option<Vec<ManagedFieldsEntry>>, D::Error> {
    let all = Option::<Vec<Owner>>::deserialize(source)?;
    let owners = all.into_iter().flatten();
    let owners: Vec<_> = owners.filter_map(Owner::of_desired_state).collect();
    Ok((!owners.is_empty()).then_some(owners))
}

impl<'de> Deserialize<'de> for Slim<Pod> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Parts {
            #[serde(deserialize_with = "Meta::deserialize")]
            metadata: ObjectMeta,
            status: Option<PodStatus>,
        }
        let Parts { metadata, status } = Parts::deserialize(source)?;
        Ok(Self(Pod {
            metadata,
            spec: None,
            status,
        }))
    }
}

impl<'de> Deserialize<'de> for Slim<WorkflowRun> {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Parts {
            #[serde(deserialize_with = "Meta::deserialize")]
            metadata: ObjectMeta,
            spec: WorkflowRunSpec,
            status: Option<WorkflowRunStatus>,
        }
        let Parts {
            metadata,
            spec,
            status,
        } = Parts::deserialize(source)?;
        Ok(Self(WorkflowRun {
            metadata,
            spec,
            status,
        }))
    }
}

/// It is asked for under the name of its kind.
impl<K: Resource<DynamicType = ()>> Resource for Slim<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

/// The event, about the object as it is known elsewhere.
pub(super) fn unwrapped<K>(event: Event<Slim<K>>) -> Event<K> {
    match event {
        Event::Apply(Slim(object)) => Event::Apply(object),
        Event::Delete(Slim(object)) => Event::Delete(object),
        Event::Init => Event::Init,
        Event::InitApply(Slim(object)) => Event::InitApply(object),
        Event::InitDone => Event::InitDone,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::controller::record;
    use crate::controller::watches::{strip_pod, strip_run};

    fn metadata() -> Value {
        json!({
            "name": "a", "namespace": "n", "uid": "u", "resourceVersion": "7", "generation": 2,
            "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-02T00:00:00Z",
            "deletionGracePeriodSeconds": 60, "finalizers": ["runledger.dev/run"],
            "labels": {"runledger.dev/run-uid": "r"}, "annotations": {"runledger.dev/task": "t"},
            "ownerReferences": [{
                "apiVersion": "runledger.dev/v1alpha1", "kind": "WorkflowRun", "name": "r", "uid": "r"
            }],
            "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
        })
    }

    #[test]
    fn a_pod_is_read_as_it_was_when_it_was_stripped_after_reading() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata(),
            "spec": {"containers": [{"name": "agent"}], "nodeName": "one"},
            "status": {"phase": "Succeeded", "conditions": [{"type": "Ready", "status": "False"}]},
        });
        let Slim(mut slim) = serde_json::from_value::<Slim<Pod>>(pod.clone()).unwrap();
        let mut whole: Pod = serde_json::from_value(pod).unwrap();
        strip_pod(&mut whole);
        strip_pod(&mut slim);
        assert_eq!(slim, whole);
    }

    #[test]
    fn a_run_is_read_as_it_was_when_it_was_stripped_after_reading() {
        let run = json!({
            "apiVersion": "runledger.dev/v1alpha1", "kind": "WorkflowRun", "metadata": metadata(),
            "spec": {"workflowName": "builder", "task": "Do it."},
            "status": {"phase": "Running", "podUID": "p", "attempt": 1},
        });
        let Slim(mut slim) = serde_json::from_value::<Slim<WorkflowRun>>(run.clone()).unwrap();
        let mut whole: WorkflowRun = serde_json::from_value(run).unwrap();
        strip_run(&mut whole);
        strip_run(&mut slim);
        assert_eq!(slim, whole);
    }

    #[test]
    fn of_a_killed_run_it_is_known_who_killed_it() {
        let mut metadata = metadata();
        metadata["managedFields"] = json!([
            {"manager": "runledger-controller", "operation": "Update", "subresource": "status",
             "fieldsV1": {"f:status": {}}},
            {"manager": "kubectl-patch", "operation": "Update", "time": "2026-01-02T00:00:00Z",
             "fieldsV1": {"f:spec": {"f:task": {}, "f:desiredState": {}}}},
        ]);
        let Slim(mut run) = serde_json::from_value::<Slim<WorkflowRun>>(json!({
            "metadata": metadata,
            "spec": {"workflowName": "builder", "task": "Do it.", "desiredState": "Killed"},
        }))
        .unwrap();
        strip_run(&mut run);
        let owners = run.metadata.managed_fields.unwrap();
        assert_eq!(owners.len(), 1);
        assert_eq!(owners[0].manager.as_deref(), Some("kubectl-patch"));
        assert!(owners[0].time.is_some() && record::sets_the_desired_state(&owners[0]));
    }

    #[test]
    fn an_answer_may_say_more_than_is_read() {
        let answer: Answer = serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata(),
        }))
        .unwrap();
        assert_eq!(answer.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(answer.metadata.managed_fields, None);
    }
}
