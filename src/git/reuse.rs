//! A workspace that holds the repository already: what is fetched for it, and whether it stays, goes
//! on to the remote's branch or is replaced by it (`repository.onReuse`). Nothing that only the
//! workspace has is ever lost by it.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use git2::{Oid, Repository};

use super::backup::{self, Kept};
use super::error::Kind;
use super::give;
use super::history;
use super::leftover::{self, Leftover};
use super::objects::Objects;
use super::record::{Moving, Record, same_repository};
use super::refs::Named;
use super::remote::{Fetched, Host};
use super::trusted::{self, commit_id};
use super::uncommitted::{self, Ground};
use super::volume::{Folder, Found};
use super::{CheckedOut, Error, Head, Place, Wanted, checkout, moving, notes, survey};
use crate::api::repository::OnReuse;

/// How long a run that keeps what is there waits for the remote: it needs nothing of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an earlier run left is the starting point of this one.
pub(super) fn reuse(
    place: &Place,
    host: &Host<'_>,
    wanted: &Wanted,
    mut record: Record,
    cancel: &AtomicBool,
) -> Result<CheckedOut, Error> {
    if !same_repository(&record.url, &host.url) {
        return Err(Error::checkout(format!(
            "the workspace holds a checkout of {}, not of {}: use another workspace",
            record.url, host.url
        )));
    }
    // What was begun is ended first, be it another run's.
    moving::finish(place, &mut record, cancel)?;
    let mut head = as_left(place, &record, wanted)?;
    let mut record = Record::read(place)?.unwrap_or(record);
    if record.run != wanted.run {
        let reuse = Reuse {
            place,
            wanted,
            host,
            cancel,
            head,
        };
        head = reuse.run(&mut record)?;
    }
    Ok(CheckedOut {
        branch: head.branch,
        initial_commit: head.commit,
        notes: record.notes,
    })
}

fn as_left(place: &Place, record: &Record, wanted: &Wanted) -> Result<Head, Error> {
    let is_reset = wanted.on_reuse == OnReuse::Reset && record.run != wanted.run;
    checkout::as_left(place, record).map_err(|why| match is_reset {
        true => Error::new(
            why.kind(),
            format!(
                "{why}; what can't be saved is not reset: use another workspace, or delete this one"
            ),
        ),
        false => why,
    })
}

struct Reuse<'r> {
    place: &'r Place,
    wanted: &'r Wanted,
    host: &'r Host<'r>,
    cancel: &'r AtomicBool,
    /// As the earlier run left it.
    head: Head,
}

/// What is made of the remote's state.
enum Step {
    /// Everything stays; perhaps that has to be told.
    Stay(Option<String>),
    /// It goes there.
    Go(Box<Leftover>, Moving),
}

