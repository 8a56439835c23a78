//! Writes to the API server, counted in its audit log.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use anyhow::Result;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    stage: String,
    verb: String,
    user: User,
    object_ref: Option<Object>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

/// Creates, updates, patches and deletes of that user in that namespace, without Events, Leases and
/// reviews, by the name of what was written.
pub(crate) fn writes(log: &Path, user: &str, namespace: &str) -> Result<HashMap<String, usize>> {
    let mut counts = HashMap::new();
    for line in BufReader::new(File::open(log)?).lines() {
        let line = line?;
        if !line.contains(user) || !line.contains(namespace) {
            continue;
        }
        let Ok(entry) = serde_json::from_str::<Entry>(&line) else {
            continue;
        };
        let Some(object) = entry.object_ref else {
            continue;
        };
        let counted = entry.stage == "ResponseComplete"
            && entry.user.username == user
            && object.namespace == namespace
            && matches!(
                entry.verb.as_str(),
                "create" | "update" | "patch" | "delete" | "deletecollection"
            )
            && !matches!(
                object.resource.as_str(),
                "events" | "leases" | "tokenreviews" | "subjectaccessreviews"
            );
        if counted {
            *counts.entry(object.name).or_default() += 1;
        }
    }
    Ok(counts)
}
