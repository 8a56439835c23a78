//! Makes columns of an earlier `workflow_runs` wider: session and user from text to uuid, counts to
//! bigint, cost to numeric(20,6).
//!
//! `ALTER COLUMN … TYPE` would rewrite the table while nobody can read it, and a copy under another
//! name would lose what hangs on the table (grants, foreign keys of others, triggers) and show readers
//! half of it. So each column gets a shadow of the new type, which a trigger keeps up to date while
//! older rows are converted in batches; then, in one transaction of milliseconds, the shadows take the
//! columns' names. Readers see the old columns until then, and the new ones after, whole. What can't be
//! converted (a session's id that is no UUID, or of no session) is kept in `metadata.legacy`. What hangs on
//! the old columns is looked at first: see `hanging`.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;

use super::Error;
use super::hand::Hand;
use super::hanging::Hanging;
use super::online;
use super::shape::{Fit, Table, fit};

const TABLE: &str = "workflow_runs";

/// What Postgres reads as a uuid, in the spellings that are in use.
const UUID: &str = "^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$";

struct Change {
    column: String,
    to: String,
}

impl Change {
    fn shadow(&self) -> String {
        format!("runledger_{}", self.column)
    }

    /// The new value of row `NEW`.
    fn value(&self) -> String {
        match self.to.as_str() {
            "uuid" => format!(
                "CASE WHEN NEW.{0} ~* '{UUID}' THEN NEW.{0}::uuid END",
                self.column
            ),
            // What is no number is not known.
            to if to.starts_with("numeric") => {
                format!("nullif(NEW.{}, 'NaN')::{to}", self.column)
            }
            to => format!("NEW.{}::{to}", self.column),
        }
    }
}

/// Does what is left of it.
pub(super) async fn run(
    hand: &mut Hand<'_>,
    tables: &BTreeMap<String, Table>,
) -> Result<(), Error> {
    let Some(runs) = tables.get(TABLE) else {
        return Ok(());
    };
    let changes = changes(runs);
    if changes.is_empty() {
        return Ok(());
    }
    let types: Vec<(String, String)> = changes
        .iter()
        .map(|c| (c.column.clone(), c.to.clone()))
        .collect();
    let hanging = Hanging::find(hand, &types).await?;
    name_what_is_no_uuid(hand, &changes).await?;
    let names: Vec<&str> = changes.iter().map(|c| c.column.as_str()).collect();
    let shadows: Vec<String> = changes
        .iter()
        .map(|c| format!("ADD COLUMN IF NOT EXISTS {} {}", c.shadow(), c.to))
        .collect();
    hand.act(
        &format!("add wider columns to {TABLE} for {}", names.join(", ")),
        &format!(
            "ALTER TABLE {TABLE} ADD COLUMN IF NOT EXISTS runledger_retyped boolean,\n{}",
            shadows.join(",\n")
        ),
    )
    .await?;
    hand.act(
        "let every row that is written fill them",
        &trigger(&changes, tables),
    )
    .await?;
    hand.batches(
        "fill them in the other rows",
        TABLE,
        "UPDATE workflow_runs t SET runledger_retyped = true FROM batch\n\
         WHERE t.id = batch.id AND t.runledger_retyped IS NOT TRUE",
    )
    .await?;
    for index in &hanging.indexes {
        online::index(hand, TABLE, &index.shadow, &index.build()).await?;
    }
    let swap = swap(hand, &changes, &hanging).await?;
    hand.act("let the wider columns take the names of the others", &swap)
        .await
}

fn changes(runs: &Table) -> Vec<Change> {
    runs.columns
        .iter()
        .filter_map(|(column, found)| {
            let to = found.wanted.clone()?;
            (fit(TABLE, column, &found.kind, &to) == Fit::Narrow).then(|| Change {
                column: column.clone(),
                to,
            })
        })
        .collect()
}

/// Texts that are kept elsewhere, and that nobody can ask for or write as before.
async fn name_what_is_no_uuid(hand: &mut Hand<'_>, changes: &[Change]) -> Result<(), Error> {
    for change in changes.iter().filter(|change| change.to == "uuid") {
        let column = &change.column;
        // Not checked at build time: the column is a uuid there.
        let (count, example): (i64, Option<String>) = sqlx::query_as(AssertSqlSafe(format!(
            "SELECT count(*), min({column}::text) FROM {TABLE} WHERE {column} !~* '{UUID}'"
        )))
        .fetch_one(&mut *hand.connection)
        .await
        .map_err(Error::Database)?;
        if let Some(example) = example {
            hand.say(&format!(
                "note: {column} of {count} rows of {TABLE} is no UUID ({example:?} is one): such a text is kept in \
                 metadata.legacy, and from then on refused (22P02) where somebody writes it or asks for it"
            ))?;
        }
    }
    Ok(())
}

