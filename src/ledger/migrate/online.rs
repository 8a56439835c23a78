//! What is done beside the migrations' transactions, on tables that are there and in use: columns and
//! indexes before one, NULLs and constraints of older rows after all. Every step looks at the catalog
//! for what is left to do, so that it may be interrupted anywhere and begun again.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use super::Error;
use super::hand::Hand;
use super::shape::{self, SHARED};
use super::statements::{self, Column, Made, Online};

/// Before a migration's transaction, on tables that have rows: adds columns by themselves and builds
/// indexes CONCURRENTLY, so that its own statements find nothing to do.
pub(super) async fn prepare(
    hand: &mut Hand<'_>,
    script: &str,
    wanted: &[Column],
) -> Result<(), Error> {
    for step in statements::online(script) {
        let tables = shape::look(hand.connection, wanted).await?;
        match step {
            Online::Columns { table, sql } => {
                let Some(there) = tables.get(&table) else {
                    continue;
                };
                if !has_rows(hand, &table).await? {
                    continue;
                }
                let missing: Vec<String> = statements::columns(&format!("{sql};"))
                    .into_iter()
                    .map(|column| column.name)
                    .filter(|name| !there.columns.contains_key(name))
                    .collect();
                if !missing.is_empty() {
                    let what = format!("add to {table}: {}", missing.join(", "));
                    hand.act(&what, &sql).await?;
                }
            }
            Online::Index { table, name, sql } => {
                if tables.contains_key(&table) && has_rows(hand, &table).await? {
                    index(hand, &table, &name, &sql).await?;
                }
            }
        }
    }
    Ok(())
}

async fn has_rows(hand: &mut Hand<'_>, table: &str) -> Result<bool, Error> {
    sqlx::query_scalar(AssertSqlSafe(format!(
        "SELECT EXISTS (SELECT FROM {table})"
    )))
    .fetch_one(&mut *hand.connection)
    .await
    .map_err(Error::Database)
}

/// CONCURRENTLY lets everybody read and write meanwhile; what an interrupted build leaves is removed.
pub(super) async fn index(
    hand: &mut Hand<'_>,
    table: &str,
    name: &str,
    sql: &str,
) -> Result<(), Error> {
    let valid = sqlx::query_scalar!(
        "SELECT i.indisvalid FROM pg_index i WHERE i.indexrelid = to_regclass($1)",
        name
    )
    .fetch_optional(&mut *hand.connection)
    .await
    .map_err(Error::Database)?;
    if valid == Some(true) {
        return Ok(());
    }
    if valid == Some(false) {
        let drop = format!("DROP INDEX CONCURRENTLY IF EXISTS {name}");
        hand.patiently(&format!("remove the half-built index {name}"), &drop)
            .await?;
    }
    hand.patiently(&format!("build index {name} on {table}"), sql)
        .await
}

/// After all migrations: what holds for new rows since then is made to hold for the older ones too.
pub(super) async fn settle(hand: &mut Hand<'_>, wanted: &[Column]) -> Result<(), Error> {
    forbid_nulls(hand, wanted).await?;
    validate(hand).await
}

/// Columns of a table that are to be NOT NULL.
struct Nullable {
    table: String,
    columns: Vec<Column>,
}

impl Nullable {
    fn join(&self, of: impl Fn(&Column) -> String, with: &str) -> String {
        let parts: Vec<String> = self.columns.iter().map(of).collect();
        parts.join(with)
    }

    async fn find(hand: &mut Hand<'_>, wanted: &[Column]) -> Result<Vec<Self>, Error> {
        let mut found: BTreeMap<String, Vec<Column>> = BTreeMap::new();
        let tables = shape::look(hand.connection, wanted).await?;
        for column in wanted.iter().filter(|c| c.not_null) {
            let there = tables
                .get(&column.table)
                .and_then(|t| t.columns.get(&column.name));
            if there.is_some_and(|there| !there.not_null) {
                let columns = found.entry(column.table.clone()).or_default();
                columns.push(column.clone());
            }
        }
        let list = found.into_iter();
        Ok(list
            .map(|(table, columns)| Self { table, columns })
            .collect())
    }

