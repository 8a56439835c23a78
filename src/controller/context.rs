//! What every reconciliation shares: clients, caches, and what this process remembers.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use crate::api::{WorkflowRun, Workspace};

use super::config::Config;
use super::error::Error;
use super::health::Counters;
use super::index::Index;
use super::memory::{Crowd, Setbacks, Written};
use super::mirror::Mirror;
use super::sightings::{Sightings, WATCHED};
use super::tell::Teller;

/// Longest wait for the first lists of Events: runs can do without them.
const EVENTS: Duration = Duration::from_secs(30);

/// Shared by all reconciliations.
pub(super) struct Context {
    /// To the API server.
    pub client: Client,
    /// Defaults and addresses.
    pub config: Config,
    /// CA of Runledger's server.
    pub server_ca: watch::Receiver<Option<String>>,
    /// Caches.
    pub stores: Stores,
    /// What was written here and the caches don't show yet.
    pub written: WrittenObjects,
    /// Failures and refusals.
    pub setbacks: Setbacks,
    /// Pods that were made of late.
    pub crowd: Crowd,
    /// The ledger.
    pub mirror: Mirror,
    /// Tells people.
    pub teller: Teller,
    /// Figures for the metrics.
    pub counters: Arc<Counters>,
}

/// What the watches keep up to date.
#[derive(Clone)]
pub(super) struct Stores {
    /// Runs.
    pub runs: Store<WorkflowRun>,
    /// Workspaces.
    pub workspaces: Store<Workspace>,
    /// Pods of runs, without their specs.
    pub pods: Store<Pod>,
    /// Claims of Workspaces.
    pub claims: Store<PersistentVolumeClaim>,
    /// Events about both.
    pub sightings: Arc<Sightings>,
    /// One permit for each watch of Events that has come through its first list.
    pub listed: Arc<Semaphore>,
    /// Which runs name which Workspace.
    pub index: Arc<Index>,
}

/// See [`Written`].
#[derive(Default)]
pub(super) struct WrittenObjects {
    /// Runs.
    pub runs: Written<WorkflowRun>,
    /// Workspaces.
    pub workspaces: Written<Workspace>,
    /// Pods.
    pub pods: Written<Pod>,
    /// Claims.
    pub claims: Written<PersistentVolumeClaim>,
}

impl Stores {
    /// Waits until every cache has been filled once: what is missing from an empty cache says
    /// nothing.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        let ended = |what| move |_| Error::WatchEnded(what);
        self.runs
            .wait_until_ready()
            .await
            .map_err(ended("WorkflowRuns"))?;
        self.workspaces
            .wait_until_ready()
            .await
            .map_err(ended("Workspaces"))?;
        self.pods.wait_until_ready().await.map_err(ended("Pods"))?;
        self.claims
            .wait_until_ready()
            .await
            .map_err(ended("PersistentVolumeClaims"))?;
        // Without them, trouble that is there would be told to be over, and then told again.
        let all = u32::try_from(WATCHED.len()).unwrap_or(u32::MAX);
        if timeout(EVENTS, self.listed.acquire_many(all))
            .await
            .is_err()
        {
            tracing::warn!("Events can't be read: what keeps pods and volumes waiting is not seen");
        }
        Ok(())
    }
}
