//! What many callers hand in at about the same time, written together: whoever comes while a write is
//! under way joins the next one, so that a statement, its plan and the wait for the disk are shared.
//!
//! It knows nothing of what is written. A write of several goes well for all of them, or for nobody:
//! then each caller is told to do it alone, so that one that can't be written spoils no other's.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

/// Most that are written together.
pub(super) const MOST: usize = 64;

/// What can be written with others.
pub(super) trait Joins: Send + Sync + 'static {
    /// Two of the same key are never written together, and in the order in which they came.
    fn key(&self) -> Uuid;
}

/// A queue of one writer.
#[derive(Debug)]
pub(super) struct Lane<T> {
    waiting: Mutex<VecDeque<Waiting<T>>>,
    /// Held by the write that is under way.
    flight: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Waiting<T> {
    what: Arc<T>,
    answer: oneshot::Sender<bool>,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            flight: Arc::default(),
        }
    }
}

impl<T: Joins> Lane<T> {
    /// Hands it in and waits; says whether it was written. Who stops waiting before its write began
    /// takes it back; after that nobody knows, and the others notice nothing.
    pub(super) async fn join<W, F>(self: &Arc<Self>, what: Arc<T>, write: W) -> bool
    where
        W: Fn(Vec<Arc<T>>) -> F + Clone + Send + 'static,
        F: Future<Output = bool> + Send,
    {
        let (answer, mut answered) = oneshot::channel();
        self.queue().push_back(Waiting { what, answer });
        loop {
            tokio::select! {
                biased;
                // No answer: the write came to an untimely end.
                answer = &mut answered => return answer.unwrap_or(false),
                flight = Arc::clone(&self.flight).lock_owned() => {
                    let (lane, write) = (Arc::clone(self), write.clone());
                    // In a task of its own: it is for others too, also when this caller is gone.
                    tokio::spawn(async move {
                        lane.fly(write).await;
                        drop(flight);
                    });
                }
            }
        }
    }

    /// Writes all that is waiting.
    async fn fly<W, F>(&self, write: W)
    where
        W: Fn(Vec<Arc<T>>) -> F,
        F: Future<Output = bool>,
    {
        loop {
            // Those who were woken together come together.
            tokio::task::yield_now().await;
            let (all, answers) = self.take();
            if all.is_empty() {
                return;
            }
            let written = write(all).await;
            for answer in answers {
                // Whoever has gone away doesn't care.
                let _ = answer.send(written);
            }
        }
    }

    /// The next that can be written together.
    fn take(&self) -> (Vec<Arc<T>>, Vec<oneshot::Sender<bool>>) {
        let mut queue = self.queue();
        let mut keys = HashSet::new();
        let (mut now, mut later) = (Vec::new(), VecDeque::new());
        for waiting in queue.drain(..) {
            if waiting.answer.is_closed() {
                continue;
            }
            if now.len() < MOST && keys.insert(waiting.what.key()) {
                now.push((waiting.what, waiting.answer));
            } else {
                later.push_back(waiting);
            }
        }
        *queue = later;
        now.into_iter().unzip()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Waiting<T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
