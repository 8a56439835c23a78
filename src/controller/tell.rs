//! Tells people, in Events, what has happened to a run. Nothing waits for one, and no decision is made
//! from one: they are no part of the run's state.

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::sync::mpsc::{Sender, channel};

use crate::api::WorkflowRun;
use crate::names::FIELD_MANAGER;

use super::shapes::Note;
use super::write::Writer;

/// Most Events that wait to be sent. What comes beyond is not told: by then the API server has other
/// things to do.
const MOST: usize = 4096;

/// Sends Events, one after the other, so that they take little from what runs wait for.
pub(super) struct Teller {
    waiting: Sender<Event>,
    identity: String,
}

impl Teller {
    /// Starts to send.
    pub(super) fn start(client: Client, identity: String) -> Self {
        let (waiting, mut next) = channel::<Event>(MOST);
        tokio::spawn(async move {
            while let Some(event) = next.recv().await {
                let namespace = event.namespace().unwrap_or_default();
                if let Err(error) = Writer::new(&client, &namespace).create(&event).await {
                    tracing::debug!(%error, "an Event was not taken");
                }
            }
        });
        Self { waiting, identity }
    }

    /// Sends the Event on its way. Each tells a change, so that there is no series to be kept.
    pub(super) fn tell(&self, run: &WorkflowRun, note: Note) {
        let event = event(run, note, &self.identity, Timestamp::now());
        if self.waiting.try_send(event).is_err() {
            tracing::debug!(run = %run.name_any(), "an Event was left out: too many wait to be sent");
        }
    }
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
