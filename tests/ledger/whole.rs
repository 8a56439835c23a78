//! The columns and tables beside a run's figures: where it ran and with what, its labels, tools and
//! volume, and the order in which its messages arrived.

use runledger::api::run::Phase;
use runledger::ledger::records::WorkspaceRecord;
use uuid::Uuid;

use crate::database::migrated;
use crate::shapes::{TARGET, at, batch, ended, events, record, run_id, running, session_id, usage};

#[tokio::test]
async fn a_row_says_where_a_run_ran_and_with_what() {
    let mut db = migrated().await;
    db.ledger = db.ledger.of_cluster("west".to_owned());
    db.ledger.mirror(&record()).await.unwrap();
    db.ledger
        .store(TARGET, &batch(1, &events(1, 1)), at(30))
        .await
        .unwrap();
    assert_eq!(
        db.one("SELECT (cluster, agent_image, settings, workspace_path, cli_version) FROM workflow_runs")
            .await
            .unwrap(),
        "(west,registry.example/agent:1,\"{\"\"maxTurns\"\": 5}\",pvc://ns/workspace-talk/work,2.1.330)"
    );
}

#[tokio::test]
async fn labels_are_those_of_the_latest_record() {
    let db = migrated().await;
    let labels = "SELECT string_agg(key || '=' || value || ' ' || (l.created_at = r.created_at), ', ' ORDER BY key)
                  FROM run_labels l JOIN workflow_runs r ON r.id = l.run_id";
    // A stub has none, and not the run's age either.
    db.ledger
        .store(TARGET, &batch(1, &events(1, 1)), at(30))
        .await
        .unwrap();
    db.ledger.mirror(&record()).await.unwrap();
    assert_eq!(db.one(labels).await.unwrap(), "team=red true");
    let mut relabelled = running(1);
    relabelled.labels = [
        ("team".to_owned(), "blue".to_owned()),
        ("tier".to_owned(), "1".to_owned()),
    ]
    .into();
    db.ledger.mirror(&relabelled).await.unwrap();
    assert_eq!(db.one(labels).await.unwrap(), "team=blue true, tier=1 true");
    relabelled.labels.clear();
    db.ledger.mirror(&relabelled).await.unwrap();
    assert_eq!(db.one(labels).await, None);
}

#[tokio::test]
async fn tools_are_counted_once_whatever_the_network_does() {
    let db = migrated().await;
    let all = events(1, 3);
    for part in [&all[..4], &all[2..], &all[..]] {
        db.ledger
            .store(TARGET, &batch(1, part), at(30))
            .await
            .unwrap();
    }
    // Each message of `shapes` calls Bash, the task too.
    assert_eq!(
        db.one(
            "SELECT (tool, calls, first_at = to_timestamp($$1790001002$$::bigint)) FROM run_tools"
        )
        .await
        .unwrap(),
        "(Bash,4,t)"
    );
}

#[tokio::test]
async fn messages_are_numbered_as_they_arrive_whoever_writes_them() {
    let db = migrated().await;
    let all = events(1, 3);
    let positions = "SELECT string_agg(coalesce(position::text, '-') || ' ' || message_type, ', ' ORDER BY position) FROM messages";
    for part in [&all[..5], &all[..8]] {
        db.ledger
            .store(TARGET, &batch(1, part), at(30))
            .await
            .unwrap();
    }
    let theirs = "INSERT INTO messages (id, session_id, role, message_type)
                  SELECT gen_random_uuid(), id, 'user', 'theirs' FROM sessions";
    sqlx::query(theirs).execute(&db.pool).await.unwrap();
    db.ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    assert_eq!(
        db.one(positions).await.unwrap(),
        "1 workflow_start, 2 assistant, 3 assistant, 4 theirs, 5 assistant"
    );
}

#[tokio::test]
async fn a_session_that_was_deleted_comes_back_with_its_next_words() {
    let db = migrated().await;
    let all = events(1, 3);
    db.ledger
        .store(TARGET, &batch(1, &all[..5]), at(30))
        .await
        .unwrap();
    sqlx::query("DELETE FROM sessions")
        .execute(&db.pool)
        .await
        .unwrap();
    let answer = db
        .ledger
        .store(TARGET, &batch(1, &all), at(30))
        .await
        .unwrap();
    assert_eq!(answer.acknowledged, all.len() as u64);
    assert_eq!(
        db.one("SELECT (r.session_id, s.message_count) FROM workflow_runs r JOIN sessions s ON s.id = r.session_id")
            .await
            .unwrap(),
        format!("({},2)", session_id())
    );
}

