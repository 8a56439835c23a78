//! What this process has written and its caches don't show yet. A cache lags behind its own
//! process' writes by some milliseconds; acting on it in that time would repeat writes or run into
//! conflicts. Beside that: what failed or was refused, and how many pods were made of late. It owns no
//! decision, only what is known here.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt;

use super::shapes::Refusal;

/// Longer than any cache that is alive lags behind.
const LAG: Duration = Duration::from_secs(10);
/// Of late, as [`Crowd`] has it.
const LATELY: Duration = Duration::from_secs(10);
/// Entries beyond which old ones are looked for.
const MANY: usize = 1024;

/// Objects of one kind as they were last written here.
#[derive(Debug)]
pub(super) struct Written<K> {
    entries: Mutex<HashMap<String, Entry<K>>>,
}

#[derive(Debug)]
struct Entry<K> {
    /// Nothing where it was deleted.
    object: Option<Arc<K>>,
    uid: Option<String>,
    at: Instant,
}

impl<K> Default for Written<K> {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
        }
    }
}

fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

impl<K: ResourceExt> Written<K> {
    /// Remembers what the API server answered to a write.
    pub(super) fn put(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let key = key(&object.namespace().unwrap_or_default(), &object.name_any());
        let entry = Entry {
            uid: object.uid(),
            object: Some(object.clone()),
            at: Instant::now(),
        };
        self.insert(key, entry);
        object
    }

    /// Remembers that this object is there no more.
    pub(super) fn bury(&self, namespace: &str, name: &str, uid: &str) {
        let entry = Entry {
            object: None,
            uid: Some(uid.to_owned()),
            at: Instant::now(),
        };
        self.insert(key(namespace, name), entry);
    }

    fn insert(&self, key: String, entry: Entry<K>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MANY {
            entries.retain(|_, entry| entry.at.elapsed() < LAG);
        }
        entries.insert(key, entry);
    }

    /// The newer of what the cache has and what was written here.
    pub(super) fn newest(
        &self,
        namespace: &str,
        name: &str,
        cached: Option<Arc<K>>,
    ) -> Option<Arc<K>> {
        let key = key(namespace, name);
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.get(&key) else {
            return cached;
        };
        let lags = entry.at.elapsed() < LAG
            && match (&cached, &entry.object) {
                (None, object) => object.is_some(),
                (Some(cached), None) => cached.uid() == entry.uid,
                // Also where one is another object of the same name: who came later is the newer.
                (Some(cached), Some(object)) => version(cached.as_ref()) < version(object.as_ref()),
            };
        if lags {
            return entry.object.clone();
        }
        entries.remove(&key);
        cached
    }
}

/// Resource versions of one kind are comparable numbers.
fn version<K: ResourceExt>(object: &K) -> Option<u64> {
    object
        .resource_version()
        .and_then(|version| version.parse().ok())
}

/// How often each object has failed in a row, and pods that were refused.
#[derive(Debug, Default)]
pub(super) struct Setbacks {
    failures: Mutex<HashMap<String, u32>>,
    refusals: Mutex<HashMap<String, (Refusal, u32)>>,
}

impl Setbacks {
    /// Counts a failure of the object and says how long to wait.
    pub(super) fn failed(&self, uid: &str, longest: Duration) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        backoff(*count, longest)
    }

    /// The object did not fail.
    pub(super) fn succeeded(&self, uid: &str) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    /// Remembers a refusal.
    pub(super) fn refuse(&self, uid: &str, message: String, for_good: bool, now: Timestamp) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let count = refusals
            .get(uid)
            .map_or(1, |(_, count)| count.saturating_add(1));
        let wait = backoff(count.saturating_add(1), Duration::from_secs(60));
        let again = now.checked_add(wait).unwrap_or(now);
        refusals.insert(
            uid.to_owned(),
            (
                Refusal {
                    message,
                    for_good,
                    again,
                },
                count,
            ),
        );
    }

    /// The refusal of the run's pod, should there be one.
    pub(super) fn refusal(&self, uid: &str) -> Option<Refusal> {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .map(|(refusal, _)| refusal.clone())
    }

    /// The pod was taken, or the run is no more.
    pub(super) fn forget(&self, uid: &str) {
        self.refusals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        self.succeeded(uid);
    }
}

