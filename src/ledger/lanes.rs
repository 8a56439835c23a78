//! What many callers hand in at about the same time, written together: whoever comes while all writers
//! are busy joins the next write, so that a statement, its plan and the wait for the disk are shared.
//! There is one queue, and whichever writer is free takes what it may of it, so that nobody waits for
//! one writer while another has nothing to do.
//!
//! It knows nothing of what is written. A write of several goes well for all of them, or for nobody:
//! then each caller is told to do it alone, so that one that can't be written spoils no other's.

use std::collections::{HashSet, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Most that are written together.
pub(super) const MOST: usize = 64;

/// What can be written with others.
pub(super) trait Joins: Send + Sync + 'static {
    /// Two of the same key are never written together, and in the order in which they came.
    fn key(&self) -> Uuid;

    /// Two of the same group are never written by two writers at a time, which would wait for each
    /// other's rows. All of one key are of one group.
    fn group(&self) -> Uuid;
}

/// What writes, one write after the other.
pub(super) trait Writes<T>: Send + 'static {
    /// Whether all of it was written.
    fn write(&mut self, all: Vec<Arc<T>>) -> impl Future<Output = bool> + Send;
}

/// A queue and its writers.
#[derive(Debug)]
pub(super) struct Lanes<T, W> {
    state: Mutex<State<T, W>>,
    /// Most writers at a time.
    most: usize,
}

#[derive(Debug)]
struct State<T, W> {
    /// In the order in which they came.
    waiting: VecDeque<Waiting<T>>,
    /// Groups that are being written.
    under_way: HashSet<Uuid>,
    /// Writers that write.
    writing: usize,
    /// Writers that are about to take what waits.
    coming: usize,
    /// Writers that have nothing to do, with what they need for the next time.
    resting: Vec<W>,
    /// Nobody rests any more, and nothing is taken in.
    closed: bool,
}

#[derive(Debug)]
struct Waiting<T> {
    what: Arc<T>,
    answer: oneshot::Sender<bool>,
}

/// What is written together, and who waits for it.
struct Flight<T> {
    all: Vec<Arc<T>>,
    answers: Vec<oneshot::Sender<bool>>,
    groups: Vec<Uuid>,
}

impl<T: Joins, W: Writes<T>> Lanes<T, W> {
    /// With so many writers at most.
    pub(super) fn new(most: usize) -> Self {
        Self {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                under_way: HashSet::new(),
                writing: 0,
                coming: 0,
                resting: Vec::new(),
                closed: false,
            }),
            most,
        }
    }

    /// Hands it in and waits; says whether it was written. Who stops waiting before its write began
    /// takes it back; after that nobody knows, and the others notice nothing.
    pub(super) async fn join(self: &Arc<Self>, what: Arc<T>, new: impl FnOnce() -> W) -> bool {
        let (answer, answered) = oneshot::channel();
        if let Some(writer) = self.hand_in(Waiting { what, answer }, new) {
            let lanes = Arc::clone(self);
            // In a task of its own: it is for others too, also when this caller is gone.
            tokio::spawn(async move { lanes.fly(writer).await });
        }
        // No answer: nothing is taken in any more.
        answered.await.unwrap_or(false)
    }

    /// Queues it; answers the writer that is to come for it, unless one comes anyway.
    fn hand_in(&self, waiting: Waiting<T>, new: impl FnOnce() -> W) -> Option<W> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.waiting.push_back(waiting);
        if state.coming > 0 || state.writing == self.most {
            return None;
        }
        state.coming += 1;
        state.resting.pop().or_else(|| Some(new()))
    }

    /// Writes until nothing is waiting.
    async fn fly(&self, mut writer: W) {
        loop {
            // Those who were woken together come together.
            tokio::task::yield_now().await;
            let Some((mut own, flight)) = self.next(writer) else {
                return;
            };
            let written = AssertUnwindSafe(own.write(flight.all)).catch_unwind().await;
            self.state().landed(&flight.groups);
            for answer in flight.answers {
                // Whoever has gone away doesn't care.
                let _ = answer.send(matches!(written, Ok(true)));
            }
            writer = own;
        }
    }

    /// What the writer that came is to write, or it rests.
    fn next(&self, writer: W) -> Option<(W, Flight<T>)> {
        let mut state = self.state();
        state.coming -= 1;
        let flight = state.take();
        if flight.is_none() && !state.closed {
            state.resting.push(writer);
            return None;
        }
        flight.map(|flight| (writer, flight))
    }

    /// Takes nothing in any more, and answers the writers that rest.
    pub(super) fn close(&self) -> Vec<W> {
        let mut state = self.state();
        state.closed = true;
        std::mem::take(&mut state.resting)
    }

    fn state(&self) -> MutexGuard<'_, State<T, W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Joins, W> State<T, W> {
    /// The next that can be written together, if anything can.
    fn take(&mut self) -> Option<Flight<T>> {
        let mut keys = HashSet::new();
        let (mut all, mut answers, mut later) = (Vec::new(), Vec::new(), VecDeque::new());
        for waiting in self.waiting.drain(..) {
            if waiting.answer.is_closed() {
                continue;
            }
            let may = all.len() < MOST && !self.under_way.contains(&waiting.what.group());
            if may && keys.insert(waiting.what.key()) {
                all.push(waiting.what);
                answers.push(waiting.answer);
            } else {
                later.push_back(waiting);
            }
        }
        self.waiting = later;
        if all.is_empty() {
            return None;
        }
        let groups: Vec<Uuid> = all.iter().map(|what| what.group()).collect();
        self.under_way.extend(&groups);
        self.writing += 1;
        Some(Flight {
            all,
            answers,
            groups,
        })
    }

    /// Its writer comes for more.
    fn landed(&mut self, groups: &[Uuid]) {
        for group in groups {
            self.under_way.remove(group);
        }
        self.writing -= 1;
        self.coming += 1;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
