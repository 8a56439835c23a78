//! The controller: turns WorkflowRuns into pods, and what becomes of them into statuses and rows of
//! the ledger. Level-triggered, and split by what may touch the world: `observe` reads, `validate`
//! and `plan` decide (pure, with `end`, `last_resort`, `trouble`, `status`, `record`, `pod`, `view`, `naming`),
//! `apply` writes and makes no choices. `workspace` does the same for Workspaces.
//!
//! It leaves to others what goes on in a pod (`supervise`, `agent`) and what a row looks like
//! (`ledger`).

mod apply;
pub mod config;
mod context;
mod end;
mod error;
mod figures;
mod health;
mod index;
mod last_resort;
mod lead;
mod memory;
mod mirror;
mod naming;
mod observe;
mod plan;
mod pod;
mod queue;
mod record;
mod shapes;
mod sightings;
mod slim;
mod status;
mod sweep;
mod tell;
mod trouble;
mod validate;
mod view;
mod volumes;
mod watches;
mod workspace;
mod write;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ResourceRequirements};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use url::Url;

use crate::admission;
use crate::api::{WorkflowRun, Workspace};
use crate::ledger::Ledger;
use crate::server::certificate;

use apply::Applied;
use config::Config;
use context::Context;
pub use error::Error;
use health::Counters;
use queue::Urgency;

/// `runledger controller`: reconciles WorkflowRuns and Workspaces.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Runledger's own namespace: for its lease and its server's certificate.
    #[arg(long, env = "POD_NAMESPACE", default_value = "runledger-system")]
    pub namespace: String,
    /// Who this controller is among its replicas.
    #[arg(long, env = "POD_NAME", default_value = "runledger-controller")]
    pub identity: String,
    /// Runledger's image, for the supervisor of each run's pod.
    #[arg(long, env = "RUNLEDGER_IMAGE")]
    pub image: String,
    /// imagePullPolicy of that image, and of the default agent's.
    #[arg(long)]
    pub image_pull_policy: Option<String>,
    /// Image of the agent, where a run names none.
    #[arg(long)]
    pub agent_image: String,
    /// Secret with the model's key, where a run names none.
    #[arg(long, default_value = "runledger-model")]
    pub agent_secret: String,
    /// Model, where a run names none.
    #[arg(long)]
    pub agent_model: Option<String>,
    /// Most turns, where a run sets none.
    #[arg(long)]
    pub agent_max_turns: Option<u32>,
    /// Resources of the agent's container as JSON (requests and limits), where a run names none.
    #[arg(long, value_name = "JSON", value_parser = resources)]
    pub agent_resources: Option<ResourceRequirements>,
    /// Size of the agent's /tmp, which is on its node's disk; an agent that writes more is evicted.
    #[arg(long, value_name = "SIZE", default_value = "10Gi")]
    pub agent_tmp_size: String,
    /// Base URL of the model's Messages API.
    #[arg(long, default_value = "https://api.anthropic.com")]
    pub model_url: Url,
    /// PEM file of CAs that the API's certificate may chain to, beside the public ones.
    #[arg(long, value_name = "FILE")]
    pub model_ca: Option<PathBuf>,
    /// Base URL of Runledger's server, as pods reach it.
    #[arg(long)]
    pub server_url: Url,
    /// Secret of Runledger's own namespace in which the server's certificate is kept.
    #[arg(long, default_value = "runledger-server-tls")]
    pub tls_secret: String,
    /// Service that the certificate is for.
    #[arg(long, default_value = "runledger-server")]
    pub server_service: String,
    /// Name of this cluster in the ledger; the uid of namespace kube-system, if left out.
    #[arg(long)]
    pub cluster: Option<String>,
    /// The ledger's database.
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    /// API version of the chart's MutatingAdmissionPolicy, if there is one: the controller binds it.
    #[arg(long, value_enum, value_name = "VERSION")]
    pub admission_policy: Option<admission::Version>,
    /// How many runs are looked at at once.
    #[arg(long, default_value_t = 32)]
    pub concurrency: u16,
    /// How long the seal of a run waits until its events are in the ledger, in seconds.
    #[arg(long, default_value_t = 600)]
    pub flush_timeout: u64,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
}

