//! What a failure of the network means: whose it is, whether it may pass, and what somebody can do.

use git2::{ErrorClass, ErrorCode};

use super::Host;
use crate::git::Error;
use crate::git::error::Kind;
use crate::git::push::plain;

impl Host<'_> {
    /// What a failure of the network means; `otherwise` where it is nobody's in particular.
    pub(in crate::git) fn explain(&self, error: &git2::Error, otherwise: Kind) -> Error {
        if let Some(verdict) = self.verdict.take() {
            return verdict;
        }
        let (url, why) = (&self.url, error.message());
        let status = why
            .strip_prefix("unexpected http status code: ")
            .and_then(|code| code.trim().parse::<u16>().ok());
        let unreachable = || Error::new(Kind::Unreachable, format!("can't reach {url}: {why}"));
        if let Some(ssh) = &self.ssh {
            match (error.code(), error.class()) {
                (ErrorCode::Certificate, _) => return ssh.unknown(url),
                (ErrorCode::Auth, _) => {
                    return Error::new(
                        Kind::Authentication,
                        format!(
                            "{url} refused the key of the Secret in repository.secretName for the user {}: {why}",
                            self.user
                        ),
                    );
                }
                _ if why.contains("known_hosts") => {
                    return Error::new(
                        Kind::UnknownHost,
                        format!(
                            "the key known_hosts of the Secret in repository.secretName can't be read: {why}"
                        ),
                    );
                }
                // The remote has said why, and hung up.
                (ErrorCode::Eof, ErrorClass::Ssh) => {
                    return Error::new(otherwise, format!("{url} refused: {}", plain(why)));
                }
                (_, ErrorClass::Ssh) => return unreachable(),
                _ => {}
            }
        }
        match (error.code(), error.class(), status) {
            (_, _, Some(401 | 403)) | (ErrorCode::Auth, ..) => {
                let sent = match &self.access.password {
                    Some(_) => "with the password of the Secret in repository.secretName",
                    None => "and no password is configured (repository.secretName)",
                };
                Error::new(
                    Kind::Authentication,
                    format!("{url} refused access, {sent}: {why}"),
                )
            }
            (_, _, Some(404 | 410)) => Error::new(
                otherwise,
                format!(
                    "there is no repository at {url}, or it wants a password (repository.secretName)"
                ),
            ),
            (_, _, Some(408 | 425 | 429 | 500..=599)) => unreachable(),
            (ErrorCode::Certificate, ..) => Error::new(
                otherwise,
                format!(
                    "the certificate of {url} is not trusted ({why}): put its CA into repository.caBundle, or into the key ca.crt of the Secret in repository.secretName"
                ),
            ),
            _ if why.contains("object format") => Error::new(
                otherwise,
                format!(
                    "{url} names its objects by SHA-256, which can't be read here: use a repository with SHA-1 names"
                ),
            ),
            _ if why.starts_with("remote error:") => {
                Error::new(otherwise, format!("{url} refused: {why}"))
            }
            _ if why.starts_with("cannot redirect from") || why == "unexpected redirect" => {
                Error::new(
                    otherwise,
                    format!(
                        "{url} answers from elsewhere ({why}): write that address into repository.url"
                    ),
                )
            }
            _ if why.contains("content-type") => Error::new(
                otherwise,
                format!("there is no git repository at {url}: {why}"),
            ),
            _ if why.contains("No space left") || why.contains("quota exceeded") => {
                Error::new(otherwise, format!("the workspace's volume is full: {why}"))
            }
            (_, ErrorClass::Net | ErrorClass::Os | ErrorClass::Ssl, _)
            | (ErrorCode::Eof | ErrorCode::Timeout, ..) => unreachable(),
            (_, ErrorClass::Http, None) if !why.contains("redirect") => unreachable(),
            _ => Error::new(otherwise, format!("can't use {url}: {why}")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use url::Url;

    use super::*;
    use crate::git::Access;

    #[test]
    fn failures_are_told_apart_by_who_can_cure_them() {
        let access = Access::default();
        let url = Url::parse("https://ada:hunter2@git.example.com/a").unwrap();
        let host = Host::new(&url, &access, None).unwrap();
        let explain = |class, why: &str| {
            let error = git2::Error::new(ErrorCode::GenericError, class, why);
            let error = host.explain(&error, Kind::Checkout);
            assert!(
                error.to_string().contains("https://git.example.com/a") || why.contains("space")
            );
            assert!(!error.to_string().contains("hunter2"));
            (error.reason(), error.is_retryable())
        };
        use crate::names::reasons::{
            AUTHENTICATION_FAILED, CHECKOUT_FAILED, REPOSITORY_UNREACHABLE,
        };
        for (class, why) in [
            (
                ErrorClass::Net,
                "failed to resolve address for git.example.com: Try again",
            ),
            (
                ErrorClass::Os,
                "failed to connect to git.example.com: Connection refused",
            ),
            (
                ErrorClass::Net,
                "failed to connect to git.example.com: Operation timed out",
            ),
            (ErrorClass::Net, "could not read from socket: timed out"),
            (ErrorClass::Ssl, "SSL error: received early EOF"),
            (ErrorClass::Http, "unexpected http status code: 502"),
        ] {
            assert_eq!(explain(class, why), (REPOSITORY_UNREACHABLE, true), "{why}");
        }
        for (class, why) in [
            (ErrorClass::Http, "unexpected http status code: 404"),
            (
                ErrorClass::Net,
                "remote error: access denied or repository not exported",
            ),
            (ErrorClass::Net, "cannot redirect from 'a' to 'b'"),
            (ErrorClass::Http, "invalid content-type: 'text/html'"),
            (ErrorClass::Os, "failed to write: No space left on device"),
            (ErrorClass::Invalid, "unknown remote object format 'sha256'"),
        ] {
            assert_eq!(explain(class, why), (CHECKOUT_FAILED, false), "{why}");
        }
        let why = "unexpected http status code: 403";
        assert_eq!(
            explain(ErrorClass::Http, why),
            (AUTHENTICATION_FAILED, false)
        );
    }
}
