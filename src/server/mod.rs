//! `runledger server`: takes the events of runs in, over TLS. It owns who may hand in what; what a
//! batch means for the ledger's rows is the ledger's.

mod access;
pub mod certificate;
mod cluster;
mod events;
mod guard;
mod tell;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum_server::Handle;
use clap::Parser;

pub use access::{Claim, Run};
pub use cluster::{Answer, Cluster, Fault, Kube};
pub use events::State;
pub use tell::Told;

use crate::ledger::connection::Connection;
use crate::ledger::{self, Ledger};
use crate::listen::Bounds;

/// How long requests in flight may take to end, once the server is told to stop.
const DRAIN: Duration = Duration::from_secs(20);
/// Each run at work holds a connection, and each may have a file of ours open.
const TLS: Bounds = Bounds {
    connections: 4096,
    first_request: Duration::from_secs(30),
    next_request: Duration::from_secs(120),
};
/// The kubelet's.
const HEALTH: Bounds = Bounds {
    connections: 64,
    first_request: Duration::from_secs(10),
    next_request: Duration::from_secs(30),
};

/// Arguments of `runledger server`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Where events are taken in, over TLS.
    #[arg(long, env = "RUNLEDGER_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Where /healthz and /readyz answer, without TLS.
    #[arg(long, env = "RUNLEDGER_HEALTH_LISTEN", default_value = "0.0.0.0:8080")]
    pub health_listen: SocketAddr,
    /// Folder with tls.crt and tls.key; read again when they change.
    #[arg(long, env = "RUNLEDGER_TLS_DIR", default_value = "/etc/runledger/tls")]
    pub tls_dir: PathBuf,
    /// The ledger.
    #[command(flatten)]
    pub database: Connection,
}

/// Why the server stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger's URL can't be used.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// No configuration for the API server was found.
    #[error("the Kubernetes API server can't be configured")]
    Kube(#[source] Box<kube::Error>),
    /// An address could not be listened on, or its listener broke.
    #[error("{0} can't be served")]
    Serve(SocketAddr, #[source] std::io::Error),
    /// Signals can't be waited for.
    #[error("signals can't be received")]
    Signal(#[source] std::io::Error),
}

/// Serves until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), Error> {
    // Fails only where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ledger = Arc::new(Ledger::connect(&args.database.database_url)?);
    let client = kube::Client::try_default()
        .await
        .map_err(|error| Error::Kube(Box::new(error)))?;
    let state = Arc::new(State::new(ledger.clone(), Arc::new(Kube::new(client))));
    let ready = Arc::new(AtomicBool::new(false));
    let handle = Handle::new();
    tokio::select! {
        served = health(args.health_listen, ready.clone()) => served,
        served = tls(&args, state, ready, handle.clone()) => served,
        never = ledger.keep_rollups_folded() => match never {},
        stopped = stop_signal() => {
            stopped?;
            tracing::info!("stopping");
            drain(&handle).await;
            ledger.close().await;
            Ok(())
        }
    }
}

/// The routes over TLS.
pub fn router(state: Arc<State>) -> Router {
    Router::new()
        .route(
            "/v1/namespaces/{namespace}/runs/{name}/events",
            post(events::accept),
        )
        .route(
            "/v1/namespaces/{namespace}/runs/{name}/checkout",
            post(events::progress),
        )
        .with_state(state)
}

async fn tls(
    args: &Args,
    state: Arc<State>,
    ready: Arc<AtomicBool>,
    handle: Handle<SocketAddr>,
) -> Result<(), Error> {
    let config = tls::load(&args.tls_dir).await;
    let _reload = tls::reload(config.clone(), args.tls_dir.clone());
    ready.store(true, Ordering::Relaxed);
    tracing::info!(listen = %args.listen, "taking events in");
    TLS.of(axum_server::bind_rustls(args.listen, config))
        .handle(handle)
        .serve(router(state).into_make_service())
        .await
        .map_err(|error| Error::Serve(args.listen, error))
}

async fn health(listen: SocketAddr, ready: Arc<AtomicBool>) -> Result<(), Error> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || {
                let ready = ready.load(Ordering::Relaxed);
                async move {
                    if ready {
                        (StatusCode::OK, "ok")
                    } else {
                        (
                            StatusCode::SERVICE_UNAVAILABLE,
                            "waiting for the certificate",
                        )
                    }
                }
            }),
        );
    HEALTH
        .of(axum_server::bind(listen))
        .serve(router.into_make_service())
        .await
        .map_err(|error| Error::Serve(listen, error))
}

async fn stop_signal() -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate()).map_err(Error::Signal)?;
    let mut int = signal(SignalKind::interrupt()).map_err(Error::Signal)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// Lets requests in flight end.
async fn drain(handle: &Handle<SocketAddr>) {
    handle.graceful_shutdown(Some(DRAIN));
    let deadline = tokio::time::Instant::now() + DRAIN;
    while handle.connection_count() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
