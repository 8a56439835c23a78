//! What the supervisor remembers of a workspace's repository between runs: a small file beside the
//! trusted git dir, written before and after each step that must not be taken for finished.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;
use uuid::Uuid;

use super::{Error, Head, Place};

/// The record of a workspace's repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// URL without credentials.
    pub(super) url: String,
    /// False while a first checkout is being written into the worktree: what is there is ours, half
    /// made, and no agent has seen it.
    pub(super) ready: bool,
    /// Remote branch that was fetched; nothing where it was a tag or a commit.
    pub(super) tracked: Option<String>,
    /// Branch of the last known HEAD.
    pub(super) branch: Option<String>,
    /// Commit of the last known HEAD.
    pub(super) commit: Option<String>,
    /// The run that it was made ready for last.
    #[serde(default)]
    pub(super) run: Uuid,
    /// What that run was told of it.
    #[serde(default)]
    pub(super) notes: Vec<String>,
    /// Our packs from before the fetch whose objects the agent's `.git` does not have yet.
    #[serde(default)]
    pub(super) before_fetch: Option<Vec<String>>,
    /// It is being brought to a commit: the worktree is ours until it is there.
    #[serde(default)]
    pub(super) moving: Option<Moving>,
}

/// A worktree on its way. What would be lost by it is saved, and what is to be removed is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Moving {
    /// The run that it is done for.
    pub(super) run: Uuid,
    /// Branch that is to be checked out; detached where absent.
    pub(super) branch: Option<String>,
    /// Where it goes.
    pub(super) commit: String,
    /// The backup's ref.
    pub(super) backup: Option<String>,
    /// What that run is told of it.
    pub(super) notes: Vec<String>,
}

impl Record {
    /// Reads the record; nothing where no checkout was ever begun.
    pub(super) fn read(place: &Place) -> Result<Option<Self>, Error> {
        let bytes = match fs::read(place.record()) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::file("read the record of the last checkout", &e)),
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::checkout(format!(
                "the record of the last checkout can't be read: {e}"
            ))
        })
    }

    /// Writes the record so that a crash leaves the old or the new one, never half of it.
    pub(super) fn write(&self, place: &Place) -> Result<(), Error> {
        let write = || -> io::Result<()> {
            let draft = place.trusted.join("record.new");
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, place.record())?;
            File::open(&place.trusted)?.sync_all()
        };
        write().map_err(|e| Error::file("record the checkout", &e))
    }

    /// Remembers where HEAD was last.
    pub(super) fn set_head(&mut self, head: &Head) {
        self.branch.clone_from(&head.branch);
        self.commit.clone_from(&head.commit);
    }

    /// Where HEAD was last.
    pub(super) fn head(&self) -> Head {
        Head {
            branch: self.branch.clone(),
            commit: self.commit.clone(),
        }
    }
}

impl Place {
    /// The trusted git dir.
    pub(super) fn git_dir(&self) -> PathBuf {
        self.trusted.join("repository.git")
    }

    /// Where a foreign pack waits until it is verified.
    pub(super) fn incoming(&self) -> PathBuf {
        self.trusted.join("incoming")
    }

    /// The paths that are removed on the way to another commit.
    pub(super) fn removals(&self) -> PathBuf {
        self.trusted.join("removals")
    }

    fn record(&self) -> PathBuf {
        self.trusted.join("record.json")
    }
}

/// The URL as it may be shown, stored and given to the agent: without user name and password.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // These fail only for URLs that can't hold credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_fragment(None);
    url.into()
}

/// Whether two shown URLs name one repository.
pub(super) fn same_repository(one: &str, other: &str) -> bool {
    fn plain(url: &str) -> &str {
        let url = url.trim_end_matches('/');
        url.strip_suffix(".git").unwrap_or(url)
    }
    plain(one) == plain(other)
}
