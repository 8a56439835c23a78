//! Reads a journal after a crash. A torn last line was never acknowledged to anybody and is cut off. A
//! line that can't be read in any other place is damage: the file is kept aside as it is, and what
//! the damage took is named in the places of the lost events, so that nothing is lost silently.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::encode;
use crate::supervise::book::{Book, Record};
use crate::supervise::uplink;
use crate::wire::{Event, EventBody};

/// Stands where an event was.
const WHY: &str = "The journal was damaged here; the file is kept on the volume as it was found.";
/// More events than this one damage does not take: a line that says so is damaged itself.
const LARGEST_GAP: u64 = 100_000;
/// Copies that are kept of one journal; after that it is refused.
const MAX_COPIES: u32 = 100;

/// A journal that can be written on.
pub(super) struct Recovered {
    /// At its end.
    pub(super) file: File,
    pub(super) book: Book,
    /// Its size.
    pub(super) bytes: u64,
}

/// Opens the journal at `path` and makes it where it is not there.
pub(super) fn recover(path: &Path) -> io::Result<Recovered> {
    let file = open(path)?;
    let mut book = Book::default();
    let mut good = 0_u64;
    let mut lines = Lines::new(&file);
    while let Some(line) = lines.next()? {
        let Ok(record) = serde_json::from_slice::<Record>(&line) else {
            return repair(path, &file);
        };
        book.apply(&record);
        good += line.len() as u64;
    }
    if file.metadata()?.len() > good {
        tracing::warn!(journal = %path.display(), at = good, "cut off a torn line");
        file.set_len(good)?;
        file.sync_all()?;
    }
    standing_at_its_end(file, book, good)
}

/// Keeps the damaged file aside and puts in its place what of it can be read.
fn repair(path: &Path, damaged: &File) -> io::Result<Recovered> {
    let beside = path.with_extension("repaired");
    let mut whole = File::create(&beside)?;
    let mut book = Book::default();
    let mut put = |record: &Record, book: &mut Book| -> io::Result<()> {
        whole.write_all(&encode(record)?)?;
        book.apply(record);
        Ok(())
    };
    let mut lost = 0_u64;
    let mut lines = Lines::new(damaged);
    while let Some(line) = lines.next()? {
        let record = serde_json::from_slice::<Record>(&line).ok();
        let Some(record) = record.filter(|record| follows(record, &book)) else {
            lost += 1;
            continue;
        };
        if let Some(event) = record.events.first()
            && event.sequence > book.sequence + 1
        {
            put(&omitted(book.sequence + 1..=event.sequence - 1), &mut book)?;
        }
        put(&record, &mut book)?;
    }
    // What the server has under these numbers must not be said again with another meaning.
    let acknowledged = uplink::acked(path);
    if acknowledged > book.sequence && acknowledged - book.sequence <= LARGEST_GAP {
        put(&omitted(book.sequence + 1..=acknowledged), &mut book)?;
    }
    let bytes = whole.stream_position()?;
    whole.sync_all()?;
    let copy = keep(path)?;
    fs::rename(&beside, path)?;
    tracing::error!(
        journal = %path.display(), copy = %copy.display(), lines = lost,
        "lines of the journal are damaged; it is kept aside, and goes on without them"
    );
    standing_at_its_end(open(path)?, book, bytes)
}

/// Whether a record can be the next, or the next after some that are lost.
fn follows(record: &Record, book: &Book) -> bool {
    let mut expected = None;
    record.events.iter().all(|event| {
        let follows = match expected {
            Some(expected) => event.sequence == expected,
            None => event.sequence > book.sequence && event.sequence - book.sequence <= LARGEST_GAP,
        };
        expected = event.sequence.checked_add(1);
        follows
    })
}

fn omitted(sequences: RangeInclusive<u64>) -> Record {
    let at = Timestamp::now();
    let events = sequences.map(|sequence| Event {
        sequence,
        at,
        body: EventBody::Omitted {
            why: WHY.to_owned(),
        },
    });
    Record {
        events: events.collect(),
        ..Record::default()
    }
}

/// Gives the file a second name, under which it stays.
fn keep(path: &Path) -> io::Result<PathBuf> {
    for copy in 1..=MAX_COPIES {
        let name = path.with_extension(format!("{copy}.damaged"));
        match fs::hard_link(path, &name) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("the journal was damaged too often"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn standing_at_its_end(mut file: File, book: Book, bytes: u64) -> io::Result<Recovered> {
    file.seek(SeekFrom::Start(bytes))?;
    Ok(Recovered { file, book, bytes })
}

/// The whole lines of a file, from its start.
struct Lines<'a> {
    reader: BufReader<&'a File>,
    at_start: bool,
}

impl<'a> Lines<'a> {
    fn new(file: &'a File) -> Self {
        Self {
            reader: BufReader::new(file),
            at_start: false,
        }
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if !self.at_start {
            self.reader.rewind()?;
            self.at_start = true;
        }
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        Ok(line.ends_with(b"\n").then_some(line))
    }
}
