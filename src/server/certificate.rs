//! The server's certificate and its authority, kept in one Secret of our own namespace that the chart
//! renders empty: so the keeper needs no right to create Secrets, and no upgrade or rendered manifest
//! takes away what it filled in. The controller's leader runs it.
//!
//! The authority's key stays for as long as it can be read. A renewed authority has the same key and
//! name, so that pods which were given the old one go on trusting the server.

mod issue;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use tokio::sync::watch;

use self::issue::{Due, Kept, due, renew};

/// Between two looks at the Secret.
const LOOK: Duration = Duration::from_secs(60);
/// After a look that failed, or found the Secret missing.
const AGAIN: Duration = Duration::from_secs(3);
/// Longest wait for one answer of the API server.
const ANSWER: Duration = Duration::from_secs(15);

/// Why the certificate could not be kept; the next look tries again.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the certificate's Secret can't be read or written")]
    Kube(#[source] kube::Error),
    #[error("the API server did not answer within {} s", ANSWER.as_secs())]
    TimedOut,
    #[error("Secret {0} isn't there; the chart makes it, empty")]
    Missing(String),
    #[error(transparent)]
    Issue(#[from] issue::Error),
}

/// Keeps the Secret filled with a valid certificate for the service, and tells the authority's PEM.
pub async fn keep(
    client: kube::Client,
    namespace: String,
    secret_name: String,
    service_name: String,
    ca: watch::Sender<Option<String>>,
) -> Infallible {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let names = dns_names(&service_name, &namespace);
    let mut last = None;
    loop {
        let pause = match look(&api, &secret_name, &names).await {
            Ok(authority) => {
                last = None;
                ca.send_if_modified(|known| {
                    let new = known.as_ref() != Some(&authority);
                    *known = Some(authority);
                    new
                });
                LOOK
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let said = (error.to_string(), cause);
                // Once per cause, not every three seconds.
                if last.as_ref() != Some(&said) {
                    tracing::warn!(
                        error = said.0,
                        cause = said.1,
                        "the server's certificate can't be kept"
                    );
                    last = Some(said);
                }
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One look: renews what is due, and answers the authority's PEM.
async fn look(api: &Api<Secret>, name: &str, names: &BTreeSet<String>) -> Result<String, Error> {
    let mut secret = in_time(api.get_opt(name))
        .await?
        .ok_or_else(|| Error::Missing(name.to_owned()))?;
    let now = Timestamp::now();
    let kept = Kept::of(&secret);
    let due = due(&kept, names, now);
    if due == Due::default() {
        return Ok(kept.ca_crt);
    }
    let renewed = renew(kept, due, names, now)?;
    renewed.clone().write(&mut secret);
    // The whole object with its resourceVersion: of two keepers one loses, and looks again.
    in_time(api.replace(name, &PostParams::default(), &secret)).await?;
    tracing::info!(?due, "the server's certificate was renewed");
    Ok(renewed.ca_crt)
}

async fn in_time<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    tokio::time::timeout(ANSWER, answer)
        .await
        .map_err(|_| Error::TimedOut)?
        .map_err(Error::Kube)
}

/// Every name that the service answers to.
fn dns_names(service: &str, namespace: &str) -> BTreeSet<String> {
    [
        service.to_owned(),
        format!("{service}.{namespace}"),
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.cluster.local"),
    ]
    .into()
}
