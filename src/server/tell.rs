//! What only a run's supervisor knows and its owner should see, told in Events about the run: what a
//! checkout left as it is or saved, and how far a long one has come. Pure. An Event decides nothing;
//! the same one told twice is one.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Resource as _;
use uuid::Uuid;

use crate::api::WorkflowRun;
use crate::ledger::Target;
use crate::names::{TELLER, reasons};
use crate::wire::{Batch, CheckoutProgress, EventBody};

/// Most notes of one checkout.
const MAX_NOTES: usize = 8;
/// Longest note, in bytes: what an Event takes.
const MAX_NOTE: usize = 1000;
/// Longest part of a run's name in an Event's, which has more to hold.
const MAX_NAME: usize = 180;

/// Something to be told of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The run's namespace.
    pub namespace: String,
    /// The run's name.
    pub run: String,
    /// `metadata.uid` of the run.
    pub uid: Uuid,
    /// What makes the Event's name its own.
    pub key: String,
    /// One of [`reasons`].
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What a batch of the run's own pod has to tell.
pub(super) fn of_batch(target: Target<'_>, batch: &Batch) -> Vec<Told> {
    let mut all = Vec::new();
    for event in &batch.events {
        let EventBody::AttemptStarted { notes, .. } = &event.body else {
            continue;
        };
        for (number, note) in notes.iter().take(MAX_NOTES).enumerate() {
            all.push(Told {
                namespace: target.namespace.to_owned(),
                run: target.name.to_owned(),
                uid: batch.run_id,
                key: format!("{}-{number}", batch.attempt),
                reason: reasons::CHECKED_OUT,
                message: note[..note.floor_char_boundary(MAX_NOTE)].to_owned(),
            });
        }
    }
    all
}

/// How far a checkout has come.
pub(super) fn of_progress(target: Target<'_>, progress: &CheckoutProgress) -> Told {
    let mebibytes = progress.received_bytes / (1024 * 1024);
    Told {
        namespace: target.namespace.to_owned(),
        run: target.name.to_owned(),
        uid: progress.run_id,
        // Told again, it has come as far.
        key: format!("{}-{:x}", progress.attempt, progress.received_bytes),
        reason: reasons::CHECKOUT_PROGRESS,
        message: format!(
            "The supervisor fetches the repository: {} of {} objects, {mebibytes} MiB.",
            progress.received_objects, progress.total_objects
        ),
    }
}

/// As the API server takes it.
pub(super) fn event(told: Told, now: Timestamp) -> Event {
    let name: String = told.run.chars().take(MAX_NAME).collect();
    let uid = told.uid.simple().to_string();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{}.{}", &uid[..8], told.key)),
            namespace: Some(told.namespace.clone()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(WorkflowRun::api_version(&()).into_owned()),
            kind: Some(WorkflowRun::kind(&()).into_owned()),
            name: Some(told.run),
            namespace: Some(told.namespace),
            uid: Some(told.uid.to_string()),
            ..ObjectReference::default()
        }),
        type_: Some("Normal".to_owned()),
        action: Some(told.reason.to_owned()),
        reason: Some(told.reason.to_owned()),
        note: Some(told.message),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(TELLER.to_owned()),
        reporting_instance: Some(TELLER.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_a_name_that_the_api_server_takes_and_is_about_the_run() {
        let told = Told {
            namespace: "ns".to_owned(),
            run: "r".repeat(253),
            uid: Uuid::from_u128(7),
            key: "1-0".to_owned(),
            reason: reasons::CHECKED_OUT,
            message: "A note.".to_owned(),
        };
        let event = event(told, Timestamp::UNIX_EPOCH);
        let name = event.metadata.name.unwrap();
        assert!(
            name.len() <= 253 && name.ends_with(".00000000.1-0"),
            "{name}"
        );
        let about = event.regarding.unwrap();
        assert_eq!(about.kind.as_deref(), Some("WorkflowRun"));
        assert_eq!(about.namespace, event.metadata.namespace);
    }
}
