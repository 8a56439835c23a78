//! One measurement: so many objects of a kind, made by so many creators at once or one by one, until
//! all are done and nothing is left to be done for them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::cluster::Cluster;
use crate::kinds::Kind;
use crate::process::{Machine, Process, Shares};
use crate::watch::{self, Book, Life};

/// How many ask for objects at once.
pub(crate) const CREATORS: usize = 32;
/// Between two objects that come one by one.
const PACE: Duration = Duration::from_millis(200);
/// Longest measurement.
const DEADLINE: Duration = Duration::from_secs(900);
/// What lags behind the last object (a cache, a write into etcd) is waited for so long.
const TRAIL: Duration = Duration::from_secs(2);

/// How the objects come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// All at once, as fast as the creators are.
    Burst,
    /// As fast as those who asked for the ones before have them done.
    Turns,
    /// One by one, with so much time between them that none waits for another.
    Steady,
}

/// What was measured.
pub(crate) struct Measured {
    pub(crate) kind: Kind,
    pub(crate) count: usize,
    /// Objects done per second, from the first that was asked for to the last that was done.
    pub(crate) rate: f64,
    /// Of the process that looks after them, in seconds.
    pub(crate) controller_cpu: Option<f64>,
    /// Of everything that runs meanwhile.
    pub(crate) shares: Shares,
    /// From object to pod, in seconds, in order.
    pub(crate) to_pod: Vec<f64>,
    /// Of each object.
    pub(crate) lives: HashMap<String, Life>,
}

/// Measures.
pub(crate) async fn measure(
    cluster: &Cluster,
    kind: Kind,
    namespace: &str,
    count: usize,
    arrival: Arrival,
    machine: &Machine,
    controller: Option<Process>,
) -> Result<Measured> {
    cluster.namespace(namespace).await?;
    let book = Book::open(&cluster.client, kind, namespace).await?;
    let cpu = || controller.map(|controller| controller.cpu()).transpose();
    let (before, controller_before) = (machine.shares()?, cpu()?);
    let began = watch::now();
    futures::stream::iter(0..count)
        .then(async |number| {
            if arrival == Arrival::Steady {
                tokio::time::sleep(PACE).await;
            }
            number
        })
        .map(|number| {
            let (client, name) = (cluster.client.clone(), format!("r{number:05}"));
            let is_done = (arrival == Arrival::Turns).then(|| book.is_done(&name));
            // A task of its own, so that what is done with an answer holds no other one up.
            tokio::spawn({
                let namespace = namespace.to_owned();
                async move {
                    kind.create(&client, &namespace, &name).await?;
                    if let Some(is_done) = is_done {
                        let in_time = tokio::time::timeout(DEADLINE, is_done).await;
                        in_time.context("it was not done in time")??;
                    }
                    anyhow::Ok(())
                }
            })
        })
        .buffer_unordered(CREATORS)
        .map(|created| created.context("a creator has ended")?)
        .try_collect::<Vec<()>>()
        .await
        .context("making objects")?;
    book.cleared(count, DEADLINE).await?;
    tokio::time::sleep(TRAIL).await;
    let lives = book.lives();
    ensure!(lives.len() == count, "{} of {count} objects", lives.len());
    let ended = lives
        .values()
        .filter_map(|life| life.done)
        .fold(began, f64::max);
    let mut to_pod: Vec<f64> = lives
        .values()
        // The two watches are not in step.
        .filter_map(|life| Some((life.pod? - life.there?).max(0.0)))
        .collect();
    to_pod.sort_by(f64::total_cmp);
    #[allow(clippy::cast_precision_loss)]
    let rate = count as f64 / (ended - began);
    Ok(Measured {
        kind,
        count,
        rate,
        controller_cpu: cpu()?
            .zip(controller_before)
            .map(|(after, before)| after - before),
        shares: machine
            .shares()?
            .into_iter()
            .map(|(name, after)| (name.clone(), after - before.get(&name).unwrap_or(&0.0)))
            .collect(),
        to_pod,
        lives,
    })
}
