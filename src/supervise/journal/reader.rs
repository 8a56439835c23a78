//! Reads events out of a journal, beside its writer.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use super::Record;
use crate::wire::Event;

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
