//! The one thread that writes a journal: in groups, each fsynced, with room reserved ahead of it. It
//! knows when the disk takes nothing more, and says so; what follows from that is decided elsewhere.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::{oneshot, watch};

use super::Durable;

/// Disk that is reserved ahead of the writer, so that an agent that fills the volume can't keep the
/// journal from telling.
const RESERVE: u64 = 8 * 1024 * 1024;
/// What must be left of a reserve that can't be renewed, for the end of the run to be told.
const LAST_ROOM: u64 = 2 * 1024 * 1024;
/// How long the writer waits before it tries a failed write again.
const WRITE_RETRY: Duration = Duration::from_secs(1);
/// Largest group of one fsync, in bytes.
const MAX_GROUP: usize = 1024 * 1024;

/// A line on its way to the disk.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) line: Vec<u8>,
    pub(super) sequence: u64,
    pub(super) done: oneshot::Sender<()>,
}

/// What is wrong with the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// In the system's words.
    pub(crate) cause: String,
    /// No room is left, rather than that the disk fails.
    pub(crate) full: bool,
    /// Only what was reserved can still be written, and that is nearly used up.
    pub(crate) last_room: bool,
}

#[derive(Debug)]
pub(super) struct Writer {
    pub(super) file: File,
    pub(super) bytes: u64,
    pub(super) reserved: u64,
    pub(super) progress: watch::Sender<Durable>,
    pub(super) trouble: watch::Sender<Option<Trouble>>,
}

impl Writer {
    pub(super) fn run(mut self, entries: &mpsc::Receiver<Entry>) {
        self.reserve();
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
        while let Err(error) = self.try_write(bytes) {
            tracing::error!(%error, "the journal can't be written; trying again");
            self.trouble.send_replace(Some(Trouble {
                cause: error.to_string(),
                full: error
                    .raw_os_error()
                    .is_some_and(|code| is_full(Errno::from_raw(code))),
                last_room: false,
            }));
            std::thread::sleep(WRITE_RETRY);
        }
        self.bytes += bytes.len() as u64;
        let trouble = self.reserve();
        self.trouble.send_if_modified(|now| {
            let differs = *now != trouble;
            *now = trouble;
            differs
        });
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.bytes))?;
        self.file.write_all(bytes)?;
        self.file.sync_data()
    }

    fn reserve(&mut self) -> Option<Trouble> {
        let left = self.reserved.saturating_sub(self.bytes);
        if left >= RESERVE / 2 {
            return None;
        }
        let (Ok(from), Ok(length)) = (i64::try_from(self.bytes), i64::try_from(RESERVE)) else {
            return None;
        };
        let keep_size = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Not every file system can reserve; those that can't are written to all the same.
        match nix::fcntl::fallocate(&self.file, keep_size, from, length) {
            Ok(()) => {
                self.reserved = self.bytes + RESERVE;
                None
            }
            Err(error) => {
                tracing::debug!(%error, "no space is reserved for the journal");
                let had_one = self.reserved > 0;
                had_one.then(|| of_reserve(left, error)).flatten()
            }
        }
    }
}

/// What it means that a reserve of which so much is left can't be renewed.
fn of_reserve(left: u64, error: Errno) -> Option<Trouble> {
    (left < LAST_ROOM && is_full(error)).then(|| Trouble {
        cause: error.desc().to_owned(),
        full: true,
        last_room: true,
    })
}

fn is_full(error: Errno) -> bool {
    matches!(error, Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_reserve_that_cannot_be_renewed_is_told_while_there_is_room_to_tell_of_the_end() {
        assert_eq!(of_reserve(LAST_ROOM, Errno::ENOSPC), None);
        let told = of_reserve(LAST_ROOM - 1, Errno::ENOSPC).unwrap();
        assert!(told.full && told.last_room, "{told:?}");
        // A file system that can't reserve is none that is full.
        assert_eq!(of_reserve(0, Errno::EOPNOTSUPP), None);
    }
}
