//! Sees every pod of a namespace, from first to last: what no later question could find out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::runtime::watcher::{self, Event};
use runledger::names::labels;
use runledger::wire::Termination;

use crate::wait;
use crate::world::World;

/// Longest time that this watch is behind another one.
const LAG: Duration = Duration::from_secs(30);

/// What was seen of the pods of one namespace.
#[derive(Clone)]
pub(crate) struct Witness {
    pods: Arc<Mutex<BTreeMap<String, Pod>>>,
    _watch: Arc<Watch>,
}

struct Watch(tokio::task::JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Witness {
    pub(crate) fn start(world: &World, namespace: &str) -> Self {
        let pods: Arc<Mutex<BTreeMap<String, Pod>>> = Arc::default();
        let seen = Arc::clone(&pods);
        let events = watcher::watcher(world.api::<Pod>(namespace), watcher::Config::default());
        let task = tokio::spawn(events.for_each(move |event| {
            if let Ok(Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod)) = event {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                seen.lock().unwrap().insert(uid, pod);
            }
            std::future::ready(())
        }));
        Self {
            pods,
            _watch: Arc::new(Watch(task)),
        }
    }

    /// Every pod that a run ever had, as it was last seen, by attempt.
    pub(crate) fn pods_of(&self, run_uid: &str) -> Vec<(u32, Pod)> {
        let pods = self.pods.lock().unwrap();
        let label = |pod: &Pod, name: &str| {
            pod.metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(name))
                .cloned()
                .unwrap_or_default()
        };
        let mut found: Vec<(u32, Pod)> = pods
            .values()
            .filter(|pod| label(pod, labels::RUN_UID) == run_uid)
            .map(|pod| {
                (
                    label(pod, labels::ATTEMPT).parse().unwrap_or(0),
                    pod.clone(),
                )
            })
            .collect();
        found.sort_by_key(|(attempt, _)| *attempt);
        found
    }

    /// Number of pods that a run ever had.
    pub(crate) fn count(&self, run_uid: &str) -> usize {
        self.pods_of(run_uid).len()
    }

    /// The termination message of the run's last pod, as the kubelet reported it. This watch may be
    /// behind the controller's.
    pub(crate) async fn termination(&self, run_uid: &str) -> Result<Termination> {
        wait::eventually("the termination message", LAG, async || {
            let pods = self.pods_of(run_uid);
            let (_, pod) = pods.last().context("no pod was seen")?;
            let status = container(pod, runledger::pod::containers::SUPERVISOR);
            let state = status.and_then(|status| status.state);
            let message = state
                .and_then(|state| state.terminated?.message)
                .with_context(|| wait::yaml(pod))?;
            Ok(serde_json::from_str(&message)?)
        })
        .await
    }
}

/// Status of a container, init or main.
pub(crate) fn container(pod: &Pod, name: &str) -> Option<ContainerStatus> {
    let status = pod.status.as_ref()?;
    let main = status.container_statuses.iter().flatten();
    let init = status.init_container_statuses.iter().flatten();
    main.chain(init).find(|status| status.name == name).cloned()
}
