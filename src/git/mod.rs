//! Git, as the supervisor needs it: checkout through a trusted git dir, taking over what the agent
//! left, counting what changed, pushing it. It owns everything that touches a repository, and opens
//! none on hostile ground: `work/.git` is read file by file, never by a git library. When to push,
//! and what of it goes into a run's status, is the supervisor's.
//!
//! Every function here blocks: call it from a blocking thread.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use url::Url;
use uuid::Uuid;

use crate::api::repository::OnReuse;
use crate::report::Report;
use crate::wire;

mod attributes;
mod backup;
mod changes;
mod checkout;
mod content;
mod differences;
mod disk;
mod error;
mod give;
mod handover;
mod history;
mod ignore;
mod index_file;
mod inspect;
mod leftover;
mod line_ends;
mod lines;
mod locks;
mod loose;
mod moving;
mod notes;
mod objects;
mod pack;
mod packs;
mod patch;
mod push;
mod record;
mod refs;
mod refspec;
mod remote;
mod renames;
mod reuse;
mod runtime;
mod ssh;
mod survey;
mod take_over;
mod threads;
mod tree_diff;
mod trusted;
mod uncommitted;
mod volume;
mod wildmatch;
mod worktree;

pub use differences::{DIFFERENCES, Difference};
pub use error::Error;
pub use patch::Limits;

/// What opens a remote repository.
#[derive(Clone, Default)]
pub struct Access {
    /// User name; `git` where only a password is given.
    pub username: Option<String>,
    /// Password or token.
    pub password: Option<String>,
    /// Private key for ssh, as ssh-keygen writes it, without a passphrase.
    pub private_key: Option<String>,
    /// Folder whose file `.ssh/known_hosts` says which hosts the key is shown to.
    pub ssh_home: Option<PathBuf>,
    /// Hosts that the password may be sent to: `host` or `host:port`.
    pub hosts: Vec<String>,
    /// PEM bundles that the server's certificate may chain to, beside the public roots.
    pub ca_files: Vec<PathBuf>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "(redacted)"))
            .field(
                "private_key",
                &self.private_key.as_ref().map(|_| "(redacted)"),
            )
            .field("ssh_home", &self.ssh_home)
            .field("hosts", &self.hosts)
            .field("ca_files", &self.ca_files)
            .finish()
    }
}

/// The remote branch that a commit is pushed to.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// Its name.
    pub branch: &'a str,
    /// Protected branches that may be pushed to all the same.
    pub allowed: &'a [String],
}

/// No protected one.
impl<'a> From<&'a str> for Target<'a> {
    fn from(branch: &'a str) -> Self {
        Self {
            branch,
            allowed: &[],
        }
    }
}

/// What is to be checked out.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where from. User name and password in it are used for nothing.
    pub url: Url,
    /// Branch, tag or full name of a commit, looked for in this order; the remote's default branch
    /// where absent.
    pub reference: Option<String>,
    /// So many commits of history; all where absent.
    pub depth: Option<u32>,
    /// The run that it is for. What is done about an earlier run's work is done once for a run.
    pub run: Uuid,
    /// What is done about that.
    pub on_reuse: OnReuse,
    /// Where it is told how far the fetch has come.
    pub progress: Arc<Progress>,
}

/// How far a fetch has come.
#[derive(Debug, Default)]
pub struct Progress {
    received_objects: AtomicU64,
    total_objects: AtomicU64,
    received_bytes: AtomicU64,
}

impl Progress {
    /// Objects received, objects in all, bytes received; nothing before the first has come.
    pub fn far(&self) -> Option<(u64, u64, u64)> {
        let [received, total, bytes] = [
            &self.received_objects,
            &self.total_objects,
            &self.received_bytes,
        ]
        .map(|figure| figure.load(Ordering::Relaxed));
        (total > 0).then_some((received, total, bytes))
    }

