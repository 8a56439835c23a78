//! A run's append-only event file. It owns the file and the order of what is in it: records are
//! numbered and queued under one lock, written and fsynced in groups by one thread, and counted as
//! said only then. What the records mean is the book's business.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use super::book::{Book, Note, Record};
use crate::wire::{Event, EventBody};

/// Disk that is reserved ahead of the writer, so that an agent that fills the volume can't keep the
/// journal from telling.
const RESERVE: u64 = 8 * 1024 * 1024;
/// How long the writer waits before it tries a failed write again.
const WRITE_RETRY: Duration = Duration::from_secs(1);
/// Largest group of one fsync, in bytes.
const MAX_GROUP: usize = 4 * 1024 * 1024;

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
    pub(crate) async fn durable(self) {
        if self.0.await.is_err() {
            // The writer only goes away with the process: nothing may be promised any more.
            std::future::pending::<()>().await;
        }
    }
}

/// The journal of this attempt.
#[derive(Debug)]
pub(crate) struct Journal {
    inner: Mutex<Inner>,
    durable: watch::Receiver<Durable>,
}

#[derive(Debug)]
struct Inner {
    book: Book,
    queue: mpsc::Sender<Entry>,
}

#[derive(Debug)]
struct Entry {
    line: Vec<u8>,
    sequence: u64,
    done: oneshot::Sender<()>,
}

impl Journal {
    /// Opens the journal at `path`, makes it where it is not there, and reads what it says. A torn
    /// last line was never acknowledged to anybody and is cut off.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let (file, book, bytes) = recover(path)?;
        let (progress, durable) = watch::channel(Durable {
            bytes,
            sequence: book.sequence,
        });
        let (queue, entries) = mpsc::channel();
        let mut writer = Writer {
            file,
            bytes,
            reserved: 0,
            progress,
        };
        writer.reserve();
        std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&entries))?;
        Ok(Self {
            inner: Mutex::new(Inner { book, queue }),
            durable,
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
            let sequence = inner.book.sequence;
            // Fails only when the writer is gone, and then `pending` never resolves.
            let _ = inner.queue.send(Entry {
                line,
                sequence,
                done,
            });
        } else {
            tracing::error!("a record can't be written as JSON and is dropped");
        }
        Pending(pending)
    }

    /// How much is on the disk.
    pub(crate) fn durable(&self) -> watch::Receiver<Durable> {
        self.durable.clone()
    }

    /// Waits until `wanted` finds something in the book (which may be a moment ahead of the disk).
    pub(crate) async fn wait_for<T>(&self, mut wanted: impl FnMut(&Book) -> Option<T>) -> T {
        let mut durable = self.durable.clone();
        loop {
            durable.mark_unchanged();
            if let Some(found) = self.read(&mut wanted) {
                return found;
            }
            if durable.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Ends the requests that a lost attempt left open, in its own journal, and returns its book.
pub(crate) fn close(path: &Path) -> io::Result<Book> {
    let (mut file, mut book, _) = recover(path)?;
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

/// Reads a journal up to its last whole line, cuts the rest off and stands at its end.
fn recover(path: &Path) -> io::Result<(File, Book, u64)> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    let mut book = Book::default();
    let mut good = 0_u64;
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 || !line.ends_with(b"\n") {
            break;
        }
        let Ok(record) = serde_json::from_slice::<Record>(&line) else {
            break;
        };
        book.apply(&record);
        good += read as u64;
    }
    if file.metadata()?.len() > good {
        tracing::warn!(journal = %path.display(), at = good, "cut off a torn line");
        file.set_len(good)?;
        file.sync_all()?;
    }
    file.seek(SeekFrom::Start(good))?;
    Ok((file, book, good))
}

struct Writer {
    file: File,
    bytes: u64,
    reserved: u64,
    progress: watch::Sender<Durable>,
}

impl Writer {
    fn run(&mut self, entries: &mpsc::Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            let mut group = vec![first];
            let mut bytes = group[0].line.clone();
            while bytes.len() < MAX_GROUP {
                let Ok(entry) = entries.try_recv() else { break };
                bytes.extend_from_slice(&entry.line);
                group.push(entry);
            }
            self.write(&bytes);
            let sequence = group.iter().map(|e| e.sequence).max().unwrap_or(0);
            self.progress.send_replace(Durable {
                bytes: self.bytes,
                sequence,
            });
            for entry in group {
                let _ = entry.done.send(());
            }
        }
    }

    /// Until it is on the disk: everything else waits, which is right, since nothing may go to the
    /// model that could not be told of.
    fn write(&mut self, bytes: &[u8]) {
        loop {
            match self.try_write(bytes) {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(%error, "the journal can't be written; trying again");
                    std::thread::sleep(WRITE_RETRY);
                }
            }
        }
        self.bytes += bytes.len() as u64;
        self.reserve();
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.bytes))?;
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn reserve(&mut self) {
        if self.bytes + RESERVE / 2 <= self.reserved {
            return;
        }
        let (Ok(from), Ok(length)) = (i64::try_from(self.bytes), i64::try_from(RESERVE)) else {
            return;
        };
        let keep_size = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Not every file system can reserve; those that can't are written to all the same.
        match nix::fcntl::fallocate(&self.file, keep_size, from, length) {
            Ok(()) => self.reserved = self.bytes + RESERVE,
            Err(error) => tracing::debug!(%error, "no space is reserved for the journal"),
        }
    }
}

/// Reads events out of a journal that may still be written.
#[derive(Debug)]
pub(crate) struct Reader {
    file: BufReader<File>,
    position: u64,
}

impl Reader {
    /// From the start.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::new(File::open(path)?),
            position: 0,
        })
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The events of the next record that has any, out of the first `durable` bytes.
    pub(crate) fn next(&mut self, durable: u64) -> io::Result<Option<Vec<Event>>> {
        let mut line = Vec::new();
        while self.position < durable {
            line.clear();
            let read = self.file.read_until(b'\n', &mut line)?;
            if !line.ends_with(b"\n") {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.position += read as u64;
            let record: Record = serde_json::from_slice(&line)?;
            if !record.events.is_empty() {
                return Ok(Some(record.events));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
