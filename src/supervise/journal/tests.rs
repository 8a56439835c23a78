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
