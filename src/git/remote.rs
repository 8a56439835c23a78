//! The network: who may be asked, what is shown to whom, and what its answers mean. The password
//! goes to the hosts that its Secret names, once, and never after a redirect.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use git2::{
    AutotagOption, Cred, CredentialType, Direction, FetchOptions, Oid, Remote, RemoteCallbacks,
    RemoteRedirect, Repository,
};
use url::Url;

use super::error::Kind;
use super::record::shown;
use super::refspec::{Found, WANTED, choose};
use super::ssh::{self, KnownHosts};
use super::{Access, Error, Wanted, runtime};
use crate::hosts;

mod explain;

/// A remote repository that we may talk to.
pub(super) struct Host<'a> {
    /// Without credentials.
    pub(super) url: String,
    /// Whose password or key it is.
    user: String,
    access: &'a Access,
    /// Where the connection is by ssh.
    ssh: Option<KnownHosts>,
    cancel: Option<&'a AtomicBool>,
    /// When patience with a transfer ends.
    until: Cell<Option<Instant>>,
    /// What a callback found wrong; libgit2 only knows that it did.
    verdict: RefCell<Option<Error>>,
}

/// What a fetch brought.
pub(super) struct Fetched {
    /// The remote branch; nothing where it was a tag or a commit that was asked for.
    pub(super) branch: Option<String>,
    /// The commit; nothing in an empty repository.
    pub(super) commit: Option<Oid>,
    /// The ref that names it here.
    pub(super) reference: Option<String>,
    /// What the remote's branches and tags point at.
    pub(super) tips: Vec<Oid>,
}

impl Access {
    /// Whether the password may be sent to the host of this URL.
    fn allows(&self, url: &Url) -> bool {
        hosts::allow(&self.hosts, url)
    }
}

impl<'a> Host<'a> {
    /// Judges the URL, and lets the access's own CA be trusted.
    pub(super) fn new(
        url: &Url,
        access: &'a Access,
        cancel: Option<&'a AtomicBool>,
    ) -> Result<Self, Error> {
        let known = matches!(url.scheme(), "https" | "http" | "ssh");
        if !known || url.host_str().is_none_or(str::is_empty) {
            return Err(Error::checkout(format!(
                "repository.url must start with https://, http:// or ssh:// and name a host, not {}",
                shown(url)
            )));
        }
        runtime::trust_machine();
        for file in &access.ca_files {
            runtime::trust(file)?;
        }
        let ssh = (url.scheme() == "ssh")
            .then(|| KnownHosts::of(url, access))
            .transpose()?;
        let user = Some(url.username()).filter(|user| !user.is_empty() && ssh.is_some());
        Ok(Self {
            url: shown(url),
            user: user
                .or(access.username.as_deref())
                .unwrap_or("git")
                .to_owned(),
            access,
            ssh,
            cancel,
            until: Cell::new(None),
            verdict: RefCell::new(None),
        })
    }

    /// Whether the run names a Secret that has something to show.
    pub(super) fn has_secret(&self) -> bool {
        self.access.password.is_some() || self.access.private_key.is_some()
    }

    /// Gives up a transfer that is not over by then.
    pub(super) fn give_up_after(&self, patience: Duration) {
        self.until.set(Some(Instant::now() + patience));
    }

    /// Fetches what is wanted, with the tags that point into it.
    pub(super) fn fetch(&self, repo: &Repository, wanted: &Wanted) -> Result<Fetched, Error> {
        let mut remote = repo
            .remote_anonymous(&self.url)
            .map_err(|e| self.explain(&e, Kind::Checkout))?;
        let mut connection = remote
            .connect_auth(Direction::Fetch, Some(self.callbacks()), None)
            .map_err(|e| self.explain(&e, Kind::Checkout))?;
        let refs: Vec<(String, Oid)> = connection
            .list()
            .map_err(|e| self.explain(&e, Kind::Checkout))?
            .iter()
            .map(|head| (head.name().to_owned(), head.oid()))
            .collect();
        let default = connection
            .default_branch()
            .ok()
            .and_then(|name| Some(name.as_str().ok()?.strip_prefix("refs/heads/")?.to_owned()));
        prune(repo, &refs).map_err(|e| Error::local("forget branches of the remote", &e))?;
        let found = choose(&self.url, &refs, default, wanted.reference.as_deref())?;
        let remote = connection.remote();
        let found = match found {
            Found::Nothing => {
                return Ok(Fetched {
                    branch: Some("main".to_owned()),
                    commit: None,
                    reference: None,
                    tips: Vec::new(),
                });
            }
            Found::Ref { name, to, branch } => {
                self.load(remote, &format!("+{name}:{to}"), wanted.depth, wanted)
                    .map_err(|e| self.explain(&e, Kind::Checkout))?;
                (to, branch)
            }
            Found::Commit(id) => {
                self.load_commit(repo, remote, id, wanted)?;
                (WANTED.to_owned(), None)
            }
        };
        let (reference, branch) = found;
        let commit = repo
            .find_reference(&reference)
            .and_then(|reference| reference.peel_to_commit())
            .map_err(|e| Error::local(format_args!("find {reference} after fetching"), &e))?;
        Ok(Fetched {
            branch,
            commit: Some(commit.id()),
            reference: Some(reference),
            tips: refs.into_iter().map(|(_, id)| id).collect(),
        })
    }

