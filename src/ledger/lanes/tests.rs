use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;

#[derive(Debug)]
struct Word {
    key: u128,
    group: u128,
    text: &'static str,
}

impl Joins for Word {
    fn key(&self) -> Uuid {
        Uuid::from_u128(self.key)
    }

    fn group(&self) -> Uuid {
        Uuid::from_u128(self.group)
    }
}

/// Lanes whose writes wait until they are let, and end as they are told.
#[derive(Clone)]
struct Scene {
    lanes: Arc<Lanes<Word, Pen>>,
    log: Log,
    /// Writers that there have been.
    writers: Arc<Mutex<usize>>,
}

/// What the writers do.
#[derive(Clone, Debug)]
struct Log {
    /// Writes that began.
    written: Arc<Mutex<Vec<Vec<&'static str>>>>,
    /// Those that came to their end.
    ended: Arc<Mutex<Vec<&'static str>>>,
    let_through: Arc<Semaphore>,
}

#[derive(Debug)]
struct Pen(Log);

impl Writes<Word> for Pen {
    /// What is called `bad` can't be written, and `worse` doesn't even come to an answer.
    async fn write(&mut self, words: Vec<Arc<Word>>) -> bool {
        let texts: Vec<_> = words.iter().map(|word| word.text).collect();
        self.0.written.lock().unwrap().push(texts.clone());
        self.0.let_through.acquire().await.unwrap().forget();
        assert!(!texts.contains(&"worse"), "as it was told to");
        self.0.ended.lock().unwrap().extend(&texts);
        !texts.contains(&"bad")
    }
}

impl Scene {
    fn new() -> Self {
        Self::with_writers(1)
    }

    fn with_writers(most: usize) -> Self {
        Self {
            lanes: Arc::new(Lanes::new(most)),
            log: Log {
                written: Arc::default(),
                ended: Arc::default(),
                let_through: Arc::new(Semaphore::new(0)),
            },
            writers: Arc::default(),
        }
    }

    /// Hands in, and has come so far that it waits. Each key is a group of its own.
    async fn hand_in(&self, key: u128, text: &'static str) -> JoinHandle<bool> {
        self.hand_in_of(key, key, text).await
    }

    async fn hand_in_of(&self, group: u128, key: u128, text: &'static str) -> JoinHandle<bool> {
        let scene = self.clone();
        let task = tokio::spawn(async move {
            let word = Arc::new(Word { key, group, text });
            let new = || {
                *scene.writers.lock().unwrap() += 1;
                Pen(scene.log.clone())
            };
            scene.lanes.join(word, new).await
        });
        self.settle().await;
        task
    }

    /// Lets so many writes come to their end.
    fn let_through(&self, writes: usize) {
        self.log.let_through.add_permits(writes);
    }

    /// Lets every task come as far as it can: on one thread, those that can go on do so in turn.
    async fn settle(&self) {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    fn written(&self) -> Vec<Vec<&'static str>> {
        self.log.written.lock().unwrap().clone()
    }
}

/// What a caller was told, which it must be at some time.
async fn answer(task: JoinHandle<bool>) -> bool {
    let answer = tokio::time::timeout(Duration::from_secs(10), task).await;
    answer.expect("no answer").unwrap()
}

/// Each of these callers is told that it was written.
async fn all_written(tasks: impl IntoIterator<Item = JoinHandle<bool>>) {
    for task in tasks {
        assert!(answer(task).await);
    }
}

#[tokio::test]
async fn who_comes_while_a_write_is_under_way_joins_the_next_one() {
    let scene = Scene::new();
    let mut tasks = vec![scene.hand_in(1, "a").await];
    for (key, text) in [(2, "b"), (3, "c"), (4, "d")] {
        tasks.push(scene.hand_in(key, text).await);
    }
    assert_eq!(scene.written(), [vec!["a"]]);
    scene.let_through(2);
    all_written(tasks).await;
    assert_eq!(scene.written(), [vec!["a"], vec!["b", "c", "d"]]);
}

#[tokio::test]
async fn what_is_of_one_key_is_written_one_after_the_other_in_the_order_it_came() {
    let scene = Scene::new();
    let mut tasks = vec![scene.hand_in(1, "first").await];
    for (key, text) in [(2, "old"), (2, "new"), (3, "other"), (2, "newest")] {
        tasks.push(scene.hand_in(key, text).await);
    }
    scene.let_through(9);
    all_written(tasks).await;
    assert_eq!(
        scene.written(),
        [
            vec!["first"],
            vec!["old", "other"],
            vec!["new"],
            vec!["newest"]
        ]
    );
}

