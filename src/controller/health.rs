//! Says that the process is alive, and what it has done: `/healthz`, `/readyz`, `/metrics`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use super::error::Error;

/// What has been counted since the process started.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Reconciliations of runs.
    pub reconciles: AtomicU64,
    /// Those of them that failed.
    pub failures: AtomicU64,
    /// Reconciliations, of Workspaces too, that panicked.
    pub panics: AtomicU64,
    /// Pods made.
    pub pods: AtomicU64,
    /// It leads.
    pub leads: AtomicBool,
}

/// Serves until the process ends.
pub(super) async fn serve(
    address: std::net::SocketAddr,
    counters: Arc<Counters>,
) -> Result<(), Error> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|error| Error::Listen(address.to_string(), error))?;
    // A standby is as ready as it can be: it takes over when the leader goes.
    let app = Router::new()
        .route("/healthz", get(async || StatusCode::OK))
        .route("/readyz", get(async || StatusCode::OK))
        .route("/metrics", get(metrics))
        .with_state(counters);
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).await {
            tracing::error!(%error, "the health port has closed");
        }
    });
    Ok(())
}

async fn metrics(State(counters): State<Arc<Counters>>) -> String {
    let counters = counters.as_ref();
    let Counters {
        reconciles,
        failures,
        panics,
        pods,
        leads,
    } = counters;
    let mut text = String::new();
    for (name, kind, help, value) in [
        (
            "runledger_reconciles_total",
            "counter",
            "Reconciliations of runs.",
            reconciles.load(Ordering::Relaxed),
        ),
        (
            "runledger_reconcile_failures_total",
            "counter",
            "Reconciliations of runs that failed.",
            failures.load(Ordering::Relaxed),
        ),
        (
            "runledger_reconcile_panics_total",
            "counter",
            "Reconciliations of runs and Workspaces that panicked, which is a bug.",
            panics.load(Ordering::Relaxed),
        ),
        (
            "runledger_pods_created_total",
            "counter",
            "Pods made for runs.",
            pods.load(Ordering::Relaxed),
        ),
        (
            "runledger_leader",
            "gauge",
            "Whether this controller leads.",
            u64::from(leads.load(Ordering::Relaxed)),
        ),
    ] {
        text.push_str(&format!(
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        ));
    }
    text
}
