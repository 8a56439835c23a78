//! The controller's writes to the API server, each in one place: they name their field manager, carry
//! the uid of what they are about, and ask for no more in answer than the metadata, since nobody reads
//! the rest. What is written, and when, is `apply`'s.

use std::marker::PhantomData;

use http::header::{ACCEPT, HeaderValue};
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ObjectMeta, Request};
use serde::Serialize;
use serde_json::json;

use crate::names::FIELD_MANAGER;

use super::error::answer;
use super::slim::Answer;

const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Writes objects of one kind in one namespace.
pub(super) struct Writer<'a, K> {
    client: &'a Client,
    request: Request,
    namespace: &'a str,
    kind: PhantomData<K>,
}

/// A status without the object around it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusOf<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Identity<'a>,
    status: &'a S,
}

/// Which object, in which version.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Identity<'a> {
    name: &'a str,
    namespace: &'a str,
    uid: Option<&'a str>,
    resource_version: Option<&'a str>,
}

impl<'a, K> Writer<'a, K>
where
    K: kube::Resource<DynamicType = ()> + Serialize,
{
    /// Of that namespace.
    pub(super) fn new(client: &'a Client, namespace: &'a str) -> Self {
        Self {
            client,
            request: Request::new(K::url_path(&(), Some(namespace))),
            namespace,
            kind: PhantomData,
        }
    }

    /// Makes the object.
    pub(super) async fn create(&self, object: &K) -> kube::Result<ObjectMeta> {
        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
        self.ask(self.request.create(&post(), body)).await
    }

    /// Writes the whole status, against the resource version that it was made from.
    pub(super) async fn status(
        &self,
        meta: &ObjectMeta,
        status: &impl Serialize,
    ) -> kube::Result<ObjectMeta> {
        let name = meta.name.as_deref().unwrap_or_default();
        let body = StatusOf {
            api_version: &K::api_version(&()),
            kind: &K::kind(&()),
            metadata: Identity {
                name,
                namespace: self.namespace,
                uid: meta.uid.as_deref(),
                resource_version: meta.resource_version.as_deref(),
            },
            status,
        };
        let body = serde_json::to_vec(&body).map_err(kube::Error::SerdeError)?;
        let request = self
            .request
            .replace_subresource("status", name, &post(), body);
        self.ask(request).await
    }

    /// Puts the finalizer on the object of that version, or takes it off. Nothing, where it went with
    /// that.
    pub(super) async fn finalizer(
        &self,
        meta: &ObjectMeta,
        finalizer: &str,
        hold: bool,
    ) -> kube::Result<Option<ObjectMeta>> {
        let name = meta.name.as_deref().unwrap_or_default();
        let all: Vec<&str> = meta
            .finalizers
            .iter()
            .flatten()
            .map(String::as_str)
            .filter(|one| *one != finalizer)
            .chain(hold.then_some(finalizer))
            .collect();
        let patch = json!({"metadata": {
            "uid": meta.uid,
            "resourceVersion": meta.resource_version,
            "finalizers": all,
        }});
        let written = self.patch(name, &Patch::Merge(&patch)).await;
        match written {
            Ok(meta) => Ok((!is_gone(&meta)).then_some(meta)),
            Err(error) if !hold && is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the finalizer off whatever version of an object there is that is to be deleted next.
    /// Nothing, where it went with that, or before.
    ///
    /// Who owns which of its fields nobody will ask any more. Leaving that out spares the API server
    /// more than half of this write.
    pub(super) async fn release(
        &self,
        name: &str,
        uid: &str,
        finalizer: &str,
    ) -> kube::Result<Option<ObjectMeta>> {
        let patch = json!({"metadata": {
            "uid": uid,
            "managedFields": [{}],
            "$deleteFromPrimitiveList/finalizers": [finalizer],
        }});
        match self.patch(name, &Patch::Strategic(&patch)).await {
            Ok(meta) => Ok((!is_gone(&meta)).then_some(meta)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes just that object. Nothing, where it is gone by then.
    pub(super) async fn delete(&self, name: &str, uid: &str) -> kube::Result<Option<ObjectMeta>> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match self.ask(self.request.delete(name, &params)).await {
            // What went at once may come back without the time of its deletion.
            Ok(meta) => Ok((meta.deletion_timestamp.is_some() && !is_gone(&meta)).then_some(meta)),
            // Another of its name is not ours to delete.
            Err(error)
                if is_not_found(&error) || answer(&error).is_some_and(|s| s.is_conflict()) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn patch(&self, name: &str, patch: &Patch<impl Serialize>) -> kube::Result<ObjectMeta> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.ask(self.request.patch(name, &params, patch)).await
    }

    async fn ask(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<ObjectMeta> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, METADATA);
        let answer: Answer = self.client.request(request).await?;
        Ok(answer.metadata)
    }
}

fn post() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    }
}

/// Whether the answer to a write is the last that was seen of the object.
fn is_gone(meta: &ObjectMeta) -> bool {
    let stays = meta.finalizers.as_ref().is_some_and(|all| !all.is_empty())
        || meta.deletion_grace_period_seconds.unwrap_or(0) > 0;
    meta.deletion_timestamp.is_some() && !stays
}

fn is_not_found(error: &kube::Error) -> bool {
    answer(error).is_some_and(kube::core::Status::is_not_found)
}
