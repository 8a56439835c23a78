//! Whether tables that are there already are those that Runledger can join: looks at them, touches
//! nothing, and says in one sentence each what stands in the way.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use super::Error;
use super::statements::{Column, Made};

/// Tables that databases of the earlier system have.
pub(super) const SHARED: [&str; 5] = ["users", "agents", "sessions", "messages", "workflow_runs"];

/// A table as it is.
#[derive(Debug)]
pub(super) struct Table {
    kind: String,
    owner: String,
    ours: bool,
    /// `id` alone is unique.
    keyed: bool,
    pub(super) columns: BTreeMap<String, Found>,
}

/// A column as it is.
#[derive(Debug)]
pub(super) struct Found {
    /// With its modifier: `numeric(10,6)`.
    pub(super) kind: String,
    /// The type that is wanted, in the same words; nothing where no migration wants the column.
    pub(super) wanted: Option<String>,
    pub(super) not_null: bool,
}

/// Those of the shared tables that are there.
pub(super) async fn look(
    connection: &mut PgConnection,
    wanted: &[Column],
) -> Result<BTreeMap<String, Table>, Error> {
    let shared: Vec<String> = SHARED.map(str::to_owned).into();
    let rows = sqlx::query!(
        r#"SELECT c.relname::text AS "name!", c.relkind::text AS "kind!",
                  pg_get_userbyid(c.relowner)::text AS "owner!",
                  pg_has_role(c.relowner, 'USAGE') AS "ours!",
                  EXISTS (SELECT FROM pg_index i JOIN pg_attribute a
                          ON a.attrelid = c.oid AND a.attname = 'id' AND i.indkey::text = a.attnum::text
                          WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL) AS "keyed!"
           FROM pg_class c
           WHERE c.relname = ANY($1) AND c.relnamespace = current_schema()::regnamespace"#,
        &shared,
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(Error::Database)?;
    let mut tables = BTreeMap::new();
    for row in rows {
        let table = Table {
            kind: row.kind,
            owner: row.owner,
            ours: row.ours,
            keyed: row.keyed,
            columns: columns(connection, &row.name, wanted).await?,
        };
        tables.insert(row.name, table);
    }
    Ok(tables)
}

async fn columns(
    connection: &mut PgConnection,
    table: &str,
    wanted: &[Column],
) -> Result<BTreeMap<String, Found>, Error> {
    let wanted: Vec<&Column> = wanted.iter().filter(|c| c.table == table).collect();
    let names: Vec<String> = wanted.iter().map(|c| c.name.clone()).collect();
    let kinds: Vec<String> = wanted.iter().map(|c| c.kind.clone()).collect();
    let rows = sqlx::query!(
        r#"SELECT a.attname::text AS "name!", format_type(a.atttypid, a.atttypmod) AS "kind!",
                  a.attnotnull AS "not_null!",
                  -- A type's own word for itself, its modifier kept: varchar(50) is character varying(50).
                  format_type(to_regtype(w.kind), NULL) || coalesce(substring(replace(w.kind, ' ', '') FROM '\(.*\)'), '')
                      AS wanted
           FROM pg_attribute a
           LEFT JOIN unnest($2::text[], $3::text[]) AS w (name, kind) ON w.name = a.attname
           WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped"#,
        table,
        &names,
        &kinds,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Database)?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let found = Found {
                kind: row.kind,
                wanted: row.wanted,
                not_null: row.not_null,
            };
            (row.name, found)
        })
        .collect())
}

/// How a column that is there meets the one that is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fit {
    /// It will do.
    Good,
    /// It is narrower, and made wider by migrate.
    Narrow,
    /// What should be a uuid, time or JSON is text.
    Text,
    /// It is something else.
    Wrong,
}

/// How types meet. Only `workflow_runs` is changed in place: the others have their types in every
/// installation but those that hold everything as text.
pub(super) fn fit(table: &str, column: &str, found: &str, wanted: &str) -> Fit {
    let base = |kind: &str| kind.split('(').next().unwrap_or(kind).trim().to_owned();
    let (is, should) = (base(found), base(wanted));
    let text = |kind: &str| matches!(kind, "text" | "character varying" | "character");
    let whole = |kind: &str| matches!(kind, "smallint" | "integer");
    let runs = table == "workflow_runs";
    if is == should {
        return if runs && should == "numeric" && found != wanted {
            Fit::Narrow
        } else {
            Fit::Good
        };
    }
    match should.as_str() {
        other if text(other) && text(&is) => Fit::Good,
        // A key of this type holds every value of the narrower one.
        "integer" if column == "agent_id" || column == "id" => match is.as_str() {
            "bigint" => Fit::Good,
            other if text(other) => Fit::Text,
            _ => Fit::Wrong,
        },
        "bigint" if runs && whole(&is) => Fit::Narrow,
        "uuid" if runs && text(&is) && matches!(column, "session_id" | "user_id") => Fit::Narrow,
        "uuid" | "timestamp with time zone" | "jsonb" if text(&is) => Fit::Text,
        _ => Fit::Wrong,
    }
}

