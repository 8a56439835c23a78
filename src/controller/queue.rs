//! What is looked at next. Owns the order: each object once, never the same one twice at a time, the
//! urgent first, and no more at once than is allowed. What is urgent, what looking means, and when an
//! object is tried again at which this program fell over, is its callers'.
//!
//! `kube::runtime`'s own takes waiting objects in any order, and asks each of those that are being
//! looked at whenever one of them has got on; a burst of runs makes both dear.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How soon an object wants to be looked at, against others that wait too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// What nobody waits for: clearing up.
    Last,
    /// What is under way.
    Soon,
    /// What somebody waits for to begin.
    First,
}

/// Of so many turns, one is for what has waited longest in the least urgent line; and of so many that
/// may be looked at at once, no more than one is cleared up, so that it takes little from the others.
const TURNS: u32 = 16;

/// Looks at each object that a bell names, and again after the time that looking at it returned.
/// Ends when nobody can ring any more.
///
/// A look that panics is a mistake of this program's that one object brings to light. It is told to
/// `fell`, which says when to try again: the others are looked at meanwhile.
pub(super) async fn work<K, F>(
    mut bells: UnboundedReceiver<K>,
    limit: usize,
    urgency: impl Fn(&K) -> Urgency,
    look: impl Fn(K) -> F,
    fell: impl Fn(&K, &str) -> Duration,
) where
    K: Clone + Eq + Hash + Send + 'static,
    F: Future<Output = Option<Duration>> + Send + 'static,
{
    let mut lines = Lines::new(limit);
    let mut busy = JoinSet::new();
    loop {
        for key in lines.due(Instant::now()) {
            lines.ring(urgency(&key), key);
        }
        while busy.len() < limit
            && let Some(key) = lines.next()
        {
            // What it had half done it had done to the world, which is looked at anew; what is shared in
            // here is put under locks that outlive a panic.
            let looking = AssertUnwindSafe(look(key.clone())).catch_unwind();
            busy.spawn(async move { (key, looking.await) });
        }
        let alarm = lines.alarm();
        tokio::select! {
            bell = bells.recv() => match bell {
                Some(key) => lines.ring(urgency(&key), key),
                None => return,
            },
            Some(looked) = busy.join_next() => match looked {
                Ok((key, Ok(again))) => {
                    if lines.looked_at(&key, again.map(|wait| Instant::now() + wait)) {
                        lines.ring(urgency(&key), key);
                    }
                }
                Ok((key, Err(panic))) => {
                    let wait = fell(&key, words(panic.as_ref()));
                    lines.fell(&key, Instant::now() + wait);
                }
                Err(_) => return,
            },
            () = tokio::time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
        }
    }
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it did not say why")
}

/// Where an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the line of that urgency.
    Waiting(Urgency),
    /// Being looked at as that urgent, and whether a bell has rung since.
    Busy { urgency: Urgency, rung: bool },
    /// Left alone until its alarm goes off, whatever rings.
    Down,
}

/// The objects that wait, without a clock or a task of their own.
#[derive(Debug)]
struct Lines<K> {
    first: VecDeque<K>,
    soon: VecDeque<K>,
    last: VecDeque<K>,
    places: HashMap<K, Place>,
    /// When to look again, and the same by object. The number tells alarms of one instant apart.
    alarms: BTreeMap<(Instant, u64), K>,
    alarm_of: HashMap<K, (Instant, u64)>,
    alarms_set: u64,
    turn: u32,
    /// How many are being cleared up, and the most.
    clearing: usize,
    most_clearing: usize,
}

impl<K: Clone + Eq + Hash> Lines<K> {
    /// For so many at once.
    fn new(limit: usize) -> Self {
        Self {
            first: VecDeque::new(),
            soon: VecDeque::new(),
            last: VecDeque::new(),
            places: HashMap::new(),
            alarms: BTreeMap::new(),
            alarm_of: HashMap::new(),
            alarms_set: 0,
            turn: 0,
            clearing: 0,
            most_clearing: limit.div_ceil(TURNS as usize),
        }
    }

    /// The object is to be looked at.
    fn ring(&mut self, urgency: Urgency, key: K) {
        match self.places.get_mut(&key) {
            Some(Place::Busy { rung, .. }) => *rung = true,
            Some(Place::Down) => {}
            // Where it stood, `next` passes it over.
            Some(Place::Waiting(now)) if *now >= urgency => {}
            _ => {
                self.places.insert(key.clone(), Place::Waiting(urgency));
                self.line(urgency).push_back(key);
            }
        }
    }

