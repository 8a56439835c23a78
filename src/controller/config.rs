//! What the controller was told about its surroundings: defaults for what a run leaves out, and
//! addresses that every pod needs. Plain data, so that the pure parts can take it.

use k8s_openapi::api::core::v1::ResourceRequirements;
use url::Url;

/// Defaults and addresses.
#[derive(Clone, Debug)]
pub struct Config {
    /// Image of the supervisor.
    pub image: String,
    /// `imagePullPolicy` of that image and of the default agent's; the cluster's default where
    /// absent.
    pub image_pull_policy: Option<String>,
    /// Image of the agent, where a run names none.
    pub agent_image: String,
    /// Secret with the model's key, where a run names none.
    pub model_secret: String,
    /// Model, where a run names none; the CLI's own default where this is absent too.
    pub model: Option<String>,
    /// Most turns, where a run sets none.
    pub max_turns: Option<u32>,
    /// Resources of the agent's container, where a run names none.
    pub agent_resources: Option<ResourceRequirements>,
    /// Size of the agent's `/tmp`, which is on its node's disk.
    pub agent_tmp_size: String,
    /// Base URL of the model's API.
    pub model_url: Url,
    /// PEM bundle that the API's certificate may chain to, beside the public roots.
    pub model_ca: Option<String>,
    /// Base URL of Runledger's server, as pods see it.
    pub server_url: Url,
    /// How long the seal of a run waits for its flush.
    pub flush_timeout_seconds: u64,
}