    /// Older NULLs get the default.
    async fn fill(&self, hand: &mut Hand<'_>) -> Result<(), Error> {
        let value = |c: &Column| match (c.name.as_str(), &c.default) {
            // Rather the time of the last change than now.
            ("created_at", _) => "t.updated_at, now()".to_owned(),
            (_, Some(default)) => default.clone(),
            // A text that every row should have had.
            (_, None) => "''".to_owned(),
        };
        let change = format!(
            "UPDATE {} t SET {} FROM batch WHERE t.id = batch.id AND NOT ({})",
            self.table,
            self.join(
                |c| format!("{0} = coalesce(t.{0}, {1})", c.name, value(c)),
                ", "
            ),
            self.join(|c| format!("t.{} IS NOT NULL", c.name), " AND "),
        );
        hand.batches(
            &format!("fill NULLs of {}", self.table),
            &self.table,
            &change,
        )
        .await
    }
}

/// Before the first migration: rows that lack something get it before there are rules that a row might
/// break, since a row that breaks one can't be written any more.
pub(super) async fn fill(hand: &mut Hand<'_>, wanted: &[Column]) -> Result<(), Error> {
    for nullable in Nullable::find(hand, wanted).await? {
        let table = &nullable.table;
        if !has_rows(hand, table).await? {
            continue;
        }
        hand.act(
            &format!("let {table}.updated_at stay while NULLs are filled"),
            &format!(
                "CREATE OR REPLACE FUNCTION runledger_keep_updated_at() RETURNS trigger LANGUAGE plpgsql AS\n\
                 'BEGIN NEW.updated_at := coalesce(OLD.updated_at, now()); RETURN NEW; END';\n\
                 CREATE OR REPLACE TRIGGER zz_runledger_keeps_updated_at BEFORE UPDATE ON {table} FOR EACH ROW\n\
                 WHEN (current_setting('runledger.backfill', true) = 'on') EXECUTE FUNCTION runledger_keep_updated_at()"
            ),
        )
        .await?;
        nullable.fill(hand).await?;
    }
    Ok(())
}

/// A constraint for new rows, NULLs that came since filled, the constraint validated while everybody
/// reads and writes, and only then NOT NULL, which takes the validated constraint's word for it and
/// reads no row.
async fn forbid_nulls(hand: &mut Hand<'_>, wanted: &[Column]) -> Result<(), Error> {
    for nullable in Nullable::find(hand, wanted).await? {
        let table = &nullable.table;
        let constraint = format!("{table}_filled");
        hand.act(
            &format!(
                "let no new row of {table} lack {}",
                nullable.join(|c| c.name.clone(), ", ")
            ),
            &format!(
                "ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {constraint},\n\
                 ADD CONSTRAINT {constraint} CHECK ({}) NOT VALID",
                nullable.join(|c| format!("{} IS NOT NULL", c.name), " AND ")
            ),
        )
        .await?;
        nullable.fill(hand).await?;
        hand.act(
            &format!("check all rows of {table} for {constraint}"),
            &format!("ALTER TABLE {table} VALIDATE CONSTRAINT {constraint}"),
        )
        .await?;
        hand.act(
            &format!("set NOT NULL on {table}"),
            &format!(
                "ALTER TABLE {table} {};\nALTER TABLE {table} DROP CONSTRAINT {constraint}",
                nullable.join(|c| format!("ALTER COLUMN {} SET NOT NULL", c.name), ", ")
            ),
        )
        .await?;
    }
    Ok(())
}

