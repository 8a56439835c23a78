//! Waiting: on objects by watch, on anything else by asking again; always with a deadline, and with
//! the last state in the error when it passes.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Api;
use kube::runtime::wait::{Condition, await_condition};
use serde::Serialize;

/// Between two questions, where nothing can be watched.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until the object (or its absence) satisfies the condition, and returns it as it then was.
pub(crate) async fn until<K>(
    api: Api<K>,
    name: &str,
    what: &str,
    deadline: Duration,
    is_there: impl Fn(Option<&K>) -> bool + Send,
) -> Result<Option<K>>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let last: Mutex<Option<K>> = Mutex::new(None);
    let seen = Seen {
        last: &last,
        is_there,
    };
    let waited = tokio::time::timeout(deadline, await_condition(api, name, seen)).await;
    match waited {
        Ok(object) => object.with_context(|| format!("watching {name} until {what}")),
        Err(_) => {
            let last = last.lock().unwrap().take();
            let state = last.map_or_else(|| "it is not there".to_owned(), |object| yaml(&object));
            bail!(
                "{name}: not {what} within {} s; last seen:\n{state}",
                deadline.as_secs()
            )
        }
    }
}

struct Seen<'a, K, F> {
    last: &'a Mutex<Option<K>>,
    is_there: F,
}

impl<K: Clone, F: Fn(Option<&K>) -> bool> Condition<K> for Seen<'_, K, F> {
    fn matches_object(&self, object: Option<&K>) -> bool {
        *self.last.lock().unwrap() = object.cloned();
        (self.is_there)(object)
    }
}

/// Asks again and again until there is an answer. An `Err` is not final: it is what the error tells
/// when the deadline passes.
pub(crate) async fn eventually<T, F, Fut>(what: &str, deadline: Duration, ask: F) -> Result<T>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let end = tokio::time::Instant::now() + deadline;
    loop {
        let error = match tokio::time::timeout_at(end, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_) => bail!("{what}: no answer within {} s", deadline.as_secs()),
        };
        if tokio::time::Instant::now() + PAUSE > end {
            return Err(error.context(format!("{what}: not within {} s", deadline.as_secs())));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An object for a person.
pub(crate) fn yaml<T: Serialize>(object: &T) -> String {
    let Ok(mut value) = serde_json::to_value(object) else {
        return "(cannot be shown)".to_owned();
    };
    if let Some(metadata) = value
        .get_mut("metadata")
        .and_then(|metadata| metadata.as_object_mut())
    {
        metadata.remove("managedFields");
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}
