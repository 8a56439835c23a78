//! What this process has written of runs and need not write again: a digest of each run's part that
//! never changes on its way. Bounded, so a run may be forgotten, which costs a longer statement and
//! nothing else.
//!
//! It knows nothing of the database: whoever asks finds out there whether the row is still there.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};
use std::sync::{Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// Runs that are remembered for certain: more than are under way on most clusters, in some MiB.
const MANY: usize = 32_768;

/// What was written of which run.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Of this process alone, so that nobody can make two digests that are the same.
    state: RandomState,
    generations: Mutex<Generations>,
}

/// When the young ones are as many as are to be remembered, the old ones are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Uuid, u64>,
    old: HashMap<Uuid, u64>,
}

impl Known {
    /// Whether just this was written of the run.
    pub(super) fn has(&self, run: Uuid, what: &impl Hash) -> bool {
        let digest = self.state.hash_one(what);
        let generations = self.generations();
        let known = generations.young.get(&run);
        known.or_else(|| generations.old.get(&run)) == Some(&digest)
    }

    /// To be called before anything else is written of the run: what becomes of that is not known
    /// until it has gone well.
    pub(super) fn forget(&self, run: Uuid) {
        let mut generations = self.generations();
        generations.young.remove(&run);
        generations.old.remove(&run);
    }

    /// This was written of the run.
    pub(super) fn remember(&self, run: Uuid, what: &impl Hash) {
        let digest = self.state.hash_one(what);
        let mut generations = self.generations();
        generations.old.remove(&run);
        generations.young.insert(run, digest);
        if generations.young.len() >= MANY {
            generations.old = std::mem::take(&mut generations.young);
        }
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: usize) -> Uuid {
        Uuid::from_u128(number as u128)
    }

    #[test]
    fn only_what_was_written_last_is_known() {
        let known = Known::default();
        assert!(!known.has(run(1), &"a"));
        known.remember(run(1), &"a");
        assert!(known.has(run(1), &"a") && !known.has(run(1), &"b") && !known.has(run(2), &"a"));
        known.remember(run(1), &"b");
        assert!(known.has(run(1), &"b") && !known.has(run(1), &"a"));
        known.forget(run(1));
        assert!(!known.has(run(1), &"b"));
    }

    #[test]
    fn the_latest_are_remembered_however_many_there_were_and_no_more_than_twice_as_many() {
        let known = Known::default();
        let all = 5 * MANY / 2;
        for number in 0..all {
            known.remember(run(number), &number);
        }
        assert!((all - MANY..all).all(|number| known.has(run(number), &number)));
        let generations = known.generations();
        assert!(generations.young.len() + generations.old.len() <= 2 * MANY);
    }

    #[test]
    fn what_is_forgotten_or_replaced_is_so_in_both_generations() {
        let known = Known::default();
        known.remember(run(0), &"old");
        known.remember(run(1), &"old");
        for number in 2..MANY {
            known.remember(run(number), &"old");
        }
        known.remember(run(0), &"new");
        assert!(known.has(run(0), &"new") && !known.has(run(0), &"old"));
        known.forget(run(0));
        known.forget(run(1));
        assert!(!known.has(run(0), &"old") && !known.has(run(1), &"old"));
    }
}
