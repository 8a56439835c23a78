//! What every reconciliation shares: clients, caches, and what this process remembers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::watch;

use crate::api::{WorkflowRun, Workspace};

use super::config::Config;
use super::error::Error;
use super::health::Counters;
use super::index::Index;
use super::memory::{Crowd, Setbacks, Written};
use super::mirror::Mirror;
use super::sightings::Sightings;
use super::tell::Teller;

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
        Ok(())
    }
}