    fn set(&self, progress: &git2::Progress<'_>) {
        for (figure, value) in [
            (&self.received_objects, progress.received_objects()),
            (&self.total_objects, progress.total_objects()),
            (&self.received_bytes, progress.received_bytes()),
        ] {
            figure.store(value as u64, Ordering::Relaxed);
        }
    }
}

impl Wanted {
    /// The remote's default branch, whole, and what is there already as it is.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            reference: None,
            depth: None,
            run: Uuid::nil(),
            on_reuse: OnReuse::Keep,
            progress: Arc::default(),
        }
    }
}

/// Where a workspace's repository lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// The supervisor's own directory, e.g. `/state/git`: our git dir and our record of it.
    pub trusted: PathBuf,
    /// What the agent works in, e.g. `/workspace`.
    pub worktree: PathBuf,
}

/// A workspace that is ready for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedOut {
    /// Branch that is checked out; nothing where HEAD is detached (at a tag or a commit, or as an
    /// earlier run left it).
    pub branch: Option<String>,
    /// HEAD before the agent; nothing in an empty repository.
    pub initial_commit: Option<String>,
    /// What somebody should know of this checkout, in sentences.
    pub notes: Vec<String>,
}

/// Where the agent's HEAD is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Branch; nothing where HEAD is detached.
    pub branch: Option<String>,
    /// Commit; nothing where the branch has none yet.
    pub commit: Option<String>,
}

/// Makes `place.worktree` ready for the agent: a fresh checkout of what is wanted, or, where an
/// earlier run has worked there, what `on_reuse` makes of it. Called again for the same run, it leaves
/// what is there. Not to be called while the agent runs: a supervisor that comes back in the middle of
/// a run goes on with the initial commit that it journalled.
pub fn checkout(
    place: &Place,
    wanted: &Wanted,
    access: &Access,
    cancel: &AtomicBool,
) -> Result<CheckedOut, Error> {
    runtime::prepare()?;
    checkout::checkout(place, wanted, access, cancel)
}

/// Takes over into the trusted git dir what the agent has committed, and says where its HEAD is.
pub fn take_over(place: &Place) -> Result<Head, Error> {
    runtime::prepare()?;
    take_over::take_over(place)
}

/// Counts what changed between the initial commit and `head`, as git itself counts.
pub fn changes(
    place: &Place,
    url: &Url,
    initial: Option<&str>,
    head: &Head,
) -> Result<wire::Changes, Error> {
    runtime::prepare()?;
    survey::of_workspace(place, url, initial, head)
}

/// What changed between the initial commit and `head`, and what of it is not committed, as patches. The
/// limit of bytes is for both together, the committed one first.
pub fn patch(
    place: &Place,
    initial: Option<&str>,
    head: &Head,
    limits: Limits,
) -> Result<wire::patch::Patch, Error> {
    runtime::prepare()?;
    patch::of_workspace(place, initial, head, limits)
}

/// What changed since a commit in any repository on disk, and what of it is not committed, as patches.
pub fn inspect_patch(
    path: &Path,
    since: &str,
    limits: Limits,
) -> Result<wire::patch::Patch, Error> {
    runtime::prepare()?;
    inspect::patches(path, since, limits)
}

/// What changed since a commit in any repository on disk, and what of it is not committed. Nothing of
/// its configuration is read, nothing in it is run.
pub fn inspect(path: &Path, since: &str) -> Result<Report, Error> {
    runtime::prepare()?;
    inspect::inspect(path, since)
}

/// What changed between any two commits of a repository on disk, which it does for the tests that hold
/// it against git.
pub fn compare(path: &Path, from: &str, to: &str) -> Result<Report, Error> {
    runtime::prepare()?;
    inspect::compare(path, from, to)
}

/// Points the remote's branch at `commit`, fast-forward only, and makes it if there is none.
/// Pushing what is there already is success.
pub fn push<'t>(
    place: &Place,
    url: &Url,
    commit: &str,
    target: impl Into<Target<'t>>,
    access: &Access,
) -> Result<(), Error> {
    runtime::prepare()?;
    push::push(place, url, commit, target.into(), access)
}
