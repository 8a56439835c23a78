//! Each part's role can do what its part does, and nothing else.

use runledger::api::run::Phase;
use runledger::ledger::Ledger;
use runledger::ledger::migrate::{Args, migrate};
use runledger::ledger::prune::Table;
use runledger::ledger::query::{RunFilter, Subject, Word};
use runledger::ledger::records::{Kill, KillRequest, RunRecord, WorkspaceRecord};
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::database::migrated;
use crate::shapes::{TARGET, at, batch, ended, events, record, run_id, running, session_id, usage};

#[tokio::test]
async fn controller_and_server_work_under_roles_that_own_nothing_and_no_more() {
    let db = migrated().await;
    let database = db.url.rsplit_once('/').unwrap().1.to_owned();
    let name = |part: &str| format!("{part} of \"{database}\"");
    let parts = ["controller", "server", "prune", "reader"];
    for part in parts {
        let role = name(part).replace('"', "\"\"");
        sqlx::query(AssertSqlSafe(format!("CREATE ROLE \"{role}\" LOGIN")))
            .execute(&db.pool)
            .await
            .unwrap();
    }
    let mut args = Args {
        connection: runledger::ledger::connection::Connection::to(&db.url),
        ..Args::default()
    };
    args.roles.controller_role = Some(name("controller"));
    args.roles.server_role = Some(name("server"));
    args.roles.prune_role = Some(name("prune"));
    args.roles.reader_role = Some(name("reader"));
    for _ in 0..2 {
        let mut out = Vec::new();
        migrate(&args, &mut out).await.unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(
            out.contains(&format!("gave rights to {}", name("server"))),
            "{out}"
        );
    }
    let urls = parts.map(|part| {
        let mut url = url::Url::parse(&db.url).unwrap();
        url.set_username(&name(part)).unwrap();
        url.to_string()
    });
    let [controller, server, prune, reader] =
        urls.each_ref().map(|url| Ledger::connect(url).unwrap());
    let controller = controller.of_cluster("c".to_owned());

    // A stub by the server, the run by the controller, and all that follows.
    server
        .store(TARGET, &batch(1, &events(1, 2)[..4]), at(30))
        .await
        .unwrap();
    controller.mirror(&record()).await.unwrap();
    controller.mirror(&running(1)).await.unwrap();
    server
        .store(TARGET, &batch(1, &events(1, 2)), at(30))
        .await
        .unwrap();
    let word = Word {
        id: Uuid::from_u128(1),
        namespace: "ns".to_owned(),
        session_id: session_id(),
        run_id: None,
        actor: "ann".to_owned(),
        user_id: None,
        text: "Well done.".to_owned(),
    };
    server.say(&word).await.unwrap();
    let workspace = WorkspaceRecord {
        id: Uuid::from_u128(99),
        namespace: "ns".to_owned(),
        name: "w".to_owned(),
        claim: None,
        created_at: at(0),
    };
    controller.keep_workspaces(&[workspace]).await.unwrap();
    let kill = Kill {
        request: KillRequest::Deletion,
        at: None,
        manager: None,
    };
    controller
        .mirror(&RunRecord {
            kill: Some(kill),
            ..ended(Phase::Completed, 1, usage(2))
        })
        .await
        .unwrap();
    assert_eq!(controller.workspaces_there().await.unwrap().len(), 1);
    controller
        .workspaces_gone(&[Uuid::from_u128(99)], at(9))
        .await
        .unwrap();
    controller.ended_on_volumes_of_pods().await.unwrap();
    controller.cleaned_up(&[run_id()]).await.unwrap();
    server
        .ended_on_the_workspace_of("ns", run_id(), run_id())
        .await
        .unwrap();
    assert_eq!(
        server
            .audit_of(Subject::Session(session_id()), None, 9)
            .await
            .unwrap()
            .len(),
        2
    );
    assert_eq!(
        db.one(
            "SELECT (status, total_tokens, cost_source, workspace_cleaned_up) FROM workflow_runs"
        )
        .await
        .unwrap(),
        "(completed,240,sdk,t)"
    );
    let page = reader
        .runs(
            &RunFilter::default(),
            Default::default(),
            Default::default(),
            None,
            9,
        )
        .await
        .unwrap();
    assert_eq!(page.runs.len(), 1);

    // All of it is old one day.
    let later = "2027-12-01".parse().unwrap();
    for partition in prune.event_partitions(later).await.unwrap() {
        prune.drop_partition(&partition).await.unwrap();
    }
    let mut gone = Vec::new();
    for table in [
        Table::Messages,
        Table::Patches,
        Table::Runs,
        Table::Sessions,
        Table::Audit,
    ] {
        gone.push(prune.delete_old(table, later).await.unwrap());
    }
    assert_eq!(gone, [4, 2, 1, 1, 2]);
    let left = "SELECT concat_ws(' ', (SELECT count(*) FROM run_events), (SELECT count(*) FROM run_attempts),
        (SELECT sum(runs) FROM run_rollups_live WHERE NOT by_model))";
    assert_eq!(db.one(left).await.unwrap(), "0 0 1");

    let [controller, server, prune, reader] = urls.each_ref();
    for (url, forbidden) in [
        (
            controller,
            "UPDATE workflow_runs SET input_tokens = input_tokens",
        ),
        (controller, "UPDATE workflow_runs SET cost_estimate = 0"),
        (controller, "UPDATE messages SET text_content = ''"),
        (controller, "DELETE FROM audit"),
        (
            controller,
            "SELECT runledger_drop_event_partition('2026-01-01')",
        ),
        (
            server,
            "SELECT runledger_drop_event_partition('2026-01-01')",
        ),
        (prune, "UPDATE workflow_runs SET status = 'failed'"),
        (prune, "UPDATE audit SET actor = ''"),
        (prune, "DELETE FROM users"),
        (prune, "DELETE FROM run_rollups"),
        (prune, "DROP TABLE run_events"),
        (server, "UPDATE workflow_runs SET status = 'failed'"),
        (server, "UPDATE workflow_runs SET final_commit_hash = ''"),
        (server, "DELETE FROM workflow_runs"),
        (server, "UPDATE audit SET actor = ''"),
        (server, "DELETE FROM audit"),
        (server, "UPDATE model_prices SET usd_per_million = 0"),
        (
            reader,
            "INSERT INTO sessions (id) VALUES (gen_random_uuid())",
        ),
        (reader, "CREATE TABLE mine ()"),
    ] {
        let pool = PgPool::connect(url).await.unwrap();
        let error = sqlx::query(forbidden).execute(&pool).await.unwrap_err();
        let code = error
            .as_database_error()
            .and_then(|e| e.code().map(|c| c.into_owned()));
        assert_eq!(code.as_deref(), Some("42501"), "{forbidden}");
    }
}

#[tokio::test]
async fn a_role_that_is_not_there_is_named() {
    let db = migrated().await;
    let mut args = Args {
        connection: runledger::ledger::connection::Connection::to(&db.url),
        ..Args::default()
    };
    args.roles.server_role = Some("nobody".to_owned());
    let error = migrate(&args, &mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("given to nobody;"), "{error}");
}
