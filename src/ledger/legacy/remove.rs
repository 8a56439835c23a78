//! `runledger migrate drop-legacy`: removes `workflow_processes` and the run facts in sessions'
//! metadata, once it is certain that the ledger holds each of them as it is now and that nothing in the
//! database uses them. What stands in the way is listed, and then nothing is removed at all.

use clap::Parser;
use sqlx::PgConnection;

use super::facts::KEYS;
use super::users;
use crate::ledger::migrate::Error;
use crate::ledger::migrate::hand::Hand;

/// Arguments of `runledger migrate drop-legacy`.
///
/// Removes the table workflow_processes, and from metadata of sessions of the earlier system the facts
/// of runs, in the ledger's own database. Every row must have been imported as it is now
/// (import-legacy), no run of the earlier system may still be running, and no view, function or foreign
/// key may use what goes. Otherwise it lists what stands in the way and removes nothing. --dry-run
/// looks, and removes nothing either way. There is no way back but a backup.
#[derive(Clone, Debug, Default, Parser)]
pub struct DropArgs {}

/// Rows that are named as examples, and users, all of which have to be seen to.
const EXAMPLES: u32 = 5;
const ALL: u32 = 1_000;

/// A process row whose run the ledger has, as the row is now. Imported ids have no blanks at their ends.
const PROCESS_IS_IN: &str = r"EXISTS (SELECT FROM workflow_runs r
     WHERE r.run_id IN (p.run_id, btrim(p.run_id, E' \t\n\r\f')) AND r.namespace IS NULL
     AND r.metadata #>> '{legacy,read,process}' = md5(to_jsonb(p)::text))";

/// A session's facts of a run that the ledger has, as they are now.
const SESSION_IS_IN: &str = r"EXISTS (SELECT FROM workflow_runs r
     WHERE r.run_id IN (s.metadata ->> 'run_id', btrim(s.metadata ->> 'run_id', E' \t\n\r\f'), 'session_' || s.id)
     AND r.namespace IS NULL
     AND r.metadata #> '{legacy,read}' ->> ('session:' || s.id) = md5(s.metadata::text))";

/// A session with facts of a run of the earlier system.
fn has_facts() -> String {
    format!(
        "s.namespace IS NULL AND s.metadata ->> 'agent_type' = 'claude-code' AND s.metadata ?| ARRAY[{}]",
        keys()
    )
}

fn keys() -> String {
    let quoted: Vec<String> = KEYS.iter().map(|key| format!("'{key}'")).collect();
    quoted.join(", ")
}

/// Looks, and if all is well removes.
pub(in crate::ledger) async fn run(hand: &mut Hand<'_>) -> Result<(), Error> {
    hand.raw("SET TimeZone = 'UTC'").await?;
    let processes: bool = ask(
        hand.connection,
        "SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('workflow_processes') AND relkind IN ('r', 'p'))",
    )
    .await?;
    let sessions: i64 = ask(
        hand.connection,
        &format!("SELECT count(*) FROM sessions s WHERE {}", has_facts()),
    )
    .await?;
    let mut obstacles = Vec::new();
    if processes {
        obstacles.extend(unaccounted_processes(hand).await?);
        obstacles.extend(found(hand, users::OF_PROCESSES, users::PROCESSES, ALL).await?);
    }
    obstacles.extend(unaccounted_sessions(hand).await?);
    obstacles.extend(found(hand, &users::of_facts(), users::FACTS, ALL).await?);
    obstacles.extend(still_running(hand).await?);
    if !obstacles.is_empty() {
        return Err(Error::InTheWay(obstacles.join("\n- ")));
    }
    if !processes && sessions == 0 {
        return hand.say("nothing to remove: there is no workflow_processes, and no session holds facts of a run");
    }
    if sessions > 0 {
        let change = format!(
            "UPDATE sessions s SET metadata = s.metadata - ARRAY[{}] FROM batch\n\
             WHERE s.id = batch.id AND {} AND {SESSION_IS_IN}",
            keys(),
            has_facts(),
        );
        hand.batches(
            &format!("take the facts of runs out of the metadata of {sessions} sessions"),
            "sessions",
            &change,
        )
        .await?;
    }
    if processes {
        // Looked at once more where nobody can add to it.
        hand.act(
            "drop table workflow_processes",
            &format!(
                "LOCK TABLE workflow_processes IN ACCESS EXCLUSIVE MODE;\n\
                 DO $drop$ BEGIN\n    IF EXISTS (SELECT FROM workflow_processes p WHERE NOT {PROCESS_IS_IN}) THEN\n\
                 \u{20}       RAISE EXCEPTION 'rows of workflow_processes were written meanwhile: run import-legacy again';\n\
                 \u{20}   END IF;\nEND $drop$;\nDROP TABLE workflow_processes"
            ),
        )
        .await?;
    }
    let left: i64 = ask(
        hand.connection,
        &format!("SELECT count(*) FROM sessions s WHERE {}", has_facts()),
    )
    .await?;
    if left > 0 && !hand.dry {
        return Err(Error::InTheWay(format!(
            "{left} sessions were written meanwhile: run import-legacy again"
        )));
    }
    Ok(())
}

// Not checked at build time: what these ask about is no part of the ledger's schema.
async fn ask<T>(connection: &mut PgConnection, sql: &str) -> Result<T, Error>
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned()))
        .fetch_one(connection)
        .await
        .map_err(Error::Database)
}

/// How many the query finds, and the first of them by name, as one obstacle.
async fn found(
    hand: &mut Hand<'_>,
    sql: &str,
    what: &str,
    most: u32,
) -> Result<Option<String>, Error> {
    let sql = format!(
        "WITH found AS ({sql}) SELECT nullif((SELECT count(*) FROM found), 0) || ' {what}: ' ||
         (SELECT string_agg(name, ', ') FROM (SELECT name FROM found ORDER BY 1 LIMIT {most}) e)"
    );
    ask(hand.connection, &sql).await
}

async fn unaccounted_processes(hand: &mut Hand<'_>) -> Result<Option<String>, Error> {
    found(
        hand,
        &format!(
            "SELECT p.run_id::text AS name FROM workflow_processes p WHERE NOT {PROCESS_IS_IN}"
        ),
        "rows of workflow_processes were not imported, or have changed since (run import-legacy)",
        EXAMPLES,
    )
    .await
}

async fn unaccounted_sessions(hand: &mut Hand<'_>) -> Result<Option<String>, Error> {
    found(
        hand,
        &format!(
            "SELECT s.id::text AS name FROM sessions s WHERE {} AND NOT {SESSION_IS_IN}",
            has_facts()
        ),
        "sessions hold facts of runs that were not imported, or have changed since (run import-legacy)",
        EXAMPLES,
    )
    .await
}

async fn still_running(hand: &mut Hand<'_>) -> Result<Option<String>, Error> {
    found(
        hand,
        "SELECT run_id::text AS name FROM workflow_runs
         WHERE namespace IS NULL AND status IN ('pending', 'running') AND metadata #> '{legacy,read}' IS NOT NULL",
        "runs of the earlier system were still running at the last import (run import-legacy again once they have ended)",
        EXAMPLES,
    )
    .await
}
