//! Remembers answers of the API server for seconds, so that a run's many batches cost it few
//! requests. A yes may be seconds old; a no never is, since a new pod's first batch may come just
//! before its uid is in the run's status.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::access::{self, Batched, Claim, Run, Verdict};
use super::cluster::{Answer, Cluster, Fault};

/// How old a good answer may be.
const FRESH: Duration = Duration::from_secs(5);
/// How old a bad answer may be.
const FRESH_NO: Duration = Duration::from_millis(500);
/// Most answers kept of each kind.
const MOST: usize = 10_000;

/// Asks the cluster, through what it remembers.
pub(super) struct Guard {
    cluster: Arc<dyn Cluster>,
    /// By a hash of the token: the token itself is kept nowhere.
    claims: Memory<[u8; 32], Answer>,
    runs: Memory<(String, String), Option<Run>>,
}

/// What the guard says of a batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pass {
    Yes,
    AskLedger(Uuid),
    No(&'static str),
}

impl Guard {
    pub(super) fn new(cluster: Arc<dyn Cluster>) -> Self {
        Self {
            cluster,
            claims: Memory::new(),
            runs: Memory::new(),
        }
    }

    /// Whose token this is.
    pub(super) async fn claim(&self, token: &str) -> Result<Answer, Fault> {
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(answer) = self.claims.get(&key, FRESH)
            && (answer.is_ok() || self.claims.get(&key, FRESH_NO).is_some())
        {
            return Ok(answer);
        }
        let asked = Instant::now();
        let answer = self.cluster.review(token.to_owned()).await?;
        self.claims.put(key, answer.clone(), asked);
        Ok(answer)
    }

    /// Whether the claim covers the batch for the run of that name.
    pub(super) async fn pass(
        &self,
        claim: &Claim,
        name: &str,
        pod_run: Option<&str>,
        batch: Batched,
    ) -> Result<Pass, Fault> {
        for fresh in [FRESH, FRESH_NO] {
            let target = self.run(&claim.namespace, name, fresh).await?;
            let verdict = match pod_run {
                None => access::own(claim, batch, target.as_ref()),
                Some(pod_run) => {
                    let pod_run = self.run(&claim.namespace, pod_run, fresh).await?;
                    access::left_behind(claim, batch, target.as_ref(), pod_run.as_ref())
                }
            };
            match verdict {
                Verdict::Yes => return Ok(Pass::Yes),
                // What is remembered says no: ask anew, then believe it.
                Verdict::No(_) | Verdict::AskLedger(_) if fresh == FRESH => {}
                Verdict::No(why) => return Ok(Pass::No(why)),
                Verdict::AskLedger(run) => return Ok(Pass::AskLedger(run)),
            }
        }
        Ok(Pass::No("the run can't be judged"))
    }

    async fn run(
        &self,
        namespace: &str,
        name: &str,
        fresh: Duration,
    ) -> Result<Option<Run>, Fault> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(run) = self.runs.get(&key, fresh) {
            return Ok(run);
        }
        let asked = Instant::now();
        let run = self.cluster.run(key.0.clone(), key.1.clone()).await?;
        self.runs.put(key, run.clone(), asked);
        Ok(run)
    }
}

/// A bounded map whose entries grow old.
struct Memory<K, V> {
    entries: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn new() -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
        }
    }

    fn get(&self, key: &K, fresh: Duration) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries
            .get(key)
            .filter(|(asked, _)| asked.elapsed() < fresh)
            .map(|(_, value)| value.clone())
    }

    /// The time is that of the question: the answer may be as old as that.
    fn put(&self, key: K, value: V, asked: Instant) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= MOST {
            entries.retain(|_, (asked, _)| asked.elapsed() < FRESH);
            if entries.len() >= MOST {
                entries.clear();
            }
        }
        entries.insert(key, (asked, value));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn memory_stays_bounded() {
        let memory = Memory::new();
        for i in 0..(2 * MOST + 5) {
            memory.put(i, i, Instant::now());
        }
        assert!(memory.entries.lock().unwrap().len() <= MOST);
        assert_eq!(memory.get(&(2 * MOST + 4), FRESH), Some(2 * MOST + 4));
    }

    #[test]
    fn an_answer_is_as_old_as_its_question() {
        let memory = Memory::new();
        let long_ago = Instant::now().checked_sub(FRESH).unwrap();
        memory.put(1, 1, long_ago);
        assert_eq!(memory.get(&1, FRESH), None);
    }
}