/// Constraints hold for new rows from when they are added. That the older rows keep them too is
/// checked here; where they don't, it is said, and nothing else is lost.
async fn validate(hand: &mut Hand<'_>) -> Result<(), Error> {
    let made = super::MIGRATIONS
        .iter()
        .flat_map(|migration| statements::made(migration.sql.as_str()))
        .filter_map(|made| match made {
            Made::Table(name) => Some(name),
            Made::Index { .. } | Made::Function(_) => None,
        });
    let tables: Vec<String> = SHARED.map(str::to_owned).into_iter().chain(made).collect();
    let open = sqlx::query!(
        r#"SELECT c.relname::text AS "table!", k.conname::text AS "name!", pg_get_constraintdef(k.oid) AS "says!"
           FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
           WHERE NOT k.convalidated AND c.relname = ANY($1)
             AND c.relnamespace = current_schema()::regnamespace
             AND k.conname <> c.relname || '_filled'
           ORDER BY 1, 2"#,
        &tables,
    )
    .fetch_all(&mut *hand.connection)
    .await
    .map_err(Error::Database)?;
    for k in open {
        let sql = format!("ALTER TABLE {} VALIDATE CONSTRAINT \"{}\"", k.table, k.name);
        if hand.dry {
            hand.act(
                &format!("check all rows of {} for {}", k.table, k.name),
                &sql,
            )
            .await?;
            continue;
        }
        match hand.quietly(&sql).await {
            Err(Error::Database(error)) if is_violation(&error) => hand.say(&format!(
                "note: rows of {} from before don't keep {} ({}): it holds for new rows; run migrate again \
                 once they are mended",
                k.table,
                k.name,
                k.says.trim_end_matches(" NOT VALID"),
            ))?,
            other => other?,
        }
    }
    Ok(())
}

/// Indexes of others that are the beginning of one of ours cost each write and find nothing more. They
/// are named and not dropped: somebody may know them by name.
pub(super) async fn name_covered_indexes(hand: &mut Hand<'_>) -> Result<(), Error> {
    let shared: Vec<String> = SHARED.map(str::to_owned).into();
    let ours: Vec<String> = super::MIGRATIONS
        .iter()
        .flat_map(|migration| statements::online(migration.sql.as_str()))
        .filter_map(|step| match step {
            Online::Index { name, .. } => Some(name),
            Online::Columns { .. } => None,
        })
        .collect();
    let covered = sqlx::query!(
        r#"SELECT DISTINCT ON (t.relname, o.relname)
                  t.relname::text AS "table!", o.relname::text AS "name!", c.relname::text AS "by!"
           FROM pg_class t
           JOIN pg_index i ON i.indrelid = t.oid
           JOIN pg_class o ON o.oid = i.indexrelid AND o.relname <> ALL ($2)
           JOIN pg_index w ON w.indrelid = t.oid AND w.indisvalid
           JOIN pg_class c ON c.oid = w.indexrelid AND c.relname = ANY ($2) AND c.relam = o.relam
           WHERE t.relname = ANY ($1) AND t.relnamespace = current_schema()::regnamespace
             AND NOT i.indisunique AND i.indexprs IS NULL AND w.indexprs IS NULL
             AND w.indpred::text IS NOT DISTINCT FROM i.indpred::text
             -- Each key column with its kind of order; a single one can be read either way.
             AND w.indkey::text || ' ' LIKE i.indkey::text || ' %'
             AND w.indclass::text || ' ' LIKE i.indclass::text || ' %'
             AND w.indcollation::text || ' ' LIKE i.indcollation::text || ' %'
             AND (i.indnatts = 1 OR w.indoption::text || ' ' LIKE i.indoption::text || ' %')
           ORDER BY t.relname, o.relname, c.relname"#,
        &shared,
        &ours,
    )
    .fetch_all(&mut *hand.connection)
    .await
    .map_err(Error::Database)?;
    for index in covered {
        hand.say(&format!(
            "note: index {} of {} finds nothing that {} doesn't find, and costs each write: \
             DROP INDEX CONCURRENTLY {} once nobody needs it by its name",
            index.name, index.table, index.by, index.name
        ))?;
    }
    Ok(())
}

fn is_violation(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("23514" | "23503"))
}