/// 1 s, 2 s, 4 s, … up to the longest.
fn backoff(count: u32, longest: Duration) -> Duration {
    Duration::from_secs(1_u64 << count.saturating_sub(1).min(10)).min(longest)
}

/// How many pods were made of late.
#[derive(Debug)]
pub(super) struct Crowd {
    /// When the last ones were made, the oldest first; no more than it takes.
    made: Mutex<VecDeque<Instant>>,
    many: usize,
}

impl Crowd {
    /// So many within [`LATELY`] are many.
    pub(super) fn of(many: usize) -> Self {
        Self {
            made: Mutex::default(),
            many: many.max(1),
        }
    }

    /// A pod was made.
    pub(super) fn add(&self) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.len() >= self.many {
            made.pop_front();
        }
        made.push_back(Instant::now());
    }

    /// Many were made of late.
    pub(super) fn is_there(&self) -> bool {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let first = made.front().filter(|_| made.len() >= self.many);
        first.is_some_and(|first| first.elapsed() < LATELY)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn pod(uid: &str, version: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "n", "name": "p", "uid": uid, "resourceVersion": version}
        }))
        .unwrap()
    }

    fn seen(written: &Written<Pod>, cached: Option<Pod>) -> Option<String> {
        written
            .newest("n", "p", cached.map(Arc::new))
            .and_then(|pod| pod.resource_version())
    }

    #[test]
    fn a_write_is_seen_before_the_cache_shows_it_and_the_cache_after() {
        let written = Written::default();
        written.put(pod("a", "7"));
        assert_eq!(seen(&written, Some(pod("a", "5"))).as_deref(), Some("7"));
        assert_eq!(seen(&written, None).as_deref(), Some("7"));
        assert_eq!(seen(&written, Some(pod("a", "10"))).as_deref(), Some("10"));
        assert_eq!(
            seen(&written, Some(pod("a", "5"))).as_deref(),
            Some("5"),
            "forgotten by then"
        );
    }

    #[test]
    fn of_two_objects_of_one_name_the_later_one_is_seen() {
        let written = Written::default();
        written.put(pod("a", "9"));
        assert_eq!(
            seen(&written, Some(pod("b", "10"))).as_deref(),
            Some("10"),
            "made again by somebody else"
        );
        written.put(pod("b", "10"));
        assert_eq!(
            seen(&written, Some(pod("a", "9"))).as_deref(),
            Some("10"),
            "made again here"
        );
    }

    #[test]
    fn a_deleted_object_is_gone_before_the_cache_knows() {
        let written = Written::default();
        written.bury("n", "p", "a");
        assert_eq!(seen(&written, Some(pod("a", "5"))), None);
        assert_eq!(
            seen(&written, Some(pod("b", "6"))).as_deref(),
            Some("6"),
            "another of its name"
        );
    }

    #[test]
    fn pods_are_a_crowd_when_as_many_as_that_were_made_of_late() {
        let crowd = Crowd::of(3);
        (0..2).for_each(|_| crowd.add());
        assert!(!crowd.is_there());
        crowd.add();
        assert!(crowd.is_there());
        let long_ago = Instant::now().checked_sub(LATELY).unwrap();
        *crowd.made.lock().unwrap() = [long_ago; 3].into();
        assert!(!crowd.is_there());
        (0..2).for_each(|_| crowd.add());
        assert!(!crowd.is_there(), "the third of them is an old one");
        crowd.add();
        assert!(crowd.is_there());
        assert_eq!(crowd.made.lock().unwrap().len(), 3);
    }

    #[test]
    fn waiting_grows_up_to_its_limit() {
        let setbacks = Setbacks::default();
        let longest = Duration::from_secs(30);
        let waits: Vec<u64> = (0..7)
            .map(|_| setbacks.failed("a", longest).as_secs())
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        setbacks.succeeded("a");
        assert_eq!(setbacks.failed("a", longest).as_secs(), 1);
    }
}