    /// By its name, where the host gives out what it is asked for; else with every branch, which
    /// can't be cut to a depth, as nobody knows how deep the commit lies.
    fn load_commit(
        &self,
        repo: &Repository,
        remote: &mut Remote<'_>,
        id: Oid,
        wanted: &Wanted,
    ) -> Result<(), Error> {
        let direct = self.load(remote, &format!("+{id}:{WANTED}"), wanted.depth, wanted);
        if direct.is_err() || repo.find_commit(id).is_err() {
            self.verdict.take().map_or(Ok(()), Err)?;
            self.load(remote, "+refs/heads/*:refs/remotes/origin/*", None, wanted)
                .map_err(|e| self.explain(&e, Kind::Checkout))?;
        }
        repo.find_commit(id)
            .and_then(|_| repo.reference(WANTED, id, true, ""))
            .map(drop)
            .map_err(|_| {
                Error::checkout(format!(
                    "commit {id} is not in {}, or in none of its branches",
                    self.url
                ))
            })
    }

    fn load(
        &self,
        remote: &mut Remote<'_>,
        spec: &str,
        depth: Option<u32>,
        wanted: &Wanted,
    ) -> Result<(), git2::Error> {
        let mut callbacks = self.callbacks();
        callbacks.transfer_progress(|progress| {
            wanted.progress.set(&progress);
            self.goes_on()
        });
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(callbacks)
            .follow_redirects(RemoteRedirect::None)
            .download_tags(AutotagOption::Auto)
            .update_fetchhead(false);
        if let Some(depth) = depth {
            options.depth(i32::try_from(depth).unwrap_or(i32::MAX));
        }
        remote.fetch(&[spec], Some(&mut options), None)
    }

    /// Callbacks for one connection: the password once, and a way to stop.
    pub(super) fn callbacks(&self) -> RemoteCallbacks<'_> {
        let asked = Cell::new(false);
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |url, _, asked_for| {
            // A name is no secret, and is asked for before the key.
            let again = !asked_for.is_username() && asked.replace(true);
            let answer = self.credentials(url, again, asked_for);
            answer.map_err(|verdict| {
                self.verdict.replace(Some(verdict));
                git2::Error::from_str("no credentials")
            })
        });
        if let Some(ssh) = &self.ssh {
            callbacks.certificate_check(|certificate, _| Ok(ssh.look(certificate)));
        }
        callbacks.transfer_progress(|_| self.goes_on());
        callbacks.sideband_progress(|_| self.goes_on());
        callbacks
    }

    fn goes_on(&self) -> bool {
        let stop = self
            .cancel
            .is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        if stop {
            self.verdict.replace(Some(Error::new(
                Kind::Cancelled,
                "the checkout was cancelled",
            )));
        }
        let late = self.until.get().is_some_and(|until| Instant::now() > until);
        if late && !stop {
            self.verdict.replace(Some(Error::new(
                Kind::Unreachable,
                format!("{} takes too long to answer", self.url),
            )));
        }
        !stop && !late
    }

    fn credentials(
        &self,
        asker: &str,
        again: bool,
        asked_for: CredentialType,
    ) -> Result<Cred, Error> {
        let (url, access) = (&self.url, self.access);
        let secret = "the Secret in repository.secretName";
        let (have, what) = match &self.ssh {
            Some(_) => (access.private_key.is_some(), "key"),
            None => (access.password.is_some(), "password"),
        };
        let refuse = |kind, sentence| Err(Error::new(kind, sentence));
        if !have {
            let sentence = match &self.ssh {
                Some(_) => format!(
                    "{url} wants a key: name a Secret with ssh-privatekey in repository.secretName"
                ),
                None => format!(
                    "{url} wants a password and none is configured: name a Secret in repository.secretName"
                ),
            };
            return refuse(Kind::Authentication, sentence);
        }
        let asker = Url::parse(asker).ok();
        if !asker.as_ref().is_some_and(|asker| access.allows(asker)) {
            let host = asker.as_ref().and_then(hosts::wanted);
            let host = host.as_deref().unwrap_or("an unknown host");
            let sentence =
                format!("{host} asks for the {what}, and {secret} does not name it under hosts");
            return refuse(Kind::HostNotAllowed, sentence);
        }
        if again {
            let sentence = match &self.ssh {
                Some(_) => format!(
                    "{url} refused the key of {secret} for the user {}",
                    self.user
                ),
                None => format!("{url} refused the username and password of {secret}"),
            };
            return refuse(Kind::Authentication, sentence);
        }
        match (&self.ssh, &access.password) {
            (None, Some(password)) => Cred::userpass_plaintext(&self.user, password),
            _ => ssh::credential(access, &self.user, asked_for),
        }
        .map_err(|e| Error::local("use the Secret in repository.secretName", &e))
    }
}

/// Forgets branches that the remote has no more: another's name may begin with theirs now.
fn prune(repo: &Repository, refs: &[(String, Oid)]) -> Result<(), git2::Error> {
    for known in repo.references_glob("refs/remotes/origin/*")? {
        let mut known = known?;
        let branch = known
            .name()
            .ok()
            .and_then(|name| name.strip_prefix("refs/remotes/origin/"))
            .map(|branch| format!("refs/heads/{branch}"));
        if !refs.iter().any(|(name, _)| Some(name) == branch.as_ref()) {
            known.delete()?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_holds_no_password() {
        let access = Access {
            password: Some("hunter2".to_owned()),
            ..Access::default()
        };
        assert!(!format!("{access:?}").contains("hunter2"));
    }
}
