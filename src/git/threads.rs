//! The same done to many things, side by side on the machine's cores.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Error;

/// Things below which no thread is worth starting.
const FEW: usize = 8;
/// Most threads: each has memory of its own.
const MOST: usize = 4;

/// How many threads are worth having for so many things.
pub(super) fn worth(things: usize) -> usize {
    match things {
        0..FEW => 1,
        _ => thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST),
    }
}

/// What `one` makes of each, in their order.
pub(super) fn each<T: Sync, R: Send>(
    all: &[T],
    one: impl Fn(&T) -> Result<R, Error> + Sync,
) -> Result<Vec<R>, Error> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, R)>, Error> {
        let mut made = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(thing) = all.get(at) else {
                return Ok(made);
            };
            made.push((at, one(thing)?));
        }
    };
    let mut made = thread::scope(|scope| -> Result<Vec<(usize, R)>, Error> {
        let others: Vec<_> = (1..worth(all.len())).map(|_| scope.spawn(work)).collect();
        let mut made = work()?;
        for other in others {
            made.extend(joined(other)??);
        }
        Ok(made)
    })?;
    made.sort_unstable_by_key(|(at, _)| *at);
    Ok(made.into_iter().map(|(_, one)| one).collect())
}

/// What a thread came to.
pub(super) fn joined<R>(thread: thread::ScopedJoinHandle<'_, R>) -> Result<R, Error> {
    let died = |_| Error::checkout("a thread that reads the repository has died");
    thread.join().map_err(died)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_is_done_once_and_in_order_and_one_failure_is_told() {
        let all: Vec<usize> = (0..1000).collect();
        let twice = each(&all, |n| Ok(n * 2)).unwrap();
        assert!(twice.iter().copied().eq((0..1000).map(|n| n * 2)));
        let odd = each(&all, |n| match n {
            700 => Err(Error::checkout("seven hundred")),
            n => Ok(*n),
        });
        assert_eq!(odd.unwrap_err().to_string(), "seven hundred");
    }
}
