//! What guards the ledger holds for every writer, wherever his search_path leads, and lends nobody its
//! owner's rights.

use runledger::api::run::Phase;
use runledger::ledger::migrate::MIGRATIONS;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool};

use crate::database::{Database, migrated};
use crate::shapes::{TARGET, at, batch, ended, events, usage};

/// A writer of a schema of his own, who owns nothing else.
async fn stranger(db: &Database) -> PgConnection {
    let database = db.url.rsplit_once('/').unwrap().1;
    let role = format!("stranger_of_{database}");
    for statement in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}"),
        format!("CREATE SCHEMA evil AUTHORIZATION {role}"),
    ] {
        db.pool.execute(AssertSqlSafe(statement)).await.unwrap();
    }
    let url = db.url.replace("//runledger@", &format!("//{role}@"));
    PgConnection::connect(&url).await.unwrap()
}

async fn run_that_ended() -> Database {
    let db = migrated().await;
    db.ledger
        .store(TARGET, &batch(1, &events(1, 2)), at(30))
        .await
        .unwrap();
    db.ledger
        .mirror(&ended(Phase::Completed, 1, usage(2)))
        .await
        .unwrap();
    db
}

fn code(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

/// Writes to every table that has a trigger of ours.
const WRITES: &[&str] = &[
    "UPDATE public.workflow_runs SET reason = 'x', cost_estimate = 1",
    "UPDATE public.workflow_runs SET agent_image = 'x', namespace = namespace",
    "INSERT INTO public.workflow_runs (id, run_id, namespace, workflow_name, task_input, session_id, status, completed_at)
     SELECT gen_random_uuid(), 'another', 'ns', 'w', 't', id, 'failed', '2027-01-01' FROM public.sessions",
    "INSERT INTO public.workflow_runs (id, run_id, workflow_name, task_input, session_id)
     VALUES (gen_random_uuid(), 'theirs', 'w', 't', gen_random_uuid())",
    "UPDATE public.run_attempts SET turns = turns + 1",
    "UPDATE public.sessions SET platform = 'x'",
    "INSERT INTO public.messages (id, session_id, role) SELECT gen_random_uuid(), id, 'user' FROM public.sessions",
    "UPDATE public.messages SET flagged = 'x'",
    // In the owner's name, what goes with it and what points at it.
    "DELETE FROM public.sessions",
    "DELETE FROM public.workflow_runs",
];

#[tokio::test]
async fn who_names_tables_by_their_schema_needs_no_search_path() {
    let db = run_that_ended().await;
    let mut stranger = stranger(&db).await;
    stranger.execute("SET search_path = ''").await.unwrap();
    for write in WRITES {
        let done = stranger.execute(*write).await;
        done.unwrap_or_else(|error| panic!("{write}: {error}"));
    }
}

/// Functions and operators that are found before ours and Postgres' own: all are true, and tell on who
/// calls them.
const EVIL: &str = "
    CREATE FUNCTION evil.tell() RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'called as %', current_user USING ERRCODE = 'EVIL0'; END $$;
    CREATE FUNCTION evil.runledger_status_rank(varchar) RETURNS int LANGUAGE plpgsql AS
        $$ BEGIN PERFORM evil.tell(); RETURN 2; END $$;
    CREATE FUNCTION evil.runledger_no_task() RETURNS text LANGUAGE plpgsql AS
        $$ BEGIN PERFORM evil.tell(); RETURN ''; END $$;
    CREATE FUNCTION evil.runledger_sum_run(uuid) RETURNS void LANGUAGE plpgsql AS
        $$ BEGIN PERFORM evil.tell(); END $$;
    CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE plpgsql AS
        $$ BEGIN PERFORM evil.tell(); RETURN NULL; END $$;
    DO $do$
    DECLARE
        kind text;
        operator text;
    BEGIN
        FOREACH kind IN ARRAY ARRAY['bigint', 'int', 'numeric', 'uuid', 'text', 'timestamptz', 'date', 'jsonb'] LOOP
            EXECUTE format('CREATE FUNCTION evil.compare(%1$s, %1$s) RETURNS bool LANGUAGE plpgsql AS
                            $$ BEGIN PERFORM evil.tell(); RETURN true; END $$', kind);
            FOREACH operator IN ARRAY ARRAY['<', '<=', '<>', '=', '>'] LOOP
                EXECUTE format('CREATE OPERATOR evil.%1$s (FUNCTION = evil.compare, LEFTARG = %2$s, RIGHTARG = %2$s)',
                               operator, kind);
            END LOOP;
        END LOOP;
    END $do$;
    CREATE TEMPORARY TABLE run_rollup_deltas (LIKE public.run_rollup_deltas);
    CREATE FUNCTION evil.told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM evil.tell(); END $$;
    CREATE TRIGGER told BEFORE INSERT ON pg_temp.run_rollup_deltas FOR EACH ROW EXECUTE FUNCTION evil.told();
    CREATE TEMPORARY TABLE sessions (LIKE public.sessions);
    CREATE TEMPORARY TABLE audit (LIKE public.audit);";

#[tokio::test]
async fn no_function_operator_or_table_of_a_writer_comes_before_ours() {
    let db = run_that_ended().await;
    let mut stranger = stranger(&db).await;
    stranger.execute(sqlx::raw_sql(EVIL)).await.unwrap();
    stranger
        .execute("SET search_path = evil, pg_catalog, public")
        .await
        .unwrap();
    let told = stranger.execute("SELECT now()").await.unwrap_err();
    assert_eq!(code(&told).as_deref(), Some("EVIL0"), "they are found");
    for set in ["status = 'pending'", "turns = 0", "task_input = 'another'"] {
        let back = format!("UPDATE public.workflow_runs SET {set}");
        let error = stranger.execute(AssertSqlSafe(back)).await.unwrap_err();
        assert_eq!(code(&error).as_deref(), Some("RL001"), "{set}: {error}");
    }
    let counted = "SELECT sum(runs) FROM run_rollups_live WHERE NOT by_model";
    assert_eq!(db.one(counted).await.unwrap(), "1");
    for write in WRITES {
        let done = stranger.execute(*write).await;
        done.unwrap_or_else(|error| panic!("{write}: {error}"));
        if write.contains("'theirs'") {
            assert_eq!(db.one(counted).await.unwrap(), "3");
        }
    }
    assert_eq!(db.one(counted).await.unwrap(), "0");
    assert_eq!(db.one("SELECT count(*) FROM audit").await.unwrap(), "1");
}

#[tokio::test]
async fn every_function_that_lends_rights_or_hangs_on_a_table_is_bound_to_our_schema() {
    let db = migrated().await;
    let loose: Vec<String> = sqlx::query_scalar(
        "SELECT p.oid::regprocedure::text FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace
           AND (p.prosecdef OR p.oid IN (SELECT tgfoid FROM pg_trigger WHERE NOT tgisinternal))
           AND NOT coalesce('search_path=public, pg_temp' = ANY (p.proconfig), false)
           -- It names all that it calls in full, and is any writer's of the earlier tables.
           AND p.oid <> 'update_updated_at_column()'::regprocedure",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(loose, [""; 0]);
    let open: Vec<String> = sqlx::query_scalar(
        "SELECT p.oid::regprocedure::text FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
           AND has_function_privilege('public', p.oid, 'EXECUTE')",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!(open, [""; 0], "open to everybody");
}

#[tokio::test]
async fn nobody_has_our_triggers_write_for_him() {
    let db = run_that_ended().await;
    let mut stranger = stranger(&db).await;
    for (table, function) in [
        ("workflow_runs", "session_resumed"),
        ("workflow_runs", "session_finished"),
        ("workflow_runs", "complete_row_of_others"),
        ("workflow_runs", "roll_up"),
        ("run_attempts", "sum_attempts"),
        ("messages", "message_position"),
    ] {
        let hang = format!(
            "CREATE TEMPORARY TABLE IF NOT EXISTS mine_{table} (LIKE public.{table});
             CREATE TRIGGER mine AFTER INSERT ON mine_{table} FOR EACH ROW
             EXECUTE FUNCTION public.runledger_{function}()"
        );
        let hung = stranger.execute(sqlx::raw_sql(AssertSqlSafe(hang))).await;
        assert_eq!(
            code(&hung.unwrap_err()).as_deref(),
            Some("42501"),
            "{function}"
        );
    }
    let partition = "SELECT public.runledger_event_partition('2030-01-01')";
    let error = stranger.execute(partition).await.unwrap_err();
    assert_eq!(code(&error).as_deref(), Some("42501"));
}

#[tokio::test]
async fn who_writes_events_already_may_still_make_their_days_after_an_upgrade() {
    let url = crate::database::empty().await;
    let pool = PgPool::connect(&url).await.unwrap();
    let role = format!("events_of_{}", url.rsplit_once('/').unwrap().1);
    let grant = format!("CREATE ROLE {role}; GRANT INSERT ON run_events TO {role}");
    for migration in MIGRATIONS.iter() {
        if migration.version == 13 {
            pool.execute(sqlx::raw_sql(AssertSqlSafe(grant.clone())))
                .await
                .unwrap();
        }
        pool.execute(sqlx::raw_sql(migration.sql.clone()))
            .await
            .unwrap();
    }
    let may: bool = sqlx::query_scalar(
        "SELECT has_function_privilege($1, 'runledger_event_partition(date)', 'EXECUTE')
            AND has_function_privilege($1, 'runledger_fold_rollups(int)', 'EXECUTE')",
    )
    .bind(role)
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(may);
}
