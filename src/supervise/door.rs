//! The door: the agent's one event connection. It owns who may come in (a nonce that is good once
//! and handed on) and the order of frames; what lines mean is the scribe's business.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use uuid::Uuid;

use super::book::Note;
use super::hearsay::{Scribe, Taken};
use super::journal::{Draft, Journal};
use crate::wire::door::{FromAgent, FromSupervisor, MAX_LINE, Start};
use crate::wire::has_too_many_values;

/// Connections at once, of which one at most is the agent's.
const MAX_CONNECTIONS: usize = 32;
/// Longest `Hello`.
const MAX_HELLO: usize = 1024;
/// Why a connection ends whose other side does not read.
const DEAF: &str = "the agent does not read its acknowledgements";
/// How long a stranger may take to say it.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the agent may take to read a frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What the agent is told, whenever it is connected.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Orders {
    /// Stop Claude.
    pub(super) stop: bool,
    /// The run is sealed: exit with this code.
    pub(super) sealed: Option<i32>,
}

/// The door.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) journal: Arc<Journal>,
    pub(super) run: Uuid,
    pub(super) start: Start,
    /// File that the first nonce passes through.
    pub(super) nonce_file: PathBuf,
    pub(super) orders: watch::Receiver<Orders>,
    /// Whether the agent is connected.
    pub(super) connected: watch::Sender<bool>,
    /// The connection that counts.
    pub(super) current: Mutex<(u64, Option<AbortHandle>)>,
}

impl Door {
    /// Leaves a nonce for the agent, unless it has been here before.
    pub(super) async fn leave_nonce(&self) -> io::Result<()> {
        if self.journal.read(|book| book.connected_at.is_some()) {
            return Ok(());
        }
        let nonce = match self.journal.read(|book| book.nonces[1].clone()) {
            Some(nonce) => nonce,
            None => {
                let next = nonce();
                let note = Note::Nonce {
                    used: None,
                    next: next.clone(),
                };
                self.journal.append(|_| Draft::note(note)).durable().await;
                next
            }
        };
        write_private(&self.nonce_file, nonce.as_bytes())
    }

