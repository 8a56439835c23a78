//! A run's append-only event file. It owns the file and the order of what is in it: records are
//! numbered and queued under one lock, written and fsynced in groups by one thread, and counted as
//! said only then. What the records mean is the book's business.

mod reader;
mod recovery;
mod writer;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

pub(crate) use self::reader::Reader;
pub(crate) use self::writer::Trouble;

use self::recovery::{Recovered, recover};
use self::writer::{Entry, Writer};
use super::book::{Book, Note, Record};
use crate::wire::{Event, EventBody};

/// How long a disk may take nothing before the run is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that may wait for the disk before nothing more is to be taken from outside.
const MAX_BACKLOG: u64 = 16 * 1024 * 1024;

/// What is to be appended: a record before it has its numbers.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// For the server.
    pub(crate) events: Vec<EventBody>,
    /// As in [`Record::line`].
    pub(crate) line: Option<u64>,
    /// For the supervisor itself.
    pub(crate) notes: Vec<Note>,
}

impl Draft {
    /// One event.
    pub(crate) fn event(body: EventBody) -> Self {
        Self {
            events: vec![body],
            ..Self::default()
        }
    }

    /// One note.
    pub(crate) fn note(note: Note) -> Self {
        Self {
            notes: vec![note],
            ..Self::default()
        }
    }
}

/// How much of the journal is safely on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    /// Bytes.
    pub(crate) bytes: u64,
    /// Last event's sequence.
    pub(crate) sequence: u64,
}

/// An appended record that may not be on the disk yet.
#[derive(Debug)]
pub(crate) struct Pending(oneshot::Receiver<()>);

impl Pending {
    /// Waits until the record is on the disk.
    pub(crate) async fn durable(&mut self) {
        if (&mut self.0).await.is_err() {
            // The writer only goes away with the process: nothing may be promised any more.
            std::future::pending::<()>().await;
        }
    }
}

/// The journal of this attempt.
#[derive(Debug)]
pub(crate) struct Journal {
    inner: Mutex<Inner>,
    /// Told of every record, as soon as it is in the book.
    appended: watch::Sender<()>,
    durable: watch::Receiver<Durable>,
    trouble: watch::Receiver<Option<Trouble>>,
    /// How long the disk may take nothing.
    patience: Duration,
}

#[derive(Debug)]
struct Inner {
    book: Book,
    /// What the file will hold once everything that is queued is written.
    bytes: u64,
    queue: mpsc::Sender<Entry>,
}

impl Journal {
    /// Opens the journal at `path`, makes it where it is not there, and reads what it says.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let Recovered { file, book, bytes } = recover(path)?;
        Self::on(file, book, bytes, PATIENCE)
    }

    fn on(file: File, book: Book, bytes: u64, patience: Duration) -> io::Result<Self> {
        let (progress, durable) = watch::channel(Durable {
            bytes,
            sequence: book.sequence,
        });
        let (told, trouble) = watch::channel(None);
        let (queue, entries) = mpsc::channel();
        let writer = Writer {
            file,
            bytes,
            reserved: 0,
            progress,
            trouble: told,
        };
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&entries))?;
        Ok(Self {
            inner: Mutex::new(Inner { book, bytes, queue }),
            appended: watch::Sender::new(()),
            durable,
            trouble,
            patience,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks something up in the book.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&self.lock().book)
    }

    /// Appends what `build` makes of the book as it stands. The book has it at once, the disk soon.
    pub(crate) fn append(&self, build: impl FnOnce(&Book) -> Draft) -> Pending {
        let mut inner = self.lock();
        let mut draft = build(&inner.book);
        if inner.book.sealed.is_some() {
            // The seal is the last event: what comes later is said to nobody.
            draft.events.clear();
        }
        let record = number(draft, inner.book.sequence, Timestamp::now());
        let (done, pending) = oneshot::channel();
        if let Ok(line) = encode(&record) {
            inner.book.apply(&record);
            inner.bytes += line.len() as u64;
            let sequence = inner.book.sequence;
            // Fails only when the writer is gone, and then `pending` never resolves.
            let _ = inner.queue.send(Entry {
                line,
                sequence,
                done,
            });
            self.appended.send_replace(());
        } else {
            tracing::error!("a record can't be written as JSON and is dropped");
        }
        Pending(pending)
    }

    /// How much is on the disk.
    pub(crate) fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.clone()
    }

    /// Waits until `wanted` finds something in the book (which may be ahead of the disk).
    pub(crate) async fn wait_for<T>(&self, mut wanted: impl FnMut(&Book) -> Option<T>) -> T {
        let mut appended = self.appended.subscribe();
        loop {
            appended.mark_unchanged();
            if let Some(found) = self.read(&mut wanted) {
                return found;
            }
            if appended.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until little enough waits for the disk that more may be taken from outside.
    pub(crate) async fn has_room(&self) {
        let mut durable = self.durable.clone();
        let there_is = |durable: &Durable| {
            let queued = self.lock().bytes;
            queued.saturating_sub(durable.bytes) < MAX_BACKLOG
        };
        if durable.wait_for(there_is).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Resolves once the run must end because its journal can't be written, or soon can't be.
    pub(crate) async fn unwritable(&self) -> Trouble {
        let mut trouble = self.trouble.clone();
        let is_last = |trouble: &Option<Trouble>| trouble.as_ref().is_some_and(|t| t.last_room);
        loop {
            let found = trouble.wait_for(Option::is_some).await;
            let Some(now) = found.ok().and_then(|trouble| trouble.clone()) else {
                return std::future::pending().await;
            };
            let changed = trouble.wait_for(|trouble| trouble.is_none() || is_last(trouble));
            if now.last_room || tokio::time::timeout(self.patience, changed).await.is_err() {
                return now;
            }
        }
    }
}

/// Ends the requests that a lost attempt left open, in its own journal, and returns its book.
pub(crate) fn close(path: &Path) -> io::Result<Book> {
    let Recovered {
        mut file, mut book, ..
    } = recover(path)?;
    if book.sealed.is_some() {
        return Ok(book);
    }
    let mut closing = Vec::new();
    while let Some(body) = book.lost_request(Timestamp::now()) {
        let record = number(Draft::event(body), book.sequence, Timestamp::now());
        closing.extend(encode(&record)?);
        book.apply(&record);
    }
    if !closing.is_empty() {
        file.write_all(&closing)?;
        file.sync_data()?;
    }
    Ok(book)
}

fn number(draft: Draft, last: u64, now: Timestamp) -> Record {
    let events = draft
        .events
        .into_iter()
        .zip(last + 1..)
        .map(|(body, sequence)| Event {
            sequence,
            at: now,
            body,
        })
        .collect();
    Record {
        events,
        line: draft.line,
        notes: draft.notes,
    }
}

fn encode(record: &Record) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
