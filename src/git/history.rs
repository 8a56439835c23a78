//! The commits between two commits, as `git rev-list` and `git merge-base` find them. Dates order the
//! walk but are not trusted: a commit that claims to be older than its parents is counted all the same.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use git2::Oid;

use super::Error;
use super::objects::{Commit, Objects};

/// Steps that are walked on when dates say that it is over, in case they lie.
const SLOP: u32 = 512;

/// Reachable from the final commit.
const FINAL: u8 = 1;
/// Reachable from the initial commit.
const INITIAL: u8 = 2;
/// Behind a common ancestor that is already found.
const STALE: u8 = 4;

/// What lies between two commits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// Commits of the final one that the initial one does not have, newest first.
    pub(super) commits: Vec<Oid>,
    /// The initial commit is no ancestor of the final one.
    pub(super) rewritten: bool,
    /// Their best common ancestor, where rewritten.
    pub(super) merge_base: Option<Oid>,
    /// A parent is not there, or not to be looked at.
    pub(super) shallow: bool,
}

/// Commits at which history is cut off: the lines of the file `shallow`.
pub(super) type Boundary = HashSet<Oid>;

/// The history between two commits; all of it where there was none before.
pub(super) fn between(
    objects: &Objects<'_>,
    initial: Option<Oid>,
    last: Oid,
    boundary: &Boundary,
) -> Result<History, Error> {
    if initial == Some(last) {
        return Ok(History::default());
    }
    let mut walk = Walk::new(objects, boundary);
    walk.paint(last, FINAL, true)?;
    if let Some(initial) = initial {
        walk.paint(initial, INITIAL, true)?;
    }
    let (order, bases) = walk.run()?;
    let is_ancestor = initial.is_none_or(|initial| walk.flags(initial) & FINAL != 0);
    let commits = order
        .into_iter()
        .filter(|id| walk.flags(*id) & (FINAL | INITIAL) == FINAL)
        .collect();
    let best = |id: &Oid| walk.flags(*id) & STALE == 0;
    Ok(History {
        commits,
        rewritten: !is_ancestor,
        merge_base: bases.into_iter().find(best).filter(|_| !is_ancestor),
        shallow: walk.shallow || !is_ancestor && walk.initial_is_cut,
    })
}

/// Whether a commit is one of these, or an ancestor of one: one walk for all of them.
pub(super) fn is_reachable(objects: &Objects<'_>, id: Oid, from: &[Oid]) -> Result<bool, Error> {
    if from.is_empty() || from.contains(&id) {
        return Ok(!from.is_empty());
    }
    let boundary = Boundary::new();
    let mut walk = Walk::new(objects, &boundary);
    for tip in from {
        walk.paint(*tip, FINAL, true)?;
    }
    walk.paint(id, INITIAL, true)?;
    walk.run()?;
    Ok(walk.flags(id) & FINAL != 0)
}

struct Seen {
    flags: u8,
    date: i64,
    /// Rising in the order in which commits are first met.
    number: u64,
    /// It waits in the queue.
    waits: bool,
    parents: Vec<Oid>,
}

struct Walk<'a, 'r> {
    objects: &'a Objects<'r>,
    boundary: &'a Boundary,
    seen: HashMap<Oid, Seen>,
    queue: BinaryHeap<(i64, Reverse<u64>, Oid)>,
    /// How many wait that are not stale.
    fresh: usize,
    /// The final commit's side ends where there is more.
    shallow: bool,
    /// The initial commit's side does.
    initial_is_cut: bool,
}

impl<'a, 'r> Walk<'a, 'r> {
    fn new(objects: &'a Objects<'r>, boundary: &'a Boundary) -> Self {
        Self {
            objects,
            boundary,
            seen: HashMap::new(),
            queue: BinaryHeap::new(),
            fresh: 0,
            shallow: false,
            initial_is_cut: false,
        }
    }

    fn flags(&self, id: Oid) -> u8 {
        self.seen.get(&id).map_or(0, |seen| seen.flags)
    }

    /// Adds flags to a commit, and has it looked at (again) if that is news.
    fn paint(&mut self, id: Oid, flags: u8, must_be: bool) -> Result<(), Error> {
        if !self.seen.contains_key(&id) {
            let Some(commit) = self.objects.find_commit(id)? else {
                if must_be {
                    return Err(Error::checkout(format!("commit {id} is missing")));
                }
                match flags & (FINAL | INITIAL) {
                    FINAL => self.shallow = true,
                    INITIAL => self.initial_is_cut = true,
                    _ => {}
                }
                return Ok(());
            };
            let number = self.seen.len() as u64;
            let Commit {
                committed, parents, ..
            } = commit;
            let parents = match self.boundary.contains(&id) {
                true => Vec::new(),
                false => parents,
            };
            self.seen.insert(
                id,
                Seen {
                    flags: 0,
                    date: committed,
                    number,
                    waits: false,
                    parents,
                },
            );
        }
        let Some(seen) = self.seen.get_mut(&id) else {
            return Ok(());
        };
        if seen.flags & flags == flags {
            return Ok(());
        }
        let was_fresh = seen.waits && seen.flags & STALE == 0;
        seen.flags |= flags;
        let is_fresh = seen.flags & STALE == 0;
        if !seen.waits {
            seen.waits = true;
            self.queue.push((seen.date, Reverse(seen.number), id));
        }
        self.fresh = self.fresh + usize::from(is_fresh) - usize::from(was_fresh);
        Ok(())
    }

    /// Walks until nothing can be found any more: the final commit's own commits in the order in which
    /// they were met, and the common ancestors.
    fn run(&mut self) -> Result<(Vec<Oid>, Vec<Oid>), Error> {
        let (mut order, mut bases) = (Vec::new(), Vec::new());
        let mut listed = HashSet::new();
        let mut oldest = i64::MAX;
        let mut slop = SLOP;
        while let Some((date, _, id)) = self.queue.pop() {
            if self.fresh == 0 && date < oldest {
                match slop.checked_sub(1) {
                    Some(left) => slop = left,
                    None => break,
                }
            } else {
                slop = SLOP;
            }
            let Some(seen) = self.seen.get_mut(&id) else {
                continue;
            };
            seen.waits = false;
            let mut flags = seen.flags;
            if flags & STALE == 0 {
                self.fresh -= 1;
            }
            let parents = seen.parents.clone();
            if self.boundary.contains(&id) {
                self.shallow |= flags & (FINAL | INITIAL) == FINAL;
                self.initial_is_cut |= flags & (FINAL | INITIAL) == INITIAL;
            }
            if flags == FINAL && listed.insert(id) {
                order.push(id);
                oldest = oldest.min(date);
            }
            if flags & (FINAL | INITIAL) == FINAL | INITIAL {
                if flags & STALE == 0 && !bases.contains(&id) {
                    bases.push(id);
                }
                flags |= STALE;
            }
            for parent in parents {
                self.paint(parent, flags, false)?;
            }
        }
        Ok((order, bases))
    }
}