    /// Serves for ever.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Who comes while the doorway is full is turned away; strangers are gone soon.
                    let Ok(permit) = room.clone().try_acquire_owned() else {
                        continue;
                    };
                    let door = self.clone();
                    tokio::spawn(async move {
                        let _permit = permit;
                        if let Err(error) = door.answer(stream).await {
                            tracing::warn!(%error, "a connection to the door was closed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the door can't accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn answer(self: Arc<Self>, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let welcome = tokio::time::timeout(HELLO_TIMEOUT, self.admit(&mut read)).await??;
        send(&mut write, &welcome).await?;

        let (acknowledge, acknowledgements) = mpsc::channel(1024);
        let writer = tokio::spawn(tell(write, acknowledgements, self.orders.clone()));
        let door = self.clone();
        let listening = tokio::spawn(async move { door.listen(read, acknowledge).await });
        let generation = self.replace(listening.abort_handle());
        self.connected.send_replace(true);
        let ended = listening.await;
        writer.abort();
        self.leave(generation);
        match ended {
            Ok(ended) => ended,
            // A newer connection took its place.
            Err(_) => Ok(()),
        }
    }

    /// Reads the `Hello`; the nonce is used up before anything else happens.
    async fn admit(&self, read: &mut BufReader<OwnedReadHalf>) -> io::Result<FromSupervisor> {
        let hello = read_frame(read, MAX_HELLO).await?;
        let Some(Some(FromAgent::Hello { nonce: shown })) = hello else {
            return Err(io::Error::other("it did not begin with a hello"));
        };
        let next = nonce();
        let admitted =
            |book: &super::book::Book| book.nonces.iter().flatten().any(|good| same(good, &shown));
        if !self.journal.read(admitted) {
            return Err(io::Error::other("its nonce is not good"));
        }
        let mut pending = self.journal.append(|book| {
            let first = book.connected_at.is_none().then(|| Note::Connected {
                at: Timestamp::now(),
            });
            let nonce = Note::Nonce {
                used: Some(shown.clone()),
                next: next.clone(),
            };
            Draft {
                notes: first.into_iter().chain([nonce]).collect(),
                ..Draft::default()
            }
        });
        pending.durable().await;
        // The agent unlinks it itself; a supervisor that was restarted may have put it back.
        let _ = std::fs::remove_file(&self.nonce_file);
        Ok(FromSupervisor::Welcome {
            next_nonce: next,
            acknowledged: self.journal.read(|book| book.line),
            start: Box::new(self.start.clone()),
        })
    }

    fn replace(&self, connection: AbortHandle) -> u64 {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = current.1.replace(connection) {
            old.abort();
        }
        current.0 += 1;
        current.0
    }

    fn leave(&self, generation: u64) {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 == generation {
            self.connected.send_replace(false);
        }
    }

    async fn listen(
        &self,
        mut read: BufReader<OwnedReadHalf>,
        acknowledge: mpsc::Sender<Taken>,
    ) -> io::Result<()> {
        let mut scribe = Scribe::new(self.journal.clone(), self.run);
        loop {
            // What waits for the disk is in memory: a line is read only when there is room for it.
            self.journal.has_room().await;
            let Some(frame) = read_frame(&mut read, MAX_LINE).await? else {
                return Ok(());
            };
            let Some(frame) = frame else {
                // Refused, it would come again for ever, and all that follows would wait behind it.
                let expected = scribe.expects();
                for taken in scribe.unreadable(expected) {
                    if acknowledge.send(taken).await.is_err() {
                        return Err(io::Error::other(DEAF));
                    }
                }
                continue;
            };
            let number = match &frame {
                FromAgent::Hello { .. } => return Err(io::Error::other("a second hello")),
                FromAgent::Began { number, .. }
                | FromAgent::Line { number, .. }
                | FromAgent::Ended { number, .. } => *number,
            };
            let expected = scribe.expects();
            if number < expected {
                continue;
            }
            if number > expected {
                return Err(io::Error::other(format!(
                    "line {number} came, line {expected} was expected"
                )));
            }
            for taken in self.take(&mut scribe, frame, number).await {
                if acknowledge.send(taken).await.is_err() {
                    return Err(io::Error::other(DEAF));
                }
            }
        }
    }

    async fn take(&self, scribe: &mut Scribe, frame: FromAgent, number: u64) -> Vec<Taken> {
        let note = match frame {
            FromAgent::Line { line, .. } => return scribe.take(number, &line).await,
            FromAgent::Began { resumed, .. } => Note::Began { resumed },
            FromAgent::Ended { end, .. } => Note::Ended { end },
            FromAgent::Hello { .. } => return Vec::new(),
        };
        let held = scribe.release();
        let pending = self.journal.append(|_| Draft {
            line: Some(number),
            notes: vec![note],
            ..Draft::default()
        });
        held.into_iter()
            .chain([Taken { number, pending }])
            .collect()
    }
}

/// Tells the agent what is on the disk, and its orders.
async fn tell(
    mut write: OwnedWriteHalf,
    mut acknowledgements: mpsc::Receiver<Taken>,
    mut orders: watch::Receiver<Orders>,
) -> io::Result<()> {
    let mut told = Orders::default();
    let mut next = None;
    loop {
        let now = *orders.borrow_and_update();
        if now.stop && !told.stop {
            send(&mut write, &FromSupervisor::Stop).await?;
        }
        if let Some(exit_code) = now.sealed.filter(|_| told.sealed.is_none()) {
            send(&mut write, &FromSupervisor::Sealed { exit_code }).await?;
        }
        told = now;
        tokio::select! {
            changed = orders.changed() => if changed.is_err() { return Ok(()) },
            // A disk that is slow, or full, must not hold orders up.
            number = journalled(&mut next, &mut acknowledgements) => {
                let Some(number) = number else { return Ok(()) };
                send(&mut write, &FromSupervisor::Acknowledged { number }).await?;
            }
        }
    }
}

/// The next line's number, once the line is on the disk. May be dropped and called again.
async fn journalled(next: &mut Option<Taken>, more: &mut mpsc::Receiver<Taken>) -> Option<u64> {
    if next.is_none() {
        *next = more.recv().await;
    }
    let Taken { number, pending } = next.as_mut()?;
    pending.durable().await;
    let number = *number;
    *next = None;
    Some(number)
}

async fn send(write: &mut OwnedWriteHalf, frame: &FromSupervisor) -> io::Result<()> {
    let mut line = serde_json::to_vec(frame)?;
    line.push(b'\n');
    tokio::time::timeout(WRITE_TIMEOUT, write.write_all(&line)).await?
}

/// One frame of at most `limit` bytes; nothing at the end of the stream.
async fn read_frame(
    read: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> io::Result<Option<Option<FromAgent>>> {
    let mut line = Vec::new();
    let read = read
        .take(limit as u64 + 1)
        .read_until(b'\n', &mut line)
        .await?;
    if read == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") {
        return Err(io::Error::other("a frame was cut off, or is too long"));
    }
    if has_too_many_values(&line) {
        return Ok(Some(None));
    }
    Ok(Some(serde_json::from_slice(&line).ok()))
}

fn nonce() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// Compares without telling by its time how much was right.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len()
        && a.bytes()
            .zip(b.bytes())
            .fold(0, |diff, (x, y)| diff | (x ^ y))
            == 0
}

fn write_private(path: &std::path::Path, body: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(body)?;
    std::fs::rename(&beside, path)
}
