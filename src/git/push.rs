//! Delivering a commit: from the trusted git dir, to one branch, fast-forward only.

use std::cell::RefCell;

use git2::{Direction, ErrorCode, PushOptions, RemoteRedirect};
use url::Url;

use super::error::Kind;
use super::remote::Host;
use super::trusted::{self, is_branch_name, parse_id};
use super::{Access, Error, Place, Target, locks};
use crate::delivery;

/// Where the commit is named for the push; libgit2 pushes refs, not commits.
const SOURCE: &str = "refs/runledger/push";

/// See [`super::push`].
pub(super) fn push(
    place: &Place,
    url: &Url,
    commit: &str,
    target: Target<'_>,
    access: &Access,
) -> Result<(), Error> {
    may_be_pushed_to(target)?;
    let branch = target.branch;
    let host = Host::new(url, access, None)?;
    let id = parse_id(commit)
        .ok_or_else(|| Error::push(format!("{commit:?} is not the full SHA-1 name of a commit")))?;
    locks::clear_ours(place)?;
    let repo = trusted::open(place)?;
    repo.find_commit(id)
        .and_then(|_| repo.reference(SOURCE, id, true, ""))
        .map_err(|e| Error::push(format!("commit {commit} can't be pushed: {}", e.message())))?;

    let mut remote = repo
        .remote_anonymous(&host.url)
        .map_err(|e| host.explain(&e, Kind::Push))?;
    let mut connection = remote
        .connect_auth(Direction::Push, Some(host.callbacks()), None)
        .map_err(|e| host.explain(&e, Kind::Push))?;
    let target = format!("refs/heads/{branch}");
    let heads = connection
        .list()
        .map_err(|e| host.explain(&e, Kind::Push))?;
    if heads
        .iter()
        .any(|head| head.name() == target && head.oid() == id)
    {
        return Ok(());
    }
    // What the remote said of our ref: nothing yet, yes, or no with a word.
    let answer: RefCell<Option<Result<(), String>>> = RefCell::new(None);
    let mut callbacks = host.callbacks();
    callbacks.push_update_reference(|_, refusal| {
        answer.replace(Some(refusal.map_or(Ok(()), |word| Err(word.to_owned()))));
        Ok(())
    });
    let mut options = PushOptions::new();
    options
        .remote_callbacks(callbacks)
        .follow_redirects(RemoteRedirect::None);
    let done = connection
        .remote()
        .push(&[format!("{SOURCE}:{target}")], Some(&mut options));
    drop(options);
    match (done, answer.into_inner()) {
        (Err(e), _) if e.code() == ErrorCode::NotFastForward => Err(Error::new(
            Kind::Conflict,
            format!(
                "branch {branch} of {} has moved on: it holds commits that this run has not built upon, and they are never overwritten",
                host.url
            ),
        )),
        (Err(e), _) => Err(host.explain(&e, Kind::Push)),
        (Ok(()), Some(Ok(()))) => Ok(()),
        (Ok(()), Some(Err(word))) => Err(Error::push(format!(
            "{} refused branch {branch}: {}",
            host.url,
            plain(&word)
        ))),
        (Ok(()), None) => Err(Error::push(format!(
            "{} did not say that it took branch {branch}",
            host.url
        ))),
    }
}

/// Branches that others live by are refused here too, whatever the run's spec got past admission.
fn may_be_pushed_to(target: Target<'_>) -> Result<(), Error> {
    let branch = target.branch;
    if !is_branch_name(branch) || branch.to_ascii_lowercase().starts_with("refs/") {
        return Err(Error::push(format!(
            "repository.push.branch is {branch:?}, which is no name of a branch"
        )));
    }
    if delivery::is_protected(branch, target.allowed) {
        return Err(Error::push(format!(
            "branch {branch} is protected and is not pushed to: name another in repository.push.branch, or this one in repository.push.allowProtected"
        )));
    }
    Ok(())
}

/// A remote's word, fit for one line of a status.
pub(super) fn plain(word: &str) -> String {
    word.chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn protected_branches_and_no_names_at_all_are_refused() {
        let why = may_be_pushed_to("main".into()).unwrap_err().to_string();
        assert!(why.contains("is protected"), "{why}");
        let allowed = ["main".to_owned()];
        may_be_pushed_to(Target {
            branch: "main",
            allowed: &allowed,
        })
        .unwrap();
        for branch in [
            "",
            "-f",
            "a..b",
            "refs/heads/main",
            "HEAD",
            "a b",
            "a:b",
            "+x:y",
            "*",
            "x.lock",
            "a\n",
        ] {
            let why = may_be_pushed_to(branch.into()).unwrap_err().to_string();
            assert!(why.contains("no name of a branch"), "{branch:?}: {why}");
        }
    }
}
