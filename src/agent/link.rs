//! The agent's one connection to the supervisor, made again when it breaks: the supervisor may be
//! killed and restarted at any time. It owns the nonces; what is in the frames is not its business.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use super::outbox::Outbox;
use crate::wire::door::{FromAgent, FromSupervisor, MAX_LINE, Start};

/// Pause between two tries to connect.
const RETRY: Duration = Duration::from_millis(200);
/// How long the nonce's file may be in coming.
const NONCE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the supervisor may take to answer a `Hello`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(20);

/// What the agent knows of the supervisor.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// What to run, once the supervisor has said it.
    pub(super) start: Option<Start>,
    /// It wants Claude stopped.
    pub(super) stop: bool,
    /// The run is sealed: exit with this code.
    pub(super) sealed: Option<i32>,
    /// Since when it has not been there.
    pub(super) lost_since: Option<Instant>,
}

impl Heard {
    /// Before the first connection.
    pub(super) fn nothing() -> Self {
        Self {
            start: None,
            stop: false,
            sealed: None,
            lost_since: Some(Instant::now()),
        }
    }
}

/// Reads the first nonce and unlinks its file, so that nothing that is started later finds it.
pub(super) async fn take_nonce(path: &Path) -> io::Result<String> {
    let deadline = Instant::now() + NONCE_TIMEOUT;
    loop {
        match std::fs::read_to_string(path) {
            Ok(nonce) => {
                std::fs::remove_file(path)?;
                return Ok(nonce.trim().to_owned());
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound || Instant::now() > deadline => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

/// The link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) port: u16,
    pub(super) nonce: String,
    pub(super) outbox: Arc<Outbox>,
    pub(super) heard: watch::Sender<Heard>,
}

impl Link {
    /// Keeps the connection for ever.
    pub(super) async fn run(mut self) {
        loop {
            if let Err(error) = self.once().await {
                tracing::debug!(%error, "no connection to the supervisor");
            }
            self.heard.send_modify(|heard| {
                heard.lost_since.get_or_insert_with(Instant::now);
            });
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn once(&mut self) -> io::Result<()> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let hello = FromAgent::Hello {
            nonce: self.nonce.clone(),
        };
        let mut line = serde_json::to_vec(&hello)?;
        line.push(b'\n');
        write.write_all(&line).await?;
        let welcome = tokio::time::timeout(WELCOME_TIMEOUT, read_frame(&mut read)).await??;
        let FromSupervisor::Welcome {
            next_nonce,
            acknowledged,
            start,
        } = welcome
        else {
            return Err(io::Error::other(
                "the supervisor did not begin with a welcome",
            ));
        };
        self.nonce = next_nonce;
        self.outbox.acknowledge(acknowledged);
        self.heard.send_modify(|heard| {
            heard.lost_since = None;
            heard.start.get_or_insert(*start);
        });
        let send = async {
            let mut last = acknowledged;
            loop {
                let (number, line) = self.outbox.after(last).await;
                write.write_all(&line).await?;
                last = number;
            }
        };
        tokio::select! {
            ended = send => ended,
            ended = self.hear(&mut read) => ended,
        }
    }

    async fn hear(&self, read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<()> {
        loop {
            match read_frame(read).await? {
                FromSupervisor::Acknowledged { number } => self.outbox.acknowledge(number),
                FromSupervisor::Stop => self.heard.send_modify(|heard| heard.stop = true),
                FromSupervisor::Sealed { exit_code } => {
                    self.heard
                        .send_modify(|heard| heard.sealed = Some(exit_code));
                }
                FromSupervisor::Welcome { .. } => return Err(io::Error::other("a second welcome")),
            }
        }
    }
}

async fn read_frame(read: &mut (impl AsyncBufRead + Unpin)) -> io::Result<FromSupervisor> {
    let mut line = Vec::new();
    read.take(MAX_LINE as u64)
        .read_until(b'\n', &mut line)
        .await?;
    if !line.ends_with(b"\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
