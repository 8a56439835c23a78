//! Which runs name which Workspace, so that nobody has to go through all runs to find out.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::api::WorkflowRun;

use super::validate;

/// Names of runs, by namespace and Workspace.
#[derive(Debug, Default)]
pub(super) struct Index {
    runs: Mutex<HashMap<(String, String), BTreeSet<String>>>,
}

impl Index {
    /// The run is there.
    pub(super) fn add(&self, run: &WorkflowRun) {
        if let Some((key, name)) = entry(run) {
            self.runs
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(key)
                .or_default()
                .insert(name);
        }
    }

    /// The run is there no more.
    pub(super) fn remove(&self, run: &WorkflowRun) {
        if let Some((key, name)) = entry(run) {
            let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(names) = runs.get_mut(&key) {
                names.remove(&name);
                if names.is_empty() {
                    runs.remove(&key);
                }
            }
        }
    }

    /// Runs that name the Workspace.
    pub(super) fn of(&self, namespace: &str, workspace: &str) -> Vec<String> {
        self.runs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(namespace.to_owned(), workspace.to_owned()))
            .map(|names| names.iter().cloned().collect())
            .unwrap_or_default()
    }
}

fn entry(run: &WorkflowRun) -> Option<((String, String), String)> {
    let workspace = validate::workspace_name(run)?;
    Some((
        (run.metadata.namespace.clone()?, workspace),
        run.metadata.name.clone()?,
    ))
}