/// SECURITY DEFINER, since writers may have no right to read sessions and users. Its name comes last,
/// so that it can put back the time of the last update, which triggers of before set.
fn trigger(changes: &[Change], tables: &BTreeMap<String, Table>) -> String {
    let mut body = String::new();
    for change in changes {
        let shadow = change.shadow();
        body.push_str(&format!("    NEW.{shadow} := {};\n", change.value()));
        let keeper = match change.column.as_str() {
            "session_id" => "sessions",
            "user_id" => "users",
            _ => continue,
        };
        let known = if tables.contains_key(keeper) {
            format!("EXISTS (SELECT FROM {keeper} k WHERE k.id = NEW.{shadow})")
        } else {
            "false".to_owned()
        };
        body.push_str(&format!(
            "    IF NEW.{column} IS NOT NULL AND (NEW.{shadow} IS NULL OR NOT {known}) THEN\n\
             \u{20}       NEW.{shadow} := NULL;\n\
             \u{20}       kept := kept || jsonb_build_object('{column}', NEW.{column});\n\
             \u{20}   END IF;\n",
            column = change.column,
        ));
    }
    let has = |column: &str| {
        tables
            .get(TABLE)
            .is_some_and(|t| t.columns.contains_key(column))
    };
    if has("metadata") {
        body.push_str(
            "    IF kept <> '{}' AND jsonb_typeof(coalesce(NEW.metadata, '{}')) = 'object' THEN\n\
             \u{20}       NEW.metadata := coalesce(NEW.metadata, '{}')\n\
             \u{20}           || jsonb_build_object('legacy', coalesce(NEW.metadata -> 'legacy', '{}') || kept);\n\
             \u{20}   END IF;\n",
        );
    }
    if has("updated_at") {
        body.push_str(
            "    IF TG_OP = 'UPDATE' AND current_setting('runledger.backfill', true) = 'on' THEN\n\
             \u{20}       NEW.updated_at := OLD.updated_at;\n\
             \u{20}   END IF;\n",
        );
    }
    format!(
        "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);\n\
         CREATE OR REPLACE FUNCTION runledger_retype() RETURNS trigger\n\
         LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $retype$\n\
         DECLARE\n    kept jsonb := '{{}}';\n\
         BEGIN\n{body}    NEW.runledger_retyped := true;\n    RETURN NEW;\nEND $retype$;\n\
         REVOKE EXECUTE ON FUNCTION runledger_retype() FROM PUBLIC;\n\
         CREATE OR REPLACE TRIGGER zz_runledger_retype BEFORE INSERT OR UPDATE ON {TABLE}\n\
         FOR EACH ROW EXECUTE FUNCTION runledger_retype();"
    )
}

/// Changes the catalog only: no row is read or written under its lock.
async fn swap(hand: &mut Hand<'_>, changes: &[Change], hanging: &Hanging) -> Result<String, Error> {
    let mut sql = "DROP TRIGGER zz_runledger_retype ON workflow_runs;\n\
                   DROP FUNCTION runledger_retype();\n\
                   ALTER TABLE workflow_runs DROP COLUMN runledger_retyped;\n"
        .to_owned();
    for change in changes {
        let (column, shadow) = (&change.column, change.shadow());
        sql.push_str(&format!(
            "ALTER TABLE {TABLE} DROP COLUMN {column};\n\
             ALTER TABLE {TABLE} RENAME COLUMN {shadow} TO {column};\n"
        ));
        if change.to == "bigint" {
            sql.push_str(&format!(
                "ALTER TABLE {TABLE} ALTER COLUMN {column} SET DEFAULT 0;\n"
            ));
        }
        for grant in grants(hand, column).await? {
            sql.push_str(&grant);
        }
    }
    sql.push_str(&hanging.again());
    Ok(sql)
}

/// Rights that were given on the column alone.
async fn grants(hand: &mut Hand<'_>, column: &str) -> Result<Vec<String>, Error> {
    sqlx::query_scalar!(
        r#"SELECT format(E'GRANT %s (%I) ON workflow_runs TO %s;\n', x.privilege_type, a.attname,
                         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END) AS "grant!"
           FROM pg_attribute a, aclexplode(a.attacl) x
           WHERE a.attrelid = to_regclass('workflow_runs') AND a.attname = $1"#,
        column,
    )
    .fetch_all(&mut *hand.connection)
    .await
    .map_err(Error::Database)
}
