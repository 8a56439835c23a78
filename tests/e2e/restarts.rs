//! Whether a part of the product ended by itself: how often its containers were restarted, less how
//! often the tests killed them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};

use crate::case::Case;
use crate::world::{SYSTEM, World};

/// Restarts by pod uid.
pub(crate) type Restarts = BTreeMap<String, i32>;

/// What was there when the suite began, and the kills that are the tests' own.
pub(crate) struct Ledger {
    first: Restarts,
    killed: Mutex<Restarts>,
}

impl Ledger {
    pub(crate) async fn begin(kube: &kube::Client) -> Result<Self> {
        Ok(Self {
            first: counted(kube).await?,
            killed: Mutex::default(),
        })
    }

    /// A test killed the process of a container of that pod.
    pub(crate) fn killed(&self, pod_uid: &str) {
        let mut killed = self.killed.lock().unwrap();
        *killed.entry(pod_uid.to_owned()).or_default() += 1;
    }
}

/// Restarts of each controller and server that there is.
pub(crate) async fn of_product(world: &World) -> Result<Restarts> {
    counted(&world.kube).await
}

async fn counted(kube: &kube::Client) -> Result<Restarts> {
    let pods: Api<Pod> = Api::namespaced(kube.clone(), SYSTEM);
    // Not the chart's Jobs, which come and go.
    let parts = ListParams::default().labels("app.kubernetes.io/component in (controller, server)");
    let restarts = pods.list(&parts).await?.into_iter().map(|pod| {
        let statuses = pod.status.and_then(|status| status.container_statuses);
        let restarts = statuses.iter().flatten().map(|one| one.restart_count).sum();
        (pod.metadata.uid.unwrap_or_default(), restarts)
    });
    Ok(restarts.collect())
}

/// Comes right after the tests that overlap, none of which kills or replaces a part of the product.
pub(crate) async fn no_part_of_the_product_ended_in_all_of_this(case: Case) -> Result<()> {
    let (first, now) = (&case.world.restarts.first, of_product(&case.world).await?);
    ensure!(first.len() >= 4, "few pods were there: {first:?}");
    ensure!(*first == now, "restarts by pod: {first:?}, then {now:?}");
    Ok(())
}

/// Comes after those that kill.
pub(crate) async fn nothing_but_the_kills_restarted_a_part(case: Case) -> Result<()> {
    let now = of_product(&case.world).await?;
    let killed = case.world.restarts.killed.lock().unwrap().clone();
    for (uid, count) in &now {
        let of = |restarts: &Restarts| restarts.get(uid).copied().unwrap_or(0);
        let by_itself = count - of(&case.world.restarts.first) - of(&killed);
        ensure!(
            by_itself == 0,
            "pod {uid} ended {by_itself} times by itself: {now:?}, killed {killed:?}"
        );
    }
    println!("    kills: {}", killed.values().sum::<i32>());
    Ok(())
}
