//! Frames on their way to the supervisor, kept until it has them on its disk. Bounded: an outbox
//! that is full holds the CLI's output back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::wire::door::{FromAgent, MAX_LINE};

/// Bytes that may wait.
const CAPACITY: usize = 4 * MAX_LINE;

/// The outbox.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    bytes: usize,
    frames: VecDeque<(u64, Arc<[u8]>)>,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a frame in that is given the next number; waits while there is no room. False if the
    /// frame is longer than the door allows: it is not in.
    pub(super) async fn push(&self, frame: impl Fn(u64) -> FromAgent) -> bool {
        loop {
            let changed = self.changed.notified();
            {
                let mut inner = self.lock();
                if inner.bytes < CAPACITY {
                    let number = inner.last + 1;
                    let Ok(mut line) = serde_json::to_vec(&frame(number)) else {
                        return false;
                    };
                    line.push(b'\n');
                    if line.len() > MAX_LINE {
                        return false;
                    }
                    inner.last = number;
                    inner.bytes += line.len();
                    inner.frames.push_back((number, line.into()));
                    break;
                }
            }
            changed.await;
        }
        self.changed.notify_waiters();
        true
    }

    /// Forgets what the supervisor has.
    pub(super) fn acknowledge(&self, number: u64) {
        let mut inner = self.lock();
        while let Some((first, line)) = inner.frames.front() {
            if *first > number {
                break;
            }
            let length = line.len();
            inner.bytes -= length;
            inner.frames.pop_front();
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// The first frame after that number; waits until there is one.
    pub(super) async fn after(&self, number: u64) -> (u64, Arc<[u8]>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = self
                .lock()
                .frames
                .iter()
                .find(|(n, _)| *n > number)
                .cloned();
            if let Some(found) = found {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    fn line(text: &str) -> impl Fn(u64) -> FromAgent {
        let line = Value::String(text.to_owned());
        move |number| FromAgent::Line {
            number,
            line: line.clone(),
        }
    }

    #[tokio::test]
    async fn what_is_not_acknowledged_is_sent_again() {
        let outbox = Outbox::default();
        for text in ["a", "b", "c"] {
            assert!(outbox.push(line(text)).await);
        }
        outbox.acknowledge(1);
        assert_eq!(outbox.after(0).await.0, 2);
        assert_eq!(outbox.after(2).await.0, 3);
    }

    #[tokio::test]
    async fn a_full_outbox_holds_the_next_line_back_until_there_is_room() {
        let outbox = Arc::new(Outbox::default());
        let long = "x".repeat(MAX_LINE / 2);
        for _ in 0..=CAPACITY / long.len() {
            let filling = outbox.push(line(&long));
            if tokio::time::timeout(Duration::from_millis(200), filling)
                .await
                .is_err()
            {
                let waiting = tokio::spawn({
                    let outbox = outbox.clone();
                    async move { outbox.push(line("late")).await }
                });
                outbox.acknowledge(2);
                assert!(waiting.await.unwrap());
                return;
            }
        }
        panic!("more than its capacity went in");
    }

    #[tokio::test]
    async fn a_frame_that_the_door_would_refuse_is_not_taken() {
        let outbox = Outbox::default();
        assert!(!outbox.push(line(&"x".repeat(MAX_LINE))).await);
    }
}
