//! Tells people, in Events, what has happened to a run. Nothing waits for one, and no decision is made
//! from one: they are no part of the run's state.

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::{Resource as _, ResourceExt as _};

use crate::api::WorkflowRun;
use crate::names::FIELD_MANAGER;

use super::context::Context;
use super::shapes::Note;
use super::write::Writer;

/// Sends the Event on its way. Each tells a change, so that there is no series to be kept.
pub(super) fn tell(context: &Context, run: &WorkflowRun, note: Note) {
    let event = event(run, note, &context.identity, Timestamp::now());
    let client = context.client.clone();
    let namespace = run.namespace().unwrap_or_default();
    tokio::spawn(async move {
        if let Err(error) = Writer::new(&client, &namespace).create(&event).await {
            tracing::debug!(%error, "an Event was not taken");
        }
    });
}

fn event(run: &WorkflowRun, note: Note, identity: &str, now: Timestamp) -> Event {
    let Note {
        warning,
        reason,
        message,
    } = note;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", run.name_any(), now.as_nanosecond())),
            namespace: run.namespace(),
            ..ObjectMeta::default()
        },
        regarding: Some(run.object_ref(&())),
        type_: Some(if warning { "Warning" } else { "Normal" }.to_owned()),
        action: Some(reason.clone()),
        reason: Some(reason),
        note: Some(message),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(FIELD_MANAGER.to_owned()),
        reporting_instance: Some(identity.to_owned()),
        ..Event::default()
    }
}
