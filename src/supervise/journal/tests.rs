use std::fs::OpenOptions;

use super::*;

fn started(request: u64) -> Draft {
    Draft::event(EventBody::RequestStarted { request, bytes: 40 })
}

fn all(path: &Path) -> Vec<Event> {
    let bytes = std::fs::metadata(path).unwrap().len();
    let mut reader = Reader::open(path).unwrap();
    let mut found = Vec::new();
    while let Some(events) = reader.next(bytes).unwrap() {
        found.extend(events);
    }
    found
}

#[tokio::test]
async fn a_torn_last_line_is_cut_off_and_the_sequence_goes_on_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let journal = Journal::open(&path).unwrap();
    journal.append(|_| started(1)).durable().await;
    journal.append(|_| started(2)).durable().await;
    drop(journal);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"events":[{"seq"#).unwrap();

    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.read(|book| book.sequence), 2);
    journal.append(|_| started(3)).durable().await;
    let sequences: Vec<_> = all(&path).iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [1, 2, 3]);
}

#[tokio::test]
async fn appends_of_many_tasks_are_all_there_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let journal = std::sync::Arc::new(Journal::open(&path).unwrap());
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let journal = journal.clone();
            tokio::spawn(async move {
                journal
                    .append(|book| started(book.requests + 1))
                    .durable()
                    .await;
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let events = all(&path);
    let requests: Vec<_> = events
        .iter()
        .map(|event| match event.body {
            EventBody::RequestStarted { request, .. } => request,
            _ => 0,
        })
        .collect();
    assert_eq!(requests, (1..=50).collect::<Vec<_>>());
    assert_eq!(journal.durable().borrow().sequence, 50);
}

#[tokio::test]
async fn a_lost_attempt_is_closed_once_with_its_open_requests_estimated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let journal = Journal::open(&path).unwrap();
    journal.append(|_| started(1)).durable().await;
    journal.append(|_| started(2)).durable().await;
    drop(journal);
    let book = close(&path).unwrap();
    assert_eq!((book.sequence, book.usage.estimated_requests), (4, 2));
    let again = close(&path).unwrap();
    assert_eq!((again.sequence, again.usage), (4, book.usage));
    assert_eq!(all(&path).len(), 4);
}

#[tokio::test]
async fn space_is_reserved_without_changing_the_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let journal = Journal::open(&path).unwrap();
    journal.append(|_| started(1)).durable().await;
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.len(), journal.durable().borrow().bytes);
}

/// A journal on a disk that takes nothing.
fn on_a_full_disk() -> Journal {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    Journal::on(full, Book::default(), 0, Duration::from_millis(20)).unwrap()
}

#[tokio::test]
async fn what_is_in_the_book_is_found_though_the_disk_takes_nothing() {
    let journal = std::sync::Arc::new(on_a_full_disk());
    let waiting = tokio::spawn({
        let journal = journal.clone();
        async move {
            let timed_out = |book: &Book| book.timed_out.then_some(());
            journal.wait_for(timed_out).await;
        }
    });
    while journal.appended.receiver_count() == 0 {
        tokio::task::yield_now().await;
    }
    drop(journal.append(|_| Draft::note(Note::TimedOut)));
    let found = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    found.expect("it is told at once").unwrap();
}

#[tokio::test]
async fn a_disk_that_takes_nothing_for_long_is_given_up_with_its_cause() {
    let journal = on_a_full_disk();
    drop(journal.append(|_| started(1)));
    let why = journal.unwritable().await;
    assert!(why.full && why.cause.contains("No space left"), "{why:?}");
}

#[tokio::test]
async fn a_disk_that_takes_nothing_lets_no_more_in_than_memory_holds() {
    let journal = on_a_full_disk();
    journal.has_room().await;
    let body = EventBody::Omitted {
        why: "x".repeat(usize::try_from(MAX_BACKLOG).unwrap()),
    };
    drop(journal.append(|_| Draft::event(body)));
    let room = tokio::time::timeout(Duration::from_millis(50), journal.has_room());
    assert!(room.await.is_err());
}

/// A journal of four events, and its lines.
async fn four(path: &Path) -> Vec<String> {
    let journal = Journal::open(path).unwrap();
    for request in 1..=4 {
        journal.append(|_| started(request)).durable().await;
    }
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn copies(path: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(path.parent().unwrap()).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    names.retain(|name| name.extension().is_some_and(|e| e == "damaged"));
    names.sort();
    names
        .iter()
        .map(|name| std::fs::read(name).unwrap())
        .collect()
}

#[tokio::test]
async fn a_damaged_line_in_the_middle_takes_nothing_with_it_and_the_file_is_kept_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let mut lines = four(&path).await;
    lines[1] = "\0".repeat(lines[1].len());
    let damaged = lines.join("\n") + "\n{\"torn";
    std::fs::write(&path, &damaged).unwrap();

    let journal = Journal::open(&path).unwrap();
    journal.append(|_| started(5)).durable().await;
    let events = all(&path);
    let sequences: Vec<_> = events.iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5]);
    let omitted = |e: &Event| matches!(e.body, EventBody::Omitted { .. });
    let found: Vec<_> = events.iter().map(omitted).collect();
    assert_eq!(found, [false, true, false, false, false]);
    assert_eq!(copies(&path), [damaged.as_bytes()]);
    drop(journal);
    assert_eq!(Journal::open(&path).unwrap().read(|book| book.sequence), 5);
    assert_eq!(
        copies(&path).len(),
        1,
        "a journal that is whole is left alone"
    );
}

#[tokio::test]
async fn numbers_that_the_server_has_acknowledged_are_not_given_again_after_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let lines = four(&path).await;
    std::fs::write(&path, lines[0].clone() + "\nnonsense\nmore\n").unwrap();
    std::fs::write(path.with_extension("acked"), "4").unwrap();
    let journal = Journal::open(&path).unwrap();
    journal.append(|_| started(9)).durable().await;
    let sequences: Vec<_> = all(&path).iter().map(|e| e.sequence).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn a_damaged_number_makes_no_gap_of_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1.journal");
    let lines = four(&path).await;
    let absurd = lines[3].replace("\"sequence\":4", "\"sequence\":4000000000000");
    assert_ne!(absurd, lines[3]);
    std::fs::write(&path, format!("{}\nx\n{absurd}\n", lines[0])).unwrap();
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.read(|book| book.sequence), 1);
    assert_eq!(copies(&path).len(), 1);
}
