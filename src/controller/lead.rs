//! Leader election by a Lease, and the signals that end the process. Guards against a stale leader
//! are in every write; this keeps two controllers from doing the same work.

use kube::Client;
use kube_lease_manager::{LeaseManager, LeaseManagerBuilder};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::Error;

/// Name of the Lease.
const NAME: &str = "runledger-controller";
/// How long it holds after its last renewal, in seconds.
const SECONDS: u64 = 15;
/// How long before its end it is renewed, in seconds.
const GRACE: u64 = 10;

/// The Lease, while it is held.
pub(super) struct Lease {
    held: watch::Receiver<bool>,
    task: JoinHandle<kube_lease_manager::Result<LeaseManager>>,
}

impl Lease {
    /// Waits until the Lease is held; nothing, should the process be told to stop before.
    pub(super) async fn take(
        client: &Client,
        namespace: &str,
        identity: &str,
    ) -> Result<Option<Self>, Error> {
        let identity = format!("{identity}-{}", uuid::Uuid::new_v4());
        let manager = LeaseManagerBuilder::new(client.clone(), NAME)
            .with_namespace(namespace)
            .with_identity(identity)
            .with_field_manager(crate::names::FIELD_MANAGER)
            .with_duration(SECONDS)
            .with_grace(GRACE)
            .build()
            .await?;
        let (held, task) = manager.watch().await;
        let mut lease = Self { held, task };
        tracing::info!("waiting for the lease");
        let held = tokio::select! {
            () = lease.becomes(true) => true,
            () = told_to_stop() => false,
        };
        if !held {
            lease.release().await;
            return Ok(None);
        }
        tracing::info!("leading");
        Ok(Some(lease))
    }

    /// Waits until the Lease is lost.
    pub(super) async fn lost(&mut self) {
        self.becomes(false).await;
    }

    async fn becomes(&mut self, wanted: bool) {
        while *self.held.borrow_and_update() != wanted {
            if self.held.changed().await.is_err() {
                // The manager has ended, and with it the Lease.
                if wanted {
                    std::future::pending::<()>().await;
                }
                return;
            }
        }
    }

    /// Lets go, so that the next one need not wait.
    pub(super) async fn release(self) {
        let Self { held, task } = self;
        drop(held);
        if tokio::time::timeout(std::time::Duration::from_secs(5), task)
            .await
            .is_err()
        {
            tracing::warn!("the lease was not given back in time");
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub(super) async fn told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