fn workspace(id: u128) -> WorkspaceRecord {
    WorkspaceRecord {
        id: Uuid::from_u128(id),
        namespace: "ns".to_owned(),
        name: format!("w{id}"),
        claim: None,
        created_at: at(0),
    }
}

#[tokio::test]
async fn a_workspace_is_cleaned_up_when_its_volume_is_gone_and_not_before() {
    let mut db = migrated().await;
    db.ledger = db.ledger.of_cluster("west".to_owned());
    db.ledger
        .keep_workspaces(&[workspace(98), workspace(99)])
        .await
        .unwrap();
    let mut claimed = workspace(99);
    claimed.claim = Some("workspace-w99".to_owned());
    db.ledger.keep_workspaces(&[claimed]).await.unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(1)))
        .await
        .unwrap();
    let cleaned = "SELECT (workspace_cleaned_up, w.claim, w.removed_at IS NOT NULL)
                   FROM workflow_runs JOIN workspaces w ON w.id::text = workspace_id";
    assert_eq!(db.one(cleaned).await.unwrap(), "(f,workspace-w99,f)");
    assert_eq!(db.ledger.workspaces_there().await.unwrap().len(), 2);
    db.ledger
        .workspaces_gone(&[Uuid::from_u128(99)], at(100))
        .await
        .unwrap();
    assert_eq!(db.one(cleaned).await.unwrap(), "(t,workspace-w99,t)");
    assert_eq!(
        db.ledger.workspaces_there().await.unwrap(),
        [Uuid::from_u128(98)]
    );
    // Nobody says otherwise later, and a row that comes late is told.
    let mut late = ended(Phase::Completed, 1, usage(1));
    late.run_id = Uuid::from_u128(8);
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(1)))
        .await
        .unwrap();
    db.ledger.mirror(&late).await.unwrap();
    db.ledger.mirror(&late).await.unwrap();
    let all = "SELECT bool_and(workspace_cleaned_up) FROM workflow_runs";
    assert_eq!(db.one(all).await.unwrap(), "true");
    let back = "UPDATE workflow_runs SET workspace_cleaned_up = false";
    assert!(sqlx::query(back).execute(&db.pool).await.is_err());
}

#[tokio::test]
async fn a_volume_of_a_pod_is_asked_after_from_the_runs_end_until_it_is_gone() {
    let mut db = migrated().await;
    db.ledger = db.ledger.of_cluster("west".to_owned());
    let temporary = |mut record: runledger::ledger::records::RunRecord| {
        record.workspace_persistent = false;
        record.workspace_id = None;
        record
    };
    db.ledger.mirror(&temporary(running(1))).await.unwrap();
    assert_eq!(
        db.ledger.ended_on_volumes_of_pods().await.unwrap(),
        [] as [Uuid; 0]
    );
    db.ledger
        .mirror(&temporary(ended(Phase::Failed, 1, usage(1))))
        .await
        .unwrap();
    assert_eq!(
        db.ledger.ended_on_volumes_of_pods().await.unwrap(),
        [run_id()]
    );
    db.ledger.cleaned_up(&[run_id()]).await.unwrap();
    assert_eq!(
        db.ledger.ended_on_volumes_of_pods().await.unwrap(),
        [] as [Uuid; 0]
    );
    assert_eq!(
        db.one("SELECT (temp_workspace, workspace_cleaned_up) FROM workflow_runs")
            .await
            .unwrap(),
        "(t,t)"
    );
}

#[tokio::test]
async fn what_is_in_the_audit_is_not_rewritten() {
    let db = migrated().await;
    let insert = "INSERT INTO audit (actor, action, allowed, namespace, session_id)
                  VALUES ('ann', 'write', true, 'ns', gen_random_uuid())";
    sqlx::query(insert).execute(&db.pool).await.unwrap();
    let error = sqlx::query("UPDATE audit SET actor = 'bob'")
        .execute(&db.pool)
        .await
        .unwrap_err();
    assert_eq!(
        error.as_database_error().unwrap().code().as_deref(),
        Some("RL001")
    );
}