/// What has a name already that is to be given to something new, in words.
pub(super) async fn taken(
    connection: &mut PgConnection,
    made: &[Made],
) -> Result<Vec<String>, Error> {
    let (mut relations, mut tables, mut functions) = (Vec::new(), Vec::new(), Vec::new());
    for made in made {
        match made {
            Made::Table(name) => {
                relations.push(name.clone());
                tables.push(None);
            }
            Made::Index { name, table } => {
                relations.push(name.clone());
                tables.push(Some(table.clone()));
            }
            Made::Function(name) => functions.push(name.clone()),
        }
    }
    sqlx::query_scalar!(
        r#"SELECT format('%s %s is there already', what, name) AS "taken!"
           FROM (SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'S' THEN 'sequence'
                             WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type' WHEN 'i' THEN 'index'
                             WHEN 'I' THEN 'index' ELSE 'table' END AS what,
                        c.relname::text AS name
                 FROM unnest($1::text[], $2::text[]) AS made (name, of)
                 JOIN pg_class c ON c.relname = made.name AND c.relnamespace = current_schema()::regnamespace
                 LEFT JOIN pg_index i ON i.indexrelid = c.oid
                 WHERE i.indrelid IS NULL OR i.indrelid IS DISTINCT FROM to_regclass(made.of)
                 UNION
                 -- A table brings a type of its name.
                 SELECT 'type', t.typname::text FROM pg_type t
                 WHERE t.typname = ANY ($1) AND t.typrelid = 0 AND t.typnamespace = current_schema()::regnamespace
                 UNION
                 SELECT 'function', p.proname::text FROM pg_proc p
                 WHERE p.proname = ANY ($3) AND p.pronamespace = current_schema()::regnamespace) taken
           ORDER BY name"#,
        &relations,
        &tables as &[Option<String>],
        &functions,
    )
    .fetch_all(connection)
    .await
    .map_err(Error::Database)
}

/// Refuses tables that can't be joined, with all that is wrong with them and whose names are `taken`.
pub(super) fn check(
    tables: &BTreeMap<String, Table>,
    wanted: &[Column],
    taken: Vec<String>,
) -> Result<(), Error> {
    let mut wrong = taken;
    let mut text = Vec::new();
    for (name, table) in tables {
        if table.kind != "r" {
            wrong.push(format!("{name} is not an ordinary table"));
            continue;
        }
        if !table.ours {
            return Err(Error::NoRights(format!(
                "table {name} belongs to {owner}, and only its owner can add columns to it: run migrate as \
                 {owner}, or as a user that was given its role (GRANT {owner} TO …)",
                owner = table.owner,
            )));
        }
        for (column, found) in &table.columns {
            let Some(kind) = &found.wanted else { continue };
            match fit(name, column, &found.kind, kind) {
                Fit::Good | Fit::Narrow => {}
                Fit::Text => text.push(format!("{name}.{column}")),
                Fit::Wrong => wrong.push(format!(
                    "{name}.{column} is {}, and should be {kind}",
                    found.kind
                )),
            }
        }
        for column in wanted
            .iter()
            .filter(|c| c.table == *name && !c.is_addable())
        {
            if !table.columns.contains_key(&column.name) {
                wrong.push(format!("{name} has no column {}", column.name));
            }
        }
        match table.columns.get("id") {
            None => wrong.push(format!("{name} has no column id")),
            Some(id) if id.kind == "uuid" || name == "agents" => {
                if !table.keyed {
                    wrong.push(format!("{name}.id is not a primary key"));
                }
            }
            Some(id) if id.kind == "text" || id.kind.starts_with("character") => {
                text.push(format!("{name}.id"));
            }
            Some(id) => wrong.push(format!("{name}.id is {}, and should be uuid", id.kind)),
        }
    }
    if !wrong.is_empty() {
        return Err(Error::Shape(wrong.join("; ")));
    }
    if !text.is_empty() {
        return Err(Error::Text(text.join(", ")));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_runs_are_made_wider_and_text_is_told_from_nonsense() {
        let runs = |column, is, should| fit("workflow_runs", column, is, should);
        assert_eq!(runs("input_tokens", "integer", "bigint"), Fit::Narrow);
        assert_eq!(
            runs("session_id", "character varying(255)", "uuid"),
            Fit::Narrow
        );
        assert_eq!(
            runs("cost_estimate", "numeric(10,6)", "numeric(20,6)"),
            Fit::Narrow
        );
        assert_eq!(runs("status", "text", "character varying(50)"), Fit::Good);
        assert_eq!(runs("id", "text", "uuid"), Fit::Text);
        assert_eq!(fit("sessions", "user_id", "text", "uuid"), Fit::Text);
        assert_eq!(fit("sessions", "metadata", "text", "jsonb"), Fit::Text);
        assert_eq!(fit("sessions", "metadata", "json", "jsonb"), Fit::Wrong);
        assert_eq!(
            fit(
                "messages",
                "created_at",
                "timestamp without time zone",
                "timestamp with time zone"
            ),
            Fit::Wrong
        );
    }
}