/// Runs until it is told to stop, or has lost its lease.
pub async fn run(args: Args) -> Result<(), Error> {
    // Fails only where one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = configuration(&args)?;
    let ledger = Ledger::connect(&args.database_url)?;
    let client = Client::try_default()
        .await
        .map_err(|error| Error::Config(Box::new(error)))?;
    let ledger = Arc::new(ledger.of_cluster(cluster(&client, &args).await?));
    let counters = Arc::new(Counters::default());
    health::serve(args.listen, counters.clone()).await?;
    let lease = lead::Lease::take(&client, &args.namespace, &args.identity).await?;
    let Some(mut lease) = lease else {
        return Ok(());
    };
    counters.leads.store(true, Ordering::Relaxed);
    let (ca, server_ca) = watch::channel(None);
    let certificate = certificate::keep(
        client.clone(),
        args.namespace.clone(),
        args.tls_secret.clone(),
        args.server_service.clone(),
        ca,
    );
    let work = reconcile_all(&client, &args, config, ledger, counters, server_ca);
    let result = tokio::select! {
        never = certificate => match never {},
        () = work => Err(Error::WatchEnded("everything")),
        () = lease.lost() => Err(Error::LeaseLost),
        () = lead::told_to_stop() => Ok(()),
    };
    lease.release().await;
    result
}

fn configuration(args: &Args) -> Result<Config, Error> {
    // A key is never sent in the clear, so a supervisor would refuse it, run after run.
    if args.model_url.scheme() != "https" {
        return Err(Error::ModelUrl(args.model_url.to_string()));
    }
    let model_ca = args.model_ca.as_deref().map(read).transpose()?;
    Ok(Config {
        image: args.image.clone(),
        image_pull_policy: args.image_pull_policy.clone(),
        agent_image: args.agent_image.clone(),
        model_secret: args.agent_secret.clone(),
        model: args.agent_model.clone(),
        max_turns: args.agent_max_turns,
        agent_resources: args.agent_resources.clone(),
        agent_tmp_size: args.agent_tmp_size.clone(),
        model_url: args.model_url.clone(),
        model_ca,
        server_url: args.server_url.clone(),
        flush_timeout_seconds: args.flush_timeout,
    })
}

fn resources(json: &str) -> Result<ResourceRequirements, serde_json::Error> {
    serde_json::from_str(json)
}

/// Name of this cluster in the ledger: as given, else what never changes and no other has.
async fn cluster(client: &Client, args: &Args) -> Result<String, Error> {
    if let Some(name) = args.cluster.clone().filter(|name| !name.is_empty()) {
        return Ok(name);
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let system = namespaces
        .get_metadata("kube-system")
        .await
        .map_err(Error::doing("look at namespace kube-system".to_owned()))?;
    system.uid().ok_or(Error::Incomplete("a uid"))
}

fn read(path: &std::path::Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| Error::File(path.display().to_string(), error))
}

async fn reconcile_all(
    client: &Client,
    args: &Args,
    config: Config,
    ledger: Arc<Ledger>,
    counters: Arc<Counters>,
    server_ca: watch::Receiver<Option<String>>,
) {
    let (stores, triggers) = watches::start(client);
    let context = Arc::new(Context {
        client: client.clone(),
        config,
        server_ca,
        stores: stores.clone(),
        written: context::WrittenObjects::default(),
        setbacks: memory::Setbacks::default(),
        crowd: memory::Crowd::of(usize::from(args.concurrency)),
        mirror: mirror::Mirror::start(ledger.clone()),
        teller: tell::Teller::start(client.clone(), args.identity.clone()),
        counters,
    });
    // What is missing from a cache that was never filled says nothing.
    if let Err(error) = stores.ready().await {
        tracing::error!(%error, "the caches can't be filled");
        return;
    }
    let limit = usize::from(args.concurrency);
    let runs = {
        let (ranked, looked_at, at_fault) = (context.clone(), context.clone(), context.clone());
        queue::work(
            triggers.runs,
            limit,
            move |run| urgency(&ranked, run),
            move |run| look(run, looked_at.clone()),
            move |run, why| {
                let uid = at_fault.stores.runs.get(run).and_then(|run| run.uid());
                fell(run, uid, why, &at_fault)
            },
        )
    };
    let workspaces = {
        let (looked_at, at_fault) = (context.clone(), context.clone());
        queue::work(
            triggers.workspaces,
            limit,
            |_| Urgency::Soon,
            move |workspace| look_at_workspace(workspace, looked_at.clone()),
            move |workspace, why| {
                let cached = at_fault.stores.workspaces.get(workspace);
                fell(workspace, cached.and_then(|it| it.uid()), why, &at_fault)
            },
        )
    };
    let policy = async {
        if let Some(version) = args.admission_policy {
            admission::bind(client, version).await;
        }
    };
    tokio::join!(
        runs,
        workspaces,
        policy,
        sweep::sweep(context.clone()),
        volumes::watch(context, ledger)
    );
}

