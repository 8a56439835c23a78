//! What a client sees: when each object was there, when its pod was there, when that had ended, and
//! when the object was done. Reads no more of an object than that, so as not to disturb.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt as _;
use kube::Client;
use kube::api::WatchParams;
use kube::core::{Request, WatchEvent};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::kinds::{self, Kind};

/// Seconds since 1970 by this machine's clock, which is also Postgres'.
pub(crate) fn now() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// What was seen of one object, and when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    /// The object was there.
    pub(crate) there: Option<f64>,
    /// Its pod was there.
    pub(crate) pod: Option<f64>,
    /// Its pod had ended.
    pub(crate) pod_ended: Option<f64>,
    /// Its pod was gone.
    pub(crate) pod_gone: bool,
    /// It was done.
    pub(crate) done: Option<f64>,
    /// It had no finalizers left.
    pub(crate) free: bool,
}

/// All that was seen.
#[derive(Debug, Default)]
pub(crate) struct Book {
    lives: Mutex<HashMap<String, Life>>,
    done: AtomicUsize,
    cleared: AtomicUsize,
    failure: Mutex<Option<String>>,
    /// Who waits for which object to be done.
    waiting: Mutex<HashMap<String, oneshot::Sender<()>>>,
}

#[derive(Clone, Deserialize)]
struct Seen {
    metadata: Meta,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    resource_version: String,
    #[serde(default)]
    owner_references: Vec<Owner>,
    #[serde(default)]
    finalizers: Vec<String>,
}

#[derive(Clone, Deserialize)]
struct Owner {
    name: String,
}

#[derive(Clone, Default, Deserialize)]
struct Status {
    phase: Option<String>,
    message: Option<String>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl Book {
    /// Starts to write down what happens to objects of that kind in that namespace.
    pub(crate) async fn open(client: &Client, kind: Kind, namespace: &str) -> Result<Arc<Self>> {
        let book = Arc::new(Self::default());
        let mut paths = vec![(kinds::pods(namespace), true)];
        if kind != Kind::Pod {
            paths.push((kind.path(namespace), false));
        }
        for (path, of_pods) in paths {
            let (book, client) = (book.clone(), client.clone());
            let (ready, is_ready) = oneshot::channel();
            tokio::spawn(async move {
                if let Err(error) = book.follow(&client, kind, &path, of_pods, ready).await {
                    book.fail(format!("watching {path}: {error:#}"));
                }
            });
            is_ready.await.context("a watch did not start")?;
        }
        Ok(book)
    }

    async fn follow(
        &self,
        client: &Client,
        kind: Kind,
        path: &str,
        of_pods: bool,
        ready: oneshot::Sender<()>,
    ) -> Result<()> {
        let mut ready = Some(ready);
        let mut version = String::new();
        loop {
            let request = Request::new(path).watch(&WatchParams::default(), &version)?;
            let mut events = std::pin::pin!(client.request_events::<Seen>(request).await?);
            if let Some(ready) = ready.take() {
                let _ = ready.send(());
            }
            while let Some(event) = events.try_next().await? {
                let (seen, gone) = match event {
                    WatchEvent::Added(seen) | WatchEvent::Modified(seen) => (seen, false),
                    WatchEvent::Deleted(seen) => (seen, true),
                    WatchEvent::Bookmark(bookmark) => {
                        version = bookmark.metadata.resource_version;
                        continue;
                    }
                    WatchEvent::Error(status) => bail!("{}", status.message),
                };
                version.clone_from(&seen.metadata.resource_version);
                if of_pods {
                    self.pod(kind, &seen, gone);
                } else {
                    self.object(kind, &seen);
                }
            }
        }
    }

    fn pod(&self, kind: Kind, pod: &Seen, gone: bool) {
        let owner = pod.metadata.owner_references.first();
        let name = owner.map_or(&pod.metadata.name, |owner| &owner.name);
        let ended = pod.status.phase.as_deref() == Some("Succeeded");
        if pod.status.phase.as_deref() == Some("Failed") {
            self.fail(format!("pod {} failed", pod.metadata.name));
        }
        self.note(kind, name, |life| {
            life.pod.get_or_insert_with(now);
            life.pod_gone |= gone;
            if ended {
                life.pod_ended.get_or_insert_with(now);
                if kind == Kind::Pod {
                    life.done.get_or_insert_with(now);
                }
            }
        });
    }

    fn object(&self, kind: Kind, object: &Seen) {
        let status = &object.status;
        let done = match kind {
            Kind::Run => status.phase.as_deref() == Some("Completed"),
            Kind::Job | Kind::JobOfRunPod | Kind::Pod => status
                .conditions
                .iter()
                .any(|condition| condition.kind == "Complete" && condition.status == "True"),
        };
        if matches!(status.phase.as_deref(), Some("Failed" | "Killed")) {
            let why = status.message.as_deref().unwrap_or_default();
            self.fail(format!("{} has failed: {why}", object.metadata.name));
        }
        self.note(kind, &object.metadata.name, |life| {
            life.there.get_or_insert_with(now);
            life.free = object.metadata.finalizers.is_empty();
            if done {
                life.done.get_or_insert_with(now);
            }
        });
    }

    fn note(&self, kind: Kind, name: &str, change: impl FnOnce(&mut Life)) {
        let is_cleared =
            |life: &Life| life.done.is_some() && (kind != Kind::Run || life.free && life.pod_gone);
        let mut lives = self.lives.lock().unwrap();
        let life = lives.entry(name.to_owned()).or_default();
        let (was_done, was_cleared) = (life.done.is_some(), is_cleared(life));
        change(life);
        if !was_done && life.done.is_some() {
            self.done.fetch_add(1, Ordering::Relaxed);
            if let Some(waiting) = self.waiting.lock().unwrap().remove(name) {
                // Whoever has gone away doesn't care.
                let _ = waiting.send(());
            }
        }
        if !was_cleared && is_cleared(life) {
            self.cleared.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn fail(&self, why: String) {
        self.failure.lock().unwrap().get_or_insert(why);
    }

    /// Tells when the object is done, which may not be there yet.
    pub(crate) fn is_done(&self, name: &str) -> oneshot::Receiver<()> {
        let (waiting, is_done) = oneshot::channel();
        self.waiting
            .lock()
            .unwrap()
            .insert(name.to_owned(), waiting);
        is_done
    }

    /// Waits until so many are done, and nothing is left to be done for them.
    pub(crate) async fn cleared(&self, count: usize, deadline: Duration) -> Result<()> {
        let until = tokio::time::Instant::now() + deadline;
        while self.cleared.load(Ordering::Relaxed) < count {
            if let Some(why) = self.failure.lock().unwrap().clone() {
                bail!(why);
            }
            ensure!(
                tokio::time::Instant::now() < until,
                "{} of {count} were done and {} cleared within {} s",
                self.done.load(Ordering::Relaxed),
                self.cleared.load(Ordering::Relaxed),
                deadline.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// What was seen of each.
    pub(crate) fn lives(&self) -> HashMap<String, Life> {
        self.lives.lock().unwrap().clone()
    }
}
