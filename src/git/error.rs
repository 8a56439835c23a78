//! What can go wrong with a repository, each with a whole sentence for a person (it ends up in the
//! run's status, so it never holds a credential) and the reason that the run's status gives.

use std::fmt;
use std::io;

use crate::names::reasons;

/// Why a git operation failed. `Display` is the whole sentence; there is no source behind it.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// Who or what is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The host does not answer, or only with its own trouble: it is worth trying again.
    Unreachable,
    /// The credentials are refused, or missing.
    Authentication,
    /// The repository, its branch or the workspace can't be used as they are.
    Checkout,
    /// The remote has nothing of the name that is wanted.
    NoSuchBranch,
    /// The Secret does not name the host that asks for the password.
    HostNotAllowed,
    /// A host shows a key that we don't know: nothing was sent to it.
    UnknownHost,
    /// The remote, or we, refused the push.
    Push,
    /// The remote's branch has moved on.
    Conflict,
    /// The caller said stop.
    Cancelled,
}

impl Error {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The repository, its branch or the workspace can't be used as they are.
    pub(super) fn checkout(message: impl Into<String>) -> Self {
        Self::new(Kind::Checkout, message)
    }

    /// The remote, or we, refused the push.
    pub(super) fn push(message: impl Into<String>) -> Self {
        Self::new(Kind::Push, message)
    }

    /// Our own files could not be read or written.
    pub(super) fn file(what: impl fmt::Display, why: &io::Error) -> Self {
        Self::checkout(format!("can't {what}: {why}"))
    }

    /// A repository operation on our own git dir failed.
    pub(super) fn local(what: impl fmt::Display, why: &git2::Error) -> Self {
        Self::checkout(format!("can't {what}: {}", why.message()))
    }

    /// One of [`crate::names::reasons`].
    pub fn reason(&self) -> &'static str {
        match self.kind {
            Kind::Unreachable => reasons::REPOSITORY_UNREACHABLE,
            Kind::Authentication => reasons::AUTHENTICATION_FAILED,
            Kind::Checkout | Kind::NoSuchBranch | Kind::Cancelled => reasons::CHECKOUT_FAILED,
            Kind::HostNotAllowed => reasons::HOST_NOT_ALLOWED,
            Kind::UnknownHost => reasons::HOST_KEY_UNKNOWN,
            Kind::Push => reasons::PUSH_FAILED,
            Kind::Conflict => reasons::PUSH_CONFLICT,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        self.kind == Kind::Unreachable
    }

    /// Whether the caller's own `cancel` ended it.
    pub fn is_cancelled(&self) -> bool {
        self.kind == Kind::Cancelled
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