impl Reuse<'_> {
    fn run(self, record: &mut Record) -> Result<Head, Error> {
        let repo = trusted::open(self.place)?;
        let fetched = match self.fetch(&repo, record) {
            Ok(fetched) => fetched,
            Err(why) if self.needs_no_remote(&why) => {
                let note =
                    format!("The workspace stays as it is, without a look at the remote: {why}.");
                return self.stays(record, Some(note));
            }
            Err(why) => return Err(why),
        };
        let step = match (self.wanted.on_reuse, fetched.commit) {
            (OnReuse::Keep, _) => Step::Stay(None),
            (_, None) => Step::Stay(Some(
                "The remote is empty: the workspace stays as it is.".to_owned(),
            )),
            (OnReuse::Update, Some(commit)) => self.update(&repo, &fetched, commit)?,
            (OnReuse::Reset, Some(commit)) => self.reset(&repo, &fetched, commit)?,
        };
        match step {
            Step::Stay(note) => self.stays(record, note),
            Step::Go(left, moving) => {
                moving::begin(self.place, record, &left, moving)?;
                moving::finish(self.place, record, self.cancel)?;
                Ok(record.head())
            }
        }
    }

    fn stays(self, record: &mut Record, note: Option<String>) -> Result<Head, Error> {
        record.run = self.wanted.run;
        record.notes = note.into_iter().collect();
        record.write(self.place)?;
        Ok(self.head)
    }

    /// What somebody has to set right is not passed over: the run's push would meet it again, after
    /// its work.
    fn needs_no_remote(&self, why: &Error) -> bool {
        let in_secret = [
            Kind::Authentication,
            Kind::HostNotAllowed,
            Kind::UnknownHost,
        ];
        self.wanted.on_reuse == OnReuse::Keep
            && !why.is_cancelled()
            && !(self.host.has_secret() && in_secret.contains(&why.kind()))
    }

    /// Fetches, and gives the agent's `.git` what came.
    fn fetch(&self, repo: &Repository, record: &mut Record) -> Result<Fetched, Error> {
        let ours = self.place.git_dir().join("objects");
        if record.before_fetch.is_none() {
            let packs = give::packs(&ours).map_err(|e| Error::file("list our packs", &e))?;
            record.before_fetch = Some(packs);
            record.write(self.place)?;
        }
        if self.wanted.on_reuse == OnReuse::Keep {
            self.host.give_up_after(PATIENCE);
        }
        let list = |e: git2::Error| Error::local("list our refs", &e);
        let (tags, known) = (
            give::tags_of(repo).map_err(list)?,
            known(repo).map_err(list)?,
        );
        // History was cut off by the first checkout, or not at all.
        let wanted = Wanted {
            depth: None,
            ..self.wanted.clone()
        };
        let fetched = self.host.fetch(repo, &wanted)?;
        record.tracked.clone_from(&fetched.branch);
        let before = tags.into_iter().map(|(name, _)| name).collect();
        let given = self.give(repo, record, &fetched, &known, &before);
        given.map_err(|e| Error::file("bring what was fetched to the workspace's .git", &e))?;
        Ok(fetched)
    }

    fn give(
        &self,
        repo: &Repository,
        record: &mut Record,
        fetched: &Fetched,
        known: &[(String, Oid)],
        tags: &HashSet<String>,
    ) -> io::Result<()> {
        let Found::Here(git) = Folder::open(&self.place.worktree)?.folder(".git")? else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        // What came builds upon what the agent's .git had: if its refs to that are gone, the objects
        // may be, too.
        let theirs = Named::of(&git)?;
        let mut has_all = true;
        for (name, id) in known {
            has_all &= theirs.commit_at(name)? == Some(*id);
        }
        let ours = self.place.git_dir().join("objects");
        let given = record.before_fetch.as_deref().filter(|_| has_all);
        give::objects(&ours, &git, given.unwrap_or_default())?;
        if !has_all {
            give::loose_objects(&ours, &git)?;
        }
        if let Some((name, id)) = fetched.reference.as_ref().zip(fetched.commit)
            && name.starts_with("refs/remotes/origin/")
        {
            give::reference(&git, name, id)?;
        }
        give::tags(repo, &git, &theirs, tags)?;
        record.before_fetch = None;
        record.write(self.place).map_err(io::Error::other)
    }

    /// To the remote's branch, where nothing that is only here is in the way.
    fn update(&self, repo: &Repository, fetched: &Fetched, commit: Oid) -> Result<Step, Error> {
        let objects = Objects::of(repo)?;
        let head = self.head.commit.as_deref().map(commit_id).transpose()?;
        if let Some(head) = head
            && is_ancestor(&objects, commit, head)
        {
            return Ok(Step::Stay(None));
        }
        let stay = |why: String| {
            let note =
                format!("The workspace stays as it is and is not updated to {commit}: {why}.");
            Ok(Step::Stay(Some(note)))
        };
        if let Some(head) = head
            && !is_on_remote(&objects, head, commit, &fetched.tips)
        {
            return stay(format!("the remote does not have its commit {head}"));
        }
        let own = fetched
            .branch
            .as_ref()
            .and_then(|branch| agents(repo, branch));
        if let Some(own) = own.filter(|own| Some(*own) != head)
            && !is_on_remote(&objects, own, commit, &fetched.tips)
        {
            return stay(format!(
                "the remote does not have commit {own} of its branch {}",
                fetched.branch.as_deref().unwrap_or_default()
            ));
        }
        if let Some(why) = clash(repo, fetched.branch.as_deref())? {
            return stay(why);
        }
        let folders = survey::folders(self.place)?;
        let ground = Ground::of_workspace(&objects, &folders);
        match moving::unfinished(ground.git) {
            Ok(None) => {}
            Ok(Some(what)) => {
                return stay(format!(
                    "its .git holds {what}, of work in the middle of which git was"
                ));
            }
            Err(e) => return stay(format!("its .git can't be read: {e}")),
        }
        match uncommitted::look(&ground, head) {
            Ok(look)
                if look.staged.files_changed
                    + look.unstaged.files_changed
                    + look.unmerged.count
                    == 0 => {}
            Ok(_) => return stay("it holds changes that are not committed".to_owned()),
            Err(why) => return stay(format!("what is not committed in it can't be told: {why}")),
        }
        moving::is_possible(repo, commit)?;
        let target = leftover::files_of(&objects, commit)?;
        let left = match leftover::look(&ground, &target, true) {
            Ok(left) => left,
            Err(why) => return stay(why.to_string()),
        };
        if let Some((path, _)) = left.unknown.first_key_value() {
            let path = super::disk::lossy(path);
            return stay(format!("its file {path:?} is in no commit, and in the way"));
        }
        let notes = notes::of(repo, commit)?;
        Ok(Step::Go(
            Box::new(left),
            self.moving(fetched, commit, None, notes),
        ))
    }

    /// To the remote's branch, with what is only here saved.
    fn reset(&self, repo: &Repository, fetched: &Fetched, commit: Oid) -> Result<Step, Error> {
        let objects = Objects::of(repo)?;
        if let Some(why) = clash(repo, fetched.branch.as_deref())? {
            return Err(Error::checkout(why));
        }
        moving::is_possible(repo, commit)?;
        let folders = survey::folders(self.place)?;
        let ground = Ground::of_workspace(&objects, &folders);
        let target = leftover::files_of(&objects, commit)?;
        let left = leftover::look(&ground, &target, false)?;
        let head = self.head.commit.as_deref().map(commit_id).transpose()?;
        let own = fetched
            .branch
            .as_ref()
            .and_then(|branch| agents(repo, branch));
        let mut lost: Vec<Oid> = head.into_iter().chain(own).collect();
        lost.dedup();
        lost.retain(|id| !is_on_remote(&objects, *id, commit, &fetched.tips));
        let kept = Kept {
            head,
            lost,
            left: &left,
            before: self.wanted.run,
        };
        let backup = backup::keep(repo, &objects, ground.work, &kept)?;
        let mut notes = Vec::new();
        if let Some(name) = &backup {
            notes.push(format!(
                "What the workspace held and the remote does not is saved in it as {name}."
            ));
        }
        notes.extend(notes::of(repo, commit)?);
        Ok(Step::Go(
            Box::new(left),
            self.moving(fetched, commit, backup, notes),
        ))
    }

    fn moving(
        &self,
        fetched: &Fetched,
        commit: Oid,
        backup: Option<String>,
        notes: Vec<String>,
    ) -> Moving {
        Moving {
            run: self.wanted.run,
            branch: fetched.branch.clone(),
            commit: commit.to_string(),
            backup,
            notes,
        }
    }
}