    /// The next one; it counts as being looked at from now on.
    fn next(&mut self) -> Option<K> {
        self.turn = (self.turn + 1) % TURNS;
        let order = if self.turn == 0 {
            [Urgency::Last, Urgency::Soon, Urgency::First]
        } else {
            [Urgency::First, Urgency::Soon, Urgency::Last]
        };
        for urgency in order {
            let clears = urgency == Urgency::Last;
            if clears && self.clearing >= self.most_clearing {
                continue;
            }
            while let Some(key) = self.line(urgency).pop_front() {
                if self.places.get(&key) == Some(&Place::Waiting(urgency)) {
                    let place = Place::Busy {
                        urgency,
                        rung: false,
                    };
                    self.places.insert(key.clone(), place);
                    self.clearing += usize::from(clears);
                    self.silence(&key);
                    return Some(key);
                }
            }
        }
        None
    }

    /// The object has been looked at, and wants to be again at that time. Says whether it is to be
    /// looked at once more right away, since a bell has rung meanwhile.
    fn looked_at(&mut self, key: &K, again: Option<Instant>) -> bool {
        let Some(Place::Busy { urgency, rung }) = self.places.remove(key) else {
            return false;
        };
        self.clearing -= usize::from(urgency == Urgency::Last);
        if let Some(at) = again.filter(|_| !rung) {
            self.set_alarm(key, at);
        }
        rung
    }

    /// Looking at the object came to a bad end, and it is not looked at again before that time.
    fn fell(&mut self, key: &K, until: Instant) {
        if let Some(Place::Busy { urgency, .. }) = self.places.remove(key) {
            self.clearing -= usize::from(urgency == Urgency::Last);
            self.places.insert(key.clone(), Place::Down);
            self.set_alarm(key, until);
        }
    }

    fn set_alarm(&mut self, key: &K, at: Instant) {
        self.alarms_set += 1;
        let alarm = (at, self.alarms_set);
        self.alarms.insert(alarm, key.clone());
        self.alarm_of.insert(key.clone(), alarm);
    }

    /// When the next alarm goes off.
    fn alarm(&self) -> Option<Instant> {
        self.alarms.keys().next().map(|(at, _)| *at)
    }

    /// Those whose alarm has gone off.
    fn due(&mut self, now: Instant) -> Vec<K> {
        let later = self.alarms.split_off(&(now, u64::MAX));
        let due: Vec<K> = std::mem::replace(&mut self.alarms, later)
            .into_values()
            .collect();
        for key in &due {
            self.alarm_of.remove(key);
            if self.places.get(key) == Some(&Place::Down) {
                self.places.remove(key);
            }
        }
        due
    }

    fn silence(&mut self, key: &K) {
        if let Some(alarm) = self.alarm_of.remove(key) {
            self.alarms.remove(&alarm);
        }
    }

