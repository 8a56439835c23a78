//! Who killed, wrote and resumed, when: also where only the controller saw that it was done. (What the
//! ledger is told directly is in `query`.)

use runledger::api::run::Phase;
use runledger::ledger::query::{Entry, Subject};
use runledger::ledger::records::{Kill, KillRequest, RunRecord};
use uuid::Uuid;

use crate::database::{Database, migrated};
use crate::shapes::{TARGET, at, batch, ended, events, record, run_id, running, session_id, usage};

async fn of_the_run(db: &Database) -> Vec<Entry> {
    let run = Subject::Run(run_id());
    db.ledger.audit_of(run, None, 10).await.unwrap()
}

#[tokio::test]
async fn a_kill_through_the_cluster_is_written_down_once_with_its_time_and_nobody_invented() {
    let db = migrated().await;
    db.ledger.mirror(&running(1)).await.unwrap();
    let kill = Kill {
        request: KillRequest::DesiredState,
        at: Some(at(60)),
        manager: Some("kubectl\0patch".to_owned()),
    };
    for from in [running(1), ended(Phase::Killed, 1, usage(1))] {
        let asked = RunRecord {
            kill: Some(kill.clone()),
            ..from
        };
        for _ in 0..2 {
            db.ledger.mirror(&asked).await.unwrap();
        }
    }
    let told = of_the_run(&db).await;
    let [entry] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((entry.at, entry.actor.as_str()), (at(60), "unknown"));
    assert_eq!((entry.action.as_str(), entry.allowed), ("kill", true));
    assert_eq!(entry.session_id, Some(session_id()));
    assert_eq!(
        entry.detail.as_deref(),
        Some(
            "spec.desiredState was set to Killed through the Kubernetes API, with kubectl\u{fffd}patch (altered: held U+0000)"
        )
    );
}

#[tokio::test]
async fn a_deletion_is_a_kill_of_its_own_even_where_the_run_came_to_its_end_first() {
    let db = migrated().await;
    let mut end = ended(Phase::Completed, 1, usage(1));
    for request in [KillRequest::DesiredState, KillRequest::Deletion] {
        end.kill = Some(Kill {
            request,
            at: None,
            manager: None,
        });
        db.ledger.mirror(&end).await.unwrap();
    }
    let told: Vec<_> = of_the_run(&db)
        .await
        .into_iter()
        .map(|e| e.detail)
        .collect();
    let says = |what: &str| Some(format!("{what} through the Kubernetes API"));
    assert_eq!(
        told,
        [
            says("the WorkflowRun was deleted before its end"),
            says("spec.desiredState was set to Killed")
        ]
    );
    assert_eq!(
        db.one("SELECT status FROM workflow_runs").await.unwrap(),
        "completed"
    );
}

#[tokio::test]
async fn a_run_in_a_session_that_had_one_is_a_resume_whoever_brings_its_row() {
    let db = migrated().await;
    let of_session = async || {
        let session = Subject::Session(session_id());
        let all = db.ledger.audit_of(session, None, 10).await.unwrap();
        all.into_iter()
            .map(|e| (e.action, e.run_id.unwrap().as_u128(), e.at))
            .collect::<Vec<_>>()
    };
    db.ledger.mirror(&record()).await.unwrap();
    db.ledger
        .store(TARGET, &batch(1, &events(1, 1)), at(30))
        .await
        .unwrap();
    assert_eq!(of_session().await, [], "the first resumes nothing");
    let second = RunRecord {
        run_id: Uuid::from_u128(8),
        created_at: at(100),
        ..record()
    };
    for _ in 0..2 {
        db.ledger.mirror(&second).await.unwrap();
    }
    let resumed = ("resume".to_owned(), 8, at(100));
    assert_eq!(of_session().await, std::slice::from_ref(&resumed));
    let mut stub = batch(1, &events(1, 1)[..1]);
    stub.run_id = Uuid::from_u128(9);
    db.ledger.store(TARGET, &stub, at(200)).await.unwrap();
    let told = of_session().await;
    assert_eq!((told.len(), told[0].1, &told[1]), (2, 9, &resumed));
    let elsewhere = RunRecord {
        run_id: Uuid::from_u128(10),
        namespace: "other".to_owned(),
        session_id: runledger::ids::session("other", "talk"),
        ..record()
    };
    db.ledger.mirror(&elsewhere).await.unwrap();
    assert_eq!(of_session().await.len(), 2, "of its own session only");
}

#[tokio::test]
async fn a_session_says_when_its_last_run_ended() {
    let db = migrated().await;
    let finished = "SELECT run_finished_at AT TIME ZONE 'UTC' FROM sessions";
    db.ledger.mirror(&running(1)).await.unwrap();
    assert_eq!(db.one(finished).await, None);
    for (number, end, says) in [(7, 75, 75), (8, 500, 500), (9, 300, 500)] {
        let end = RunRecord {
            run_id: Uuid::from_u128(number),
            completed_at: Some(at(end)),
            ..ended(Phase::Completed, 1, usage(1))
        };
        db.ledger.mirror(&end).await.unwrap();
        let says = at(says).strftime("%Y-%m-%d %H:%M:%S").to_string();
        assert_eq!(db.one(finished).await, Some(says));
    }
}
