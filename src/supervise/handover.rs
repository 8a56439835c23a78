//! What earlier pods left on the volume: journals of lost attempts are closed and handed in, and
//! those that the server has whole are removed, so that the folder does not grow for ever.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::book::Book;
use super::journal::{self, Durable};
use super::uplink::{self, RunFile, Tail, Uplink};
use super::{cost, files};
use crate::wire::EarlierAttempt;

/// A journal that no server has wanted for so long is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Folder of a run's journals.
pub(super) fn run_folder(state: &Path, run: Uuid) -> PathBuf {
    state.join("runs").join(run.to_string())
}

/// Journal of an attempt.
pub(super) fn journal_file(folder: &Path, attempt: u32) -> PathBuf {
    folder.join(format!("{attempt}.journal"))
}

/// Reads `run.json`.
pub(super) fn read_run(folder: &Path) -> io::Result<RunFile> {
    Ok(serde_json::from_slice(&fs::read(folder.join("run.json"))?)?)
}

/// Writes `run.json`.
pub(super) fn write_run(folder: &Path, run: &RunFile) -> io::Result<()> {
    files::replace(&folder.join("run.json"), &serde_json::to_vec(run)?)
}

/// What is still to be handed in.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Figures of lost attempts of this run.
    pub(super) earlier: Vec<EarlierAttempt>,
    /// Journals of this run's earlier attempts.
    pub(super) own: Vec<Unsent>,
    /// Journals of earlier runs on this volume.
    pub(super) others: Vec<Unsent>,
}

/// A journal that the server does not have whole.
#[derive(Debug)]
pub(super) struct Unsent {
    pub(super) tail: Tail,
    end: Durable,
    folder: PathBuf,
}

impl Unsent {
    /// Sequence of the last event.
    pub(super) fn last(&self) -> u64 {
        self.end.sequence
    }
}

/// Closes what lost attempts left open and finds what the server still lacks. Earlier runs that it
/// has whole are removed.
pub(super) fn collect(state: &Path, run: Uuid, attempt: u32) -> io::Result<Left> {
    let mut left = Left::default();
    for entry in fs::read_dir(state.join("runs"))? {
        let folder = entry?.path();
        let own = folder == run_folder(state, run);
        match collect_run(state, &folder, own.then_some(attempt)) {
            Ok(found) => {
                if !own && found.iter().all(|(_, _, unsent)| unsent.is_none()) {
                    remove(&folder);
                }
                for (attempt, book, unsent) in found {
                    if own && book.sealed.is_none() {
                        let usage = book.usage;
                        left.earlier.push(EarlierAttempt { attempt, usage });
                    }
                    let list = if own { &mut left.own } else { &mut left.others };
                    list.extend(unsent);
                }
            }
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "journals can't be read")
            }
        }
    }
    left.earlier.sort_by_key(|earlier| earlier.attempt);
    Ok(left)
}

type Found = (u32, Book, Option<Unsent>);

fn collect_run(state: &Path, folder: &Path, own_attempt: Option<u32>) -> io::Result<Vec<Found>> {
    let mut attempts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path
            .file_stem()
            .and_then(|s| s.to_str())
            .and_then(|s| s.parse().ok());
        if let Some(attempt) = number.filter(|_| path.extension().is_some_and(|e| e == "journal"))
            && own_attempt != Some(attempt)
        {
            attempts.push((attempt, path));
        }
    }
    attempts.sort();
    if attempts.is_empty() {
        return Ok(Vec::new());
    }
    let run = Arc::new(read_run(folder)?);
    let close_one = |(attempt, path): (u32, PathBuf)| close(state, folder, &run, attempt, path);
    attempts.into_iter().map(close_one).collect()
}

fn close(
    state: &Path,
    folder: &Path,
    run: &Arc<RunFile>,
    attempt: u32,
    path: PathBuf,
) -> io::Result<Found> {
    let book = journal::close(&path)?;
    if book.sealed.is_none()
        && let Some(cost) = book.session_cost_micro_usd
    {
        // It may have been lost between the journal and the session's file.
        cost::set_of_session(state, run.session_id, cost)?;
    }
    let metadata = fs::metadata(&path)?;
    let end = Durable {
        bytes: metadata.len(),
        sequence: book.sequence,
    };
    let old = metadata
        .modified()?
        .elapsed()
        .is_ok_and(|age| age > GIVEN_UP_AFTER);
    if old {
        tracing::warn!(journal = %path.display(), "given up: no server has taken it for 30 days");
    }
    let unsent = (uplink::acked(&path) < end.sequence && !old).then(|| Unsent {
        tail: Tail::new(run.clone(), attempt, path),
        end,
        folder: folder.to_owned(),
    });
    Ok((attempt, book, unsent))
}