    fn line(&mut self, urgency: Urgency) -> &mut VecDeque<K> {
        match urgency {
            Urgency::First => &mut self.first,
            Urgency::Soon => &mut self.soon,
            Urgency::Last => &mut self.last,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    fn taken<K: Clone + Eq + Hash>(lines: &mut Lines<K>) -> Vec<K> {
        std::iter::from_fn(|| lines.next()).collect()
    }

    #[test]
    fn the_urgent_go_first_and_among_equals_who_came_first() {
        let mut lines = Lines::new(2 * TURNS as usize);
        lines.ring(Urgency::Last, "old");
        lines.ring(Urgency::Soon, "a");
        lines.ring(Urgency::Soon, "b");
        lines.ring(Urgency::First, "new");
        assert_eq!(taken(&mut lines), ["new", "a", "b", "old"]);
    }

    #[test]
    fn an_object_waits_once_and_moves_up_where_it_gets_urgent() {
        let mut lines = Lines::new(2 * TURNS as usize);
        for key in ["a", "b", "a"] {
            lines.ring(Urgency::Soon, key);
        }
        lines.ring(Urgency::First, "b");
        lines.ring(Urgency::Last, "b");
        assert_eq!(taken(&mut lines), ["b", "a"]);
    }

    #[test]
    fn clearing_up_gets_its_turn_under_any_load() {
        let mut lines = Lines::new(2 * TURNS as usize);
        lines.ring(Urgency::Last, usize::MAX);
        (0..100).for_each(|key| lines.ring(Urgency::First, key));
        let turn = std::iter::from_fn(|| lines.next()).position(|key| key == usize::MAX);
        assert!(turn.unwrap() < TURNS as usize);
    }

    #[test]
    fn clearing_up_leaves_nearly_all_places_to_the_others() {
        let mut lines = Lines::new(2 * TURNS as usize);
        (0..9).for_each(|key| lines.ring(Urgency::Last, key));
        assert_eq!(taken(&mut lines), [0, 1]);
        lines.ring(Urgency::Soon, 9);
        assert_eq!(taken(&mut lines), [9]);
        lines.looked_at(&9, None);
        assert_eq!(lines.next(), None);
        lines.looked_at(&1, None);
        assert_eq!(taken(&mut lines), [2]);
        assert_eq!(Lines::<u8>::new(1).most_clearing, 1, "it always goes on");
    }

    #[test]
    fn an_object_is_not_looked_at_twice_at_a_time_and_no_bell_is_lost() {
        let mut lines = Lines::new(2 * TURNS as usize);
        lines.ring(Urgency::First, "a");
        assert_eq!(lines.next(), Some("a"));
        lines.ring(Urgency::First, "a");
        assert_eq!(lines.next(), None, "it is being looked at");
        let late = Instant::now() + Duration::from_secs(60);
        assert!(lines.looked_at(&"a", Some(late)), "once more");
        assert_eq!(lines.alarm(), None, "which comes before the alarm");
        lines.ring(Urgency::Soon, "a");
        assert_eq!(lines.next(), Some("a"));
        assert!(!lines.looked_at(&"a", None));
        assert!(lines.places.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn an_alarm_goes_off_once_and_not_where_a_bell_was_first() {
        let mut lines = Lines::new(2 * TURNS as usize);
        let now = Instant::now();
        for (key, seconds) in [("a", 2), ("b", 1)] {
            lines.ring(Urgency::Soon, key);
            assert_eq!(lines.next(), Some(key));
            assert!(!lines.looked_at(&key, Some(now + Duration::from_secs(seconds))));
        }
        assert!(lines.due(now).is_empty());
        lines.ring(Urgency::Soon, "a");
        assert_eq!(lines.next(), Some("a"));
        assert_eq!(lines.due(now + Duration::from_secs(9)), ["b"]);
        assert_eq!(lines.alarm(), None);
        assert!(lines.alarm_of.is_empty());
    }

    #[tokio::test]
    async fn as_many_are_looked_at_at_once_as_are_allowed_and_again_after_their_time() {
        let (bell, bells) = unbounded_channel();
        let (looked, mut looks) = unbounded_channel();
        let (open, door) = tokio::sync::watch::channel(false);
        let inside = Arc::new(AtomicUsize::new(0));
        let counted = inside.clone();
        let working = tokio::spawn(work(
            bells,
            2,
            |_| Urgency::Soon,
            move |key: u32| {
                let (looked, mut door, inside) = (looked.clone(), door.clone(), counted.clone());
                async move {
                    inside.fetch_add(1, Ordering::SeqCst);
                    door.wait_for(|open| *open).await.unwrap();
                    let most = inside.fetch_sub(1, Ordering::SeqCst);
                    looked.send((key, most)).unwrap();
                    (key == 0).then_some(Duration::from_millis(1))
                }
            },
            |_, _| unreachable!(),
        ));
        (0..5).for_each(|key| bell.send(key).unwrap());
        while inside.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        open.send(true).unwrap();
        let mut times = [0; 5];
        while times[0] < 3 || times.contains(&0) {
            let (key, most) = looks.recv().await.unwrap();
            assert!(most <= 2, "{most} at once");
            times[key as usize] += 1;
        }
        assert_eq!(times[1..], [1; 4]);
        drop(bell);
        working.await.unwrap();
    }

    #[tokio::test]
    async fn a_look_that_panics_is_told_and_tried_again_and_the_others_go_on() {
        let (bell, bells) = unbounded_channel();
        let (looked, mut looks) = unbounded_channel();
        let (told, mut tells) = unbounded_channel();
        let tries = Arc::new(AtomicUsize::new(0));
        let working = tokio::spawn(work(
            bells,
            1,
            |_| Urgency::Last,
            move |key: &'static str| {
                let (looked, tries) = (looked.clone(), tries.clone());
                async move {
                    let is_first = key == "odd" && tries.fetch_add(1, Ordering::SeqCst) == 0;
                    assert!(!is_first, "this one is {key}");
                    looked.send(key).unwrap();
                    None
                }
            },
            move |key, why| {
                told.send(format!("{key}: {why}")).unwrap();
                Duration::from_millis(1)
            },
        ));
        for key in ["odd", "even"] {
            bell.send(key).unwrap();
        }
        let mut both = [looks.recv().await.unwrap(), looks.recv().await.unwrap()];
        both.sort_unstable();
        assert_eq!(both, ["even", "odd"]);
        assert_eq!(tells.recv().await.unwrap(), "odd: this one is odd");
        drop(bell);
        working.await.unwrap();
    }

    #[test]
    fn bells_do_not_bring_an_object_back_at_once_at_which_a_look_came_to_a_bad_end() {
        let mut lines = Lines::new(1);
        let soon = Instant::now() + Duration::from_secs(1);
        lines.ring(Urgency::Last, "a");
        assert_eq!(lines.next(), Some("a"));
        lines.ring(Urgency::Last, "a");
        lines.fell(&"a", soon);
        lines.ring(Urgency::First, "a");
        assert_eq!(lines.next(), None);
        lines.ring(Urgency::Last, "b");
        assert_eq!(lines.next(), Some("b"), "the others have its place");
        assert_eq!(lines.due(soon), ["a"]);
        lines.ring(Urgency::Last, "a");
        lines.looked_at(&"b", None);
        assert_eq!(lines.next(), Some("a"));
    }
}