#[tokio::test]
async fn no_more_are_written_together_than_the_most_and_none_is_forgotten() {
    let scene = Scene::new();
    let mut tasks = vec![scene.hand_in(0, "first").await];
    for key in 1..=150 {
        tasks.push(scene.hand_in(key, "x").await);
    }
    tasks.push(scene.hand_in(150, "y").await);
    scene.let_through(9);
    all_written(tasks).await;
    let sizes: Vec<_> = scene.written().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, MOST, MOST, 150 - 2 * MOST, 1]);
}

#[tokio::test]
async fn when_one_cannot_be_written_all_of_its_write_are_told_to_do_it_alone_and_later_ones_not() {
    let scene = Scene::new();
    let first = scene.hand_in(1, "a").await;
    let together = [scene.hand_in(2, "b").await, scene.hand_in(3, "bad").await];
    scene.let_through(2);
    assert!(answer(first).await);
    for task in together {
        assert!(!answer(task).await);
    }
    let later = scene.hand_in(2, "c").await;
    scene.let_through(1);
    assert!(answer(later).await);
}

#[tokio::test]
async fn who_goes_away_while_it_waits_takes_back_what_it_handed_in() {
    let scene = Scene::new();
    let first = scene.hand_in(1, "a").await;
    let (gone, stays) = (scene.hand_in(2, "gone").await, scene.hand_in(3, "b").await);
    gone.abort();
    scene.settle().await;
    scene.let_through(2);
    assert!(answer(first).await && answer(stays).await);
    assert_eq!(scene.written(), [vec!["a"], vec!["b"]]);
}

#[tokio::test]
async fn who_began_the_write_may_go_away_and_the_others_are_written() {
    let scene = Scene::new();
    let first = scene.hand_in(1, "a").await;
    let other = scene.hand_in(2, "b").await;
    first.abort();
    scene.settle().await;
    scene.let_through(2);
    assert!(answer(other).await);
    assert_eq!(*scene.log.ended.lock().unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn a_write_that_dies_is_answered_and_its_writer_goes_on() {
    let scene = Scene::new();
    let dies = scene.hand_in(1, "worse").await;
    let next = scene.hand_in(2, "b").await;
    scene.let_through(2);
    assert!(!answer(dies).await);
    assert!(answer(next).await);
}

#[tokio::test]
async fn whoever_is_free_writes_what_came_last_while_another_writes() {
    let scene = Scene::with_writers(2);
    let mut tasks = Vec::new();
    for (key, text) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        tasks.push(scene.hand_in(key, text).await);
    }
    assert_eq!(scene.written(), [["a"], ["b"]]);
    scene.let_through(1);
    scene.settle().await;
    assert_eq!(scene.written(), [vec!["a"], vec!["b"], vec!["c", "d"]]);
    scene.let_through(2);
    all_written(tasks).await;
}

#[tokio::test]
async fn what_is_of_one_group_is_never_written_by_two_at_a_time_and_holds_nobody_else_up() {
    let scene = Scene::with_writers(2);
    let mut tasks = vec![scene.hand_in_of(1, 10, "a").await];
    for (group, key, text) in [(1, 11, "b"), (2, 20, "c"), (1, 10, "newer"), (1, 12, "d")] {
        tasks.push(scene.hand_in_of(group, key, text).await);
    }
    assert_eq!(scene.written(), [["a"], ["c"]]);
    scene.let_through(2);
    scene.settle().await;
    let all = scene.written();
    assert_eq!(all, [vec!["a"], vec!["c"], vec!["b", "newer", "d"]]);
    scene.let_through(1);
    all_written(tasks).await;
}

#[tokio::test]
async fn a_writer_that_has_nothing_to_do_is_there_for_the_next_time() {
    let scene = Scene::with_writers(2);
    scene.let_through(9);
    for (key, text) in [(1, "a"), (2, "b"), (1, "c")] {
        assert!(answer(scene.hand_in(key, text).await).await);
    }
    assert_eq!(*scene.writers.lock().unwrap(), 1);
}

#[tokio::test]
async fn when_it_is_closed_what_waits_is_written_and_nothing_more_is_taken_in() {
    let scene = Scene::new();
    let tasks = [scene.hand_in(1, "a").await, scene.hand_in(2, "b").await];
    assert!(scene.lanes.close().is_empty());
    assert!(!answer(scene.hand_in(3, "late").await).await);
    scene.let_through(9);
    all_written(tasks).await;
    assert_eq!(scene.written(), [["a"], ["b"]]);
    scene.settle().await;
    assert!(scene.lanes.close().is_empty(), "a writer rests");
}
