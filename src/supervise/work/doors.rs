//! The ports of a supervisor: proxy, door and startup probe. They are taken before anything else is
//! done, since a supervisor that comes back may find somebody else there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Work;
use crate::listen::Bounds;
use crate::pod::paths;
use crate::supervise::Error;
use crate::supervise::config::Args;
use crate::supervise::door::Door;

/// Others than the kubelet can ask, where no policy keeps them away.
const PROBE: Bounds = Bounds {
    connections: 16,
    first_request: Duration::from_secs(3),
    next_request: Duration::from_secs(3),
};
/// How long a port may be taken: the process that had it may only just be going.
const TAKEN: Duration = Duration::from_secs(5);
/// Pause between two tries.
const RETRY: Duration = Duration::from_millis(200);

/// The ports, taken and not yet answered at.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) proxy: TcpListener,
    pub(super) door: TcpListener,
    pub(super) started: TcpListener,
}

impl Ports {
    pub(super) async fn take(args: &Args) -> Result<Self, Error> {
        Ok(Self {
            proxy: listen("127.0.0.1", args.proxy_port).await?,
            door: listen("127.0.0.1", args.door_port).await?,
            started: listen("0.0.0.0", args.started_port).await?,
        })
    }
}

impl Work {
    /// Answers at door and startup probe. A sealed run has them too, for the agent to be told.
    pub(super) async fn open_doors(
        &self,
        door_port: TcpListener,
        started: TcpListener,
    ) -> Result<watch::Receiver<bool>, Error> {
        let (connected, is_connected) = watch::channel(false);
        let door = Arc::new(Door {
            journal: self.journal.clone(),
            run: self.assignment.run_id,
            start: self.start(),
            nonce_file: self.args.path(paths::NONCE),
            orders: self.orders.subscribe(),
            connected,
            current: Mutex::default(),
        });
        door.leave_nonce().await.map_err(Error::Nonce)?;
        tokio::spawn(door.serve(door_port));

        // Last, for the agent's container starts once this answers.
        let probe = axum::Router::new().route("/started", get(async || "the checkout is there\n"));
        let server = PROBE.of(axum_server::Server::<SocketAddr>::from_listener(started));
        tokio::spawn(server.serve(probe.into_make_service()));
        Ok(is_connected)
    }

    /// Tells the agent of the seal as soon as whoever has the ports lets go of them.
    pub(super) async fn open_doors_when_free(&self) {
        loop {
            let opened = match Ports::take(&self.args).await {
                Ok(ports) => self.open_doors(ports.door, ports.started).await,
                Err(error) => Err(error),
            };
            if opened.is_ok() {
                return std::future::pending().await;
            }
        }
    }
}

async fn listen(address: &str, port: u16) -> Result<TcpListener, Error> {
    let deadline = Instant::now() + TAKEN;
    loop {
        match TcpListener::bind((address, port)).await {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < deadline =>
            {
                tokio::time::sleep(RETRY).await;
            }
            bound => return bound.map_err(|error| Error::Listen(port, error)),
        }
    }
}
