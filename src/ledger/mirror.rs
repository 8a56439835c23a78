//! CR → ledger: the row of a run, as the controller knows it. Rows of runs that come at about the same
//! time are written in one statement; what is known to be written already is left out of it.

mod row;
mod writer;

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::figures::Figures;
use super::known::Known;
use super::records::RunRecord;
use super::{Error, Ledger};
pub(super) use row::Row;
pub(super) use writer::Writer;

/// From how many on runs that are on their way have a statement of their own beside one of whole rows.
const WORTH_A_STATEMENT: usize = 8;

impl Ledger {
    /// Writes what the controller knows of a run. Twice, late or out of order it changes nothing
    /// that is already further on. To be called within a tokio runtime.
    pub async fn mirror(&self, record: &RunRecord) -> Result<(), Error> {
        let row = Arc::new(Row::of(record)?);
        if self.lanes.join(Arc::clone(&row), || self.writer()).await {
            return Ok(());
        }
        // Beside the lanes nobody knows which of two came last, so nothing of it is remembered.
        let run = row.id;
        self.known.forget(run);
        let rows = [row];
        let written = Self::tries(|| async {
            let mut connection = self.pool.acquire().await?;
            write(&mut connection, self.cluster.as_deref(), &rows).await
        })
        .await;
        self.known.forget(run);
        written
    }
}

/// Writes only how far the runs are, where all else was written before and is still there, and the others
/// whole. A run's end is always written whole, so that its row is right in the end whatever befell it.
async fn write_what_is_new(
    connection: &mut PgConnection,
    cluster: Option<&str>,
    known: &Known,
    rows: Vec<Arc<Row>>,
) -> Result<(), Error> {
    let (again, mut whole): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .partition(|row| row.is_on_its_way() && known.has(row.id, &row.rest));
    // A statement more costs as much as some rows.
    if whole.is_empty() || again.len() >= WORTH_A_STATEMENT {
        let there = write_again(connection, &again).await?;
        whole.extend(again.into_iter().filter(|row| !there.contains(&row.id)));
    } else {
        whole.extend(again);
    }
    if whole.is_empty() {
        return Ok(());
    }
    whole.sort_unstable_by_key(|row| row.id);
    for row in &whole {
        known.forget(row.id);
    }
    write(connection, cluster, &whole).await?;
    for row in whole.iter().filter(|row| row.completed_at.is_none()) {
        known.remember(row.id, &row.rest);
    }
    Ok(())
}

/// Writes how far these runs are, in the order of their ids, and answers which of them are there.
async fn write_again(
    connection: &mut PgConnection,
    rows: &[Arc<Row>],
) -> Result<HashSet<Uuid>, Error> {
    let there = sqlx::query_file_scalar!(
        "src/ledger/mirror_again.sql",
        &column(rows, |r| r.id),
        &column(rows, |r| r.status) as &[&str],
        &column(rows, |r| r.reason.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.attempt),
        column(rows, |r| r.started_at.map(ToSqlx::to_sqlx)) as _,
    )
    .fetch_all(connection)
    .await?;
    Ok(there.into_iter().collect())
}

/// Writes runs, each of them once, in the order of their ids.
async fn write(
    connection: &mut PgConnection,
    cluster: Option<&str>,
    rows: &[Arc<Row>],
) -> Result<(), Error> {
    let attempts: Vec<(Uuid, i32, Figures)> = rows
        .iter()
        .flat_map(|row| row.attempts.iter().map(|(n, f)| (row.id, *n, *f)))
        .collect();
    let labels: Vec<(Uuid, &str, &str)> = rows
        .iter()
        .flat_map(|row| row.rest.labels.iter().map(|(k, v)| (row.id, &**k, &**v)))
        .collect();
    let figure = |of: fn(&Figures) -> i64| column(&attempts, |(_, _, f)| of(f));
    let time = |of: fn(&Row) -> Option<Timestamp>| column(rows, |r| of(r).map(ToSqlx::to_sqlx));
    sqlx::query_file!(
        "src/ledger/mirror.sql",
        &column(rows, |r| r.id),
        &column(rows, |r| r.rest.session_id),
        &column(rows, |r| &*r.rest.namespace) as &[&str],
        &column(rows, |r| &*r.rest.name) as &[&str],
        &column(rows, |r| &*r.rest.session_name) as &[&str],
        column(rows, |r| r.rest.created_at.to_sqlx()) as _,
        &column(rows, |r| &*r.rest.workflow_name) as &[&str],
        &column(rows, |r| r.rest.model.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.rest.task.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.rest.repository.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.rest.branch.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.status) as &[&str],
        &column(rows, |r| r.reason.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.attempt),
        &column(rows, |r| r.error_message.as_deref()) as &[Option<&str>],
        time(|r| r.started_at) as _,
        time(|r| r.completed_at) as _,
        &column(rows, |r| r.rest.workspace_id.map(|id| id.to_string())) as &[Option<String>],
        &column(rows, |r| r.rest.workspace_persistent),
        &column(rows, |r| r.rest.metadata.clone()),
        &column(rows, |r| r.rest.agent_image.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.rest.settings.clone()),
        &column(rows, |r| r.rest.workspace_path.as_deref()) as &[Option<&str>],
        &column(rows, |r| r.changes.clone()) as &[Option<Value>],
        &column(rows, |r| r.missing_from) as &[Option<i64>],
        &column(rows, |r| r
            .kill
            .as_ref()
            .map(|kill| row::request(kill.request))) as &[Option<&str>],
        time(|r| r.kill.as_ref().and_then(|kill| kill.at)) as _,
        &column(rows, |r| r.kill.as_ref().map(row::detail)) as &[Option<String>],
        cluster,
        &column(&labels, |(run, _, _)| *run),
        &column(&labels, |(_, key, _)| *key) as &[&str],
        &column(&labels, |(_, _, value)| *value) as &[&str],
        &column(&attempts, |(run, _, _)| *run),
        &column(&attempts, |(_, attempt, _)| *attempt),
        &figure(|f| f.input),
        &figure(|f| f.output),
        &figure(|f| f.cache_read),
        &figure(|f| f.cache_creation),
        &column(&attempts, |(_, _, f)| f.cost) as &[Option<i64>],
        &figure(|f| f.turns),
        &figure(|f| f.requests),
        &figure(|f| f.estimated),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// One column of the rows.
fn column<'a, R, T>(rows: &'a [R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(of).collect()
}