/// A run that has no pod yet goes before one that has; what is over can wait.
fn urgency(context: &Context, key: &ObjectRef<WorkflowRun>) -> Urgency {
    let Some(run) = observe::cached_run(context, key) else {
        return Urgency::Last;
    };
    let status = run.status.as_ref();
    if status.is_some_and(|status| status.phase.is_final()) {
        return Urgency::Last;
    }
    let namespace = key.namespace.as_deref().unwrap_or_default();
    let pod = naming::pod(&key.name, plan::current_attempt(&run));
    if status.is_some_and(|status| status.pod_uid.is_some())
        || observe::cached_pod(context, namespace, &pod).is_some()
    {
        Urgency::Soon
    } else {
        Urgency::First
    }
}

/// Looks at a run; returns when to do so again, should nothing happen before.
async fn look(key: ObjectRef<WorkflowRun>, context: Arc<Context>) -> Option<Duration> {
    let run = observe::cached_run(&context, &key)?;
    let uid = run.uid().unwrap_or_default();
    context.counters.reconciles.fetch_add(1, Ordering::Relaxed);
    match reconcile(run, &context).await {
        Ok(again) => again,
        Err(error) => Some(retry(&key, &uid, &error, &context)),
    }
}

async fn look_at_workspace(key: ObjectRef<Workspace>, context: Arc<Context>) -> Option<Duration> {
    let cached = context.stores.workspaces.get(&key)?;
    let uid = cached.uid().unwrap_or_default();
    match workspace::reconcile(cached, &context).await {
        Ok(again) => {
            context.setbacks.succeeded(&uid);
            again
        }
        Err(error) => Some(retry(&key, &uid, &error, &context)),
    }
}

/// Looks at one run, decides, and does it.
async fn reconcile(run: Arc<WorkflowRun>, context: &Context) -> Result<Option<Duration>, Error> {
    let uid = run.uid().ok_or(Error::Incomplete("a uid"))?;
    // A refused pod is known only once it was tried; the second plan says so.
    for _ in 0..2 {
        let observed = observe::observe(context, run.clone()).await?;
        let now = Timestamp::now();
        let run = observed.run.clone();
        let plan = plan::plan(&observed, &context.config, now);
        match apply::apply(context, run, plan, now).await? {
            Applied::Done(again) => {
                context.setbacks.succeeded(&uid);
                return Ok(again);
            }
            Applied::Refused => {}
        }
    }
    Ok(Some(Duration::from_secs(1)))
}

fn retry<K>(key: &ObjectRef<K>, uid: &str, error: &Error, context: &Context) -> Duration
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()>,
{
    if matches!(error, Error::Stale) {
        return Duration::from_millis(200);
    }
    context.counters.failures.fetch_add(1, Ordering::Relaxed);
    let error: &dyn std::error::Error = error;
    tracing::warn!(object = %key, error, "a reconciliation failed and is tried again");
    context.setbacks.failed(uid, Duration::from_secs(60))
}

/// A look at the object panicked; returns when to try again.
fn fell<K>(key: &ObjectRef<K>, uid: Option<String>, why: &str, context: &Context) -> Duration
where
    K: kube::runtime::reflector::Lookup<DynamicType = ()>,
{
    context.counters.panics.fetch_add(1, Ordering::Relaxed);
    tracing::error!(object = %key, why, "a reconciliation panicked; the object is tried again later");
    let longest = Duration::from_secs(300);
    context.setbacks.failed(&uid.unwrap_or_default(), longest)
}
