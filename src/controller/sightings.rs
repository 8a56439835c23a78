//! Remembers the few Events that tell what the controller can't see otherwise: that a volume can't
//! be mounted, provisioned or attached, and why; and how far a checkout has come. By the uid of the object that they are about.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;

use crate::names::reasons;

use super::trouble::Sighting;

/// Longest message that is kept.
const LONGEST: usize = 2048;

/// Reasons of Events that are watched, by kind of object.
pub(super) const WATCHED: &[(&str, &str)] = &[
    ("Pod", "FailedMount"),
    ("Pod", "FailedAttachVolume"),
    ("Pod", "FailedCreatePodSandBox"),
    ("WorkflowRun", reasons::CHECKOUT_PROGRESS),
    ("PersistentVolumeClaim", "ProvisioningFailed"),
    ("PersistentVolumeClaim", "FailedBinding"),
];

/// What has been seen.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    by_object: Mutex<HashMap<String, Vec<Seen>>>,
}

#[derive(Debug)]
struct Seen {
    at: Option<Timestamp>,
    sighting: Sighting,
}

impl Sightings {
    /// Takes an Event in: the last one of its reason counts.
    pub(super) fn see(&self, event: &Event) {
        let Some((uid, reason)) = about(event) else {
            return;
        };
        let mut message = event.note.clone().unwrap_or_default();
        message.truncate(message.floor_char_boundary(LONGEST));
        let seen = Seen {
            at: time(event),
            sighting: Sighting {
                reason: reason.clone(),
                message,
            },
        };
        let mut objects = self
            .by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let list = objects.entry(uid.clone()).or_default();
        match list.iter_mut().find(|old| old.sighting.reason == *reason) {
            Some(old) if old.at > seen.at => {}
            Some(old) => *old = seen,
            None => list.push(seen),
        }
    }

    /// The API server has dropped the Event.
    pub(super) fn drop_event(&self, event: &Event) {
        let Some((uid, reason)) = about(event) else {
            return;
        };
        let mut objects = self
            .by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = objects.get_mut(uid) {
            let at = time(event);
            list.retain(|seen| seen.sighting.reason != *reason || seen.at > at);
            if list.is_empty() {
                objects.remove(uid);
            }
        }
    }

    /// What was seen of that object.
    pub(super) fn of(&self, uid: &str) -> Vec<Sighting> {
        self.by_object
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .map(|list| list.iter().map(|seen| seen.sighting.clone()).collect())
            .unwrap_or_default()
    }
}

fn time(event: &Event) -> Option<Timestamp> {
    let series = event
        .series
        .as_ref()
        .map(|series| series.last_observed_time.0);
    let last = event.deprecated_last_timestamp.as_ref().map(|time| time.0);
    series
        .or(last)
        .or(event.event_time.as_ref().map(|time| time.0))
}

fn about(event: &Event) -> Option<(&String, &String)> {
    Some((
        event.regarding.as_ref()?.uid.as_ref()?,
        event.reason.as_ref()?,
    ))
}
