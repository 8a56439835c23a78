//! What the server asks of the API server: whose token this is, and how a run stands. Behind a
//! trait, so that faults can be shown without a cluster.

use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, PostParams};

use super::access::{self, Claim, Run};
use super::tell::{self, Told};
use crate::api::WorkflowRun;
use crate::names::TOKEN_AUDIENCE;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// What a token's review came to.
pub type Answer = Result<Claim, &'static str>;

/// The API server did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer: {0}")]
pub struct Fault(pub String);

/// The API server, as far as this server asks it.
pub trait Cluster: Send + Sync {
    /// Whose token this is, or why it is nobody's.
    fn review(&self, token: String) -> BoxFuture<'_, Result<Answer, Fault>>;
    /// How the run stands now; nothing where there is none of that name.
    fn run(&self, namespace: String, name: String) -> BoxFuture<'_, Result<Option<Run>, Fault>>;
    /// Tells something of a run, in an Event; told already is as good.
    fn tell(&self, told: Told) -> BoxFuture<'_, Result<(), Fault>>;
}

/// The real one.
pub struct Kube {
    client: kube::Client,
}

impl Kube {
    /// Asks through this client.
    pub fn new(client: kube::Client) -> Self {
        Self { client }
    }
}

impl Cluster for Kube {
    fn review(&self, token: String) -> BoxFuture<'_, Result<Answer, Fault>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec {
                    token: Some(token),
                    audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
                },
                ..TokenReview::default()
            };
            let api = Api::<TokenReview>::all(self.client.clone());
            let answer = in_time(api.create(&PostParams::default(), &review)).await?;
            Ok(access::claim(&answer.status.unwrap_or_default()))
        })
    }

    fn run(&self, namespace: String, name: String) -> BoxFuture<'_, Result<Option<Run>, Fault>> {
        Box::pin(async move {
            let api = Api::<WorkflowRun>::namespaced(self.client.clone(), &namespace);
            let run = in_time(api.get_opt(&name)).await?;
            Ok(run.as_ref().and_then(Run::of))
        })
    }

    fn tell(&self, told: Told) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async move {
            let api = Api::<Event>::namespaced(self.client.clone(), &told.namespace);
            let event = tell::event(told, Timestamp::now());
            let told = async {
                match api.create(&PostParams::default(), &event).await {
                    Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                    done => done.map(drop),
                }
            };
            in_time(told).await
        })
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Fault> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Fault(error.to_string())),
        Err(_) => Err(Fault(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}