/// Hands journals in, one after the other, for as long as it takes.
pub(super) async fn hand_in(uplink: Uplink, unsent: Vec<Unsent>, remove_after: bool) {
    for mut one in unsent {
        one.tail.deliver(&uplink, one.end).await;
        if remove_after && is_handed_in(&one.folder) {
            remove(&one.folder);
        }
    }
}

/// Whether the server has every journal of that folder whole.
fn is_handed_in(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "journal"))
        .all(|path| journal::close(&path).is_ok_and(|book| uplink::acked(&path) >= book.sequence))
}

/// Whether the folder holds a journal that was kept aside, and not for so long that nobody will ask.
fn has_damaged(folder: &Path) -> bool {
    let is_kept = |file: fs::DirEntry| {
        let of_interest = |age: Duration| age <= GIVEN_UP_AFTER;
        let modified = file.metadata().and_then(|metadata| metadata.modified());
        file.path().extension().is_some_and(|e| e == "damaged")
            && modified.is_ok_and(|at| at.elapsed().is_ok_and(of_interest))
    };
    fs::read_dir(folder).is_ok_and(|files| files.flatten().any(is_kept))
}

fn remove(folder: &Path) {
    if has_damaged(folder) {
        return;
    }
    if let Err(error) = fs::remove_dir_all(folder) {
        tracing::warn!(folder = %folder.display(), %error, "old journals can't be removed");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::journal::{Draft, Journal};
    use super::*;
    use crate::wire::EventBody;

    async fn leave(state: &Path, run: Uuid, attempt: u32) -> PathBuf {
        let folder = run_folder(state, run);
        fs::create_dir_all(&folder).unwrap();
        let file = RunFile {
            run_id: run,
            namespace: "ns".into(),
            name: "r".into(),
            session_id: run,
            session_name: "s".into(),
            initial_commit: None,
        };
        write_run(&folder, &file).unwrap();
        let path = journal_file(&folder, attempt);
        let journal = Journal::open(&path).unwrap();
        let body = EventBody::RequestStarted {
            request: 1,
            bytes: 400,
        };
        journal.append(|_| Draft::event(body)).durable().await;
        path
    }

    #[tokio::test]
    async fn a_lost_attempt_of_this_run_is_closed_and_its_figures_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let run = Uuid::from_u128(1);
        leave(dir.path(), run, 1).await;
        leave(dir.path(), run, 2).await;
        let left = collect(dir.path(), run, 2).unwrap();
        assert_eq!(left.earlier.len(), 1);
        assert_eq!(
            (
                left.earlier[0].attempt,
                left.earlier[0].usage.estimated_requests
            ),
            (1, 1)
        );
        assert_eq!(
            (left.own.len(), left.own[0].last(), left.others.len()),
            (1, 2, 0)
        );
        let again = collect(dir.path(), run, 2).unwrap();
        assert_eq!(again.earlier, left.earlier);
    }

    #[tokio::test]
    async fn an_earlier_run_is_removed_once_the_server_has_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let old = Uuid::from_u128(1);
        let path = leave(dir.path(), old, 1).await;
        let left = collect(dir.path(), Uuid::from_u128(2), 1).unwrap();
        assert_eq!((left.own.len(), left.others.len()), (0, 1));
        fs::write(path.with_extension("acked"), "2").unwrap();
        let left = collect(dir.path(), Uuid::from_u128(2), 1).unwrap();
        assert!(left.others.is_empty());
        assert!(!run_folder(dir.path(), old).exists());
    }

    #[tokio::test]
    async fn a_journal_that_was_kept_aside_stays_though_the_server_has_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let old = Uuid::from_u128(1);
        let path = leave(dir.path(), old, 1).await;
        fs::write(path.with_extension("acked"), "2").unwrap();
        let copy = path.with_extension("1.damaged");
        fs::write(&copy, "x").unwrap();
        let left = collect(dir.path(), Uuid::from_u128(2), 1).unwrap();
        assert!(left.others.is_empty() && copy.exists());
    }
}
