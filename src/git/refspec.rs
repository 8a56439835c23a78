//! Which of a remote's refs is meant by `repository.branch`, and under which name it is kept here.
//! Pure: it only looks at the list that the remote gave.

use git2::Oid;

use super::Error;
use super::error::Kind;
use super::trusted::{is_branch_name, parse_id};

/// Where a commit that was asked for by its own name is kept.
pub(super) const WANTED: &str = "refs/runledger/wanted";

/// What is to be fetched.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The repository is empty, and nothing was asked for by name.
    Nothing,
    /// One of the remote's refs.
    Ref {
        /// Its name there.
        name: String,
        /// Its name here.
        to: String,
        /// The branch that it is.
        branch: Option<String>,
    },
    /// A commit that no ref of the remote's points at.
    Commit(Oid),
}

/// Finds what `wanted` names: a branch, a tag, a commit, in this order.
pub(super) fn choose(
    url: &str,
    refs: &[(String, Oid)],
    default: Option<String>,
    wanted: Option<&str>,
) -> Result<Found, Error> {
    let has = |name: &str| refs.iter().any(|(one, _)| one == name);
    let branch = |name: &str| Found::Ref {
        name: format!("refs/heads/{name}"),
        to: format!("refs/remotes/origin/{name}"),
        branch: Some(name.to_owned()),
    };
    let Some(wanted) = wanted else {
        if !refs.iter().any(|(name, _)| name.starts_with("refs/heads/")) {
            return Ok(Found::Nothing);
        }
        return match default.filter(|n| has(&format!("refs/heads/{n}")) && is_branch_name(n)) {
            Some(name) => Ok(branch(&name)),
            None => Err(Error::checkout(format!(
                "{url} names no default branch: set repository.branch"
            ))),
        };
    };
    if has(&format!("refs/heads/{wanted}")) {
        return Ok(branch(wanted));
    }
    let tag = format!("refs/tags/{wanted}");
    if has(&tag) {
        return Ok(Found::Ref {
            name: tag.clone(),
            to: tag,
            branch: None,
        });
    }
    if let Some(id) = parse_id(wanted) {
        let at = |(name, one): &&(String, Oid)| *one == id && name.starts_with("refs/heads/");
        return Ok(match refs.iter().find(at) {
            Some((name, _)) => Found::Ref {
                name: name.clone(),
                to: WANTED.to_owned(),
                branch: None,
            },
            None => Found::Commit(id),
        });
    }
    Err(Error::new(
        Kind::NoSuchBranch,
        format!("{url} has no branch and no tag {wanted}: {}", known(refs)),
    ))
}

/// The first branches, for somebody who has mistyped one.
fn known(refs: &[(String, Oid)]) -> String {
    let mut heads = refs
        .iter()
        .filter_map(|(name, _)| name.strip_prefix("refs/heads/"));
    let first: Vec<&str> = heads.by_ref().take(5).collect();
    match first.as_slice() {
        [] => "it is empty".to_owned(),
        first => format!(
            "it has {}{}; name one of them in repository.branch",
            first.join(", "),
            if heads.next().is_some() { ", …" } else { "" }
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef0123456789abcdef01234567";
    const TWO: &str = "1123456789abcdef0123456789abcdef01234567";

    fn find(wanted: Option<&str>) -> Result<Found, Error> {
        let id = |hex| Oid::from_str(hex).unwrap();
        let refs = [
            ("HEAD".to_owned(), id(ONE)),
            ("refs/heads/main".to_owned(), id(ONE)),
            ("refs/heads/v1".to_owned(), id(ONE)),
            ("refs/tags/v1".to_owned(), id(TWO)),
            ("refs/tags/v2".to_owned(), id(TWO)),
        ];
        choose("u", &refs, Some("main".to_owned()), wanted)
    }

    fn fetched(name: &str, to: &str, branch: Option<&str>) -> Found {
        Found::Ref {
            name: name.to_owned(),
            to: to.to_owned(),
            branch: branch.map(str::to_owned),
        }
    }

    #[test]
    fn a_branch_goes_before_a_tag_and_a_tag_before_a_commit() {
        let branch = |n: &str| {
            fetched(
                &format!("refs/heads/{n}"),
                &format!("refs/remotes/origin/{n}"),
                Some(n),
            )
        };
        assert_eq!(find(None).unwrap(), branch("main"));
        assert_eq!(find(Some("v1")).unwrap(), branch("v1"));
        let tag = fetched("refs/tags/v2", "refs/tags/v2", None);
        assert_eq!(find(Some("v2")).unwrap(), tag);
        let tip = fetched("refs/heads/main", WANTED, None);
        assert_eq!(find(Some(ONE)).unwrap(), tip);
        let deep = Found::Commit(Oid::from_str(TWO).unwrap());
        assert_eq!(find(Some(TWO)).unwrap(), deep);
    }

    #[test]
    fn a_name_that_is_not_there_is_refused_naming_some_that_are() {
        let why = find(Some("mian")).unwrap_err().to_string();
        assert_eq!(
            why,
            "u has no branch and no tag mian: it has main, v1; name one of them in repository.branch"
        );
        let why = find(Some(&ONE[..12])).unwrap_err().to_string();
        assert!(why.contains("no branch and no tag"), "{why}");
    }
}
