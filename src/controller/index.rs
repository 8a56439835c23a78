//! Which runs name which Workspace, so that nobody has to go through all runs to find out.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use crate::api::WorkflowRun;

use super::validate;

type Names = HashMap<(String, String), BTreeSet<String>>;

/// Names of runs, by namespace and Workspace.
#[derive(Debug, Default)]
pub(crate) struct Index {
    runs: Mutex<Names>,
    /// What a new list has brought so far. The old names hold until it is complete: a Workspace whose
    /// holder is missing from half a list must not be given away.
    listed: Mutex<Option<Names>>,
}

impl Index {
    /// A new list begins.
    pub(crate) fn begin(&self) {
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Names::new());
    }

    /// The new list is complete; tells every Workspace that was or is named.
    pub(crate) fn complete(&self) -> BTreeSet<(String, String)> {
        let Some(listed) = self
            .listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        else {
            return BTreeSet::new();
        };
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let named = runs.keys().chain(listed.keys()).cloned().collect();
        *runs = listed;
        named
    }

    /// The run is there.
    pub(crate) fn add(&self, run: &WorkflowRun) {
        let Some((key, name)) = entry(run) else {
            return;
        };
        if let Some(listed) = self
            .listed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_mut()
        {
            listed.entry(key.clone()).or_default().insert(name.clone());
        }
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        runs.entry(key).or_default().insert(name);
    }

    /// The run is there no more.
    pub(crate) fn remove(&self, run: &WorkflowRun) {
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