/// The remote's branches as we knew them.
fn known(repo: &Repository) -> Result<Vec<(String, Oid)>, git2::Error> {
    let mut known = Vec::new();
    for reference in repo.references_glob("refs/remotes/origin/*")? {
        let reference = reference?;
        if let (Ok(name), Some(id)) = (reference.name(), reference.target()) {
            known.push((name.to_owned(), id));
        }
    }
    Ok(known)
}

/// Where the agent has left that branch.
fn agents(repo: &Repository, branch: &str) -> Option<Oid> {
    repo.refname_to_id(&format!("refs/agent/heads/{branch}"))
        .ok()
}

/// Whether the agent has made a branch beside which there can't be this one.
fn clash(repo: &Repository, branch: Option<&str>) -> Result<Option<String>, Error> {
    let Some(branch) = branch else {
        return Ok(None);
    };
    let list = |e: git2::Error| Error::local("list our refs", &e);
    for own in repo.references_glob("refs/agent/heads/*").map_err(list)? {
        let own = own.map_err(list)?;
        let name = own
            .name()
            .ok()
            .and_then(|n| n.strip_prefix("refs/agent/heads/"));
        let Some(name) = name else { continue };
        let is_below = |one: &str, other: &str| {
            one.strip_prefix(other)
                .is_some_and(|rest| rest.starts_with('/'))
        };
        if is_below(name, branch) || is_below(branch, name) {
            return Ok(Some(format!(
                "it has a branch {name}, beside which there can be no {branch}"
            )));
        }
    }
    Ok(None)
}

/// What can't be told is none.
fn is_ancestor(objects: &Objects<'_>, one: Oid, of: Oid) -> bool {
    history::is_reachable(objects, one, &[of]).unwrap_or(false)
}

/// Whether a commit is part of what the remote has, as far as that was ever fetched.
fn is_on_remote(objects: &Objects<'_>, id: Oid, fetched: Oid, tips: &[Oid]) -> bool {
    let is_here = |tip: &Oid| objects.find_commit(*tip).is_ok_and(|here| here.is_some());
    let tips: Vec<Oid> = tips.iter().copied().filter(is_here).collect();
    is_ancestor(objects, id, fetched) || history::is_reachable(objects, id, &tips).unwrap_or(false)
}
