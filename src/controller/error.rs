//! What can go wrong in the controller, told apart by what follows from it.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache was behind; it catches up by itself.
    #[error("the object has changed since it was looked at")]
    Stale,
    /// The API server did not do as asked.
    #[error("cannot {0}")]
    Kube(String, #[source] Box<kube::Error>),
    /// A pod can't be built.
    #[error("cannot build the pod")]
    Pod(#[from] super::pod::Error),
    /// An object came without what every object has.
    #[error("the API server sent an object without {0}")]
    Incomplete(&'static str),
    /// The cache is not there (any more).
    #[error("the watch of {0} has ended")]
    WatchEnded(&'static str),
    /// The ledger's URL is wrong.
    #[error(transparent)]
    Ledger(#[from] crate::ledger::Error),
    /// The model's URL is no https URL.
    #[error("--model-url is {0}; write an https:// URL")]
    ModelUrl(String),
    /// A file can't be read.
    #[error("cannot read {0}")]
    File(String, #[source] std::io::Error),
    /// No cluster to talk to.
    #[error("cannot find out which cluster to talk to")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The lease can't be taken.
    #[error("cannot take part in the leader election")]
    Lease(#[from] kube_lease_manager::LeaseManagerError),
    /// Somebody else leads now.
    #[error("the lease was lost; another controller leads now")]
    LeaseLost,
    /// The health port can't be opened.
    #[error("cannot listen on {0}")]
    Listen(String, #[source] std::io::Error),
}

impl Error {
    /// Says what was tried.
    pub fn doing(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |error| match &error {
            kube::Error::Api(status) if status.is_conflict() => Self::Stale,
            _ => Self::Kube(what, Box::new(error)),
        }
    }
}

/// The answer of the API server, should it have given one.
pub(super) fn answer(error: &kube::Error) -> Option<&kube::core::Status> {
    match error {
        kube::Error::Api(status) => Some(status.as_ref()),
        _ => None,
    }
}
