//! What hangs on columns of `workflow_runs` that are to get another type: what stands in the way is told
//! before anything is changed; indexes, checks, unique keys, defaults and comments are made again on the
//! new columns, under their names.

use sqlx::{AssertSqlSafe, FromRow, Row};

use super::Error;
use super::hand::Hand;

/// An index on a column that changes.
#[derive(Debug, FromRow)]
pub(super) struct Index {
    /// Its name as SQL has it.
    pub(super) name: String,
    /// Of the one on the new columns, until it takes this one's place.
    pub(super) shadow: String,
    unique: bool,
    /// Whether it is a constraint's.
    constraint: bool,
    /// From USING on: with the columns' names, and with those of the new ones.
    says: String,
    says_of_shadows: String,
}

/// All of it that can be made again.
#[derive(Debug)]
pub(super) struct Hanging {
    pub(super) indexes: Vec<Index>,
    /// `ALTER TABLE` actions, with what they are about.
    actions: Vec<(String, String)>,
    comments: Vec<String>,
}

impl Index {
    fn unique(&self) -> &'static str {
        if self.unique { "UNIQUE " } else { "" }
    }

    /// Builds it on the new columns.
    pub(super) fn build(&self) -> String {
        format!(
            "CREATE {}INDEX CONCURRENTLY IF NOT EXISTS {} ON workflow_runs{}",
            self.unique(),
            self.shadow,
            self.says_of_shadows
        )
    }
}

impl Hanging {
    /// Looks what hangs on the columns, which get these types. Changes nothing.
    pub(super) async fn find(
        hand: &mut Hand<'_>,
        changes: &[(String, String)],
    ) -> Result<Self, Error> {
        let columns: Vec<String> = changes.iter().map(|(column, _)| column.clone()).collect();
        let indexes: Vec<Index> = sqlx::query_as(INDEXES)
            .bind(&columns)
            .fetch_all(&mut *hand.connection)
            .await
            .map_err(Error::Database)?;
        let found = Self {
            indexes,
            actions: pairs(hand, ACTIONS, &columns).await?,
            comments: list(hand, COMMENTS, &columns).await?,
        };
        let mut obstacles = list(hand, IN_THE_WAY, &columns).await?;
        obstacles.extend(found.attempt(hand, changes).await?);
        if obstacles.is_empty() {
            Ok(found)
        } else {
            Err(Error::Hangs(obstacles.join(", ")))
        }
    }

    /// Tries on an empty table, which is then undone, whether all of it can be made on the new types.
    async fn attempt(
        &self,
        hand: &mut Hand<'_>,
        changes: &[(String, String)],
    ) -> Result<Vec<String>, Error> {
        let types: Vec<String> = changes
            .iter()
            .map(|(column, to)| format!("ALTER COLUMN {column} TYPE {to} USING NULL"))
            .collect();
        hand.raw(&format!(
            "BEGIN; CREATE TABLE runledger_try (LIKE workflow_runs); ALTER TABLE runledger_try {}",
            types.join(", ")
        ))
        .await?;
        let indexes = self.indexes.iter().map(|index| {
            let make = format!(
                "CREATE {}INDEX ON runledger_try{}",
                index.unique(),
                index.says
            );
            (format!("index {}", index.name), make)
        });
        let actions = self
            .actions
            .iter()
            .map(|(what, action)| (what.clone(), format!("ALTER TABLE runledger_try {action}")));
        let mut refused = Vec::new();
        for (what, make) in indexes.chain(actions) {
            hand.raw("SAVEPOINT try").await?;
            match hand.raw(&make).await {
                Err(Error::Database(sqlx::Error::Database(error))) => {
                    refused.push(format!("{what}: {}", error.message()));
                }
                other => other?,
            }
            hand.raw("ROLLBACK TO SAVEPOINT try").await?;
        }
        hand.raw("ROLLBACK").await?;
        Ok(refused)
    }

    /// Once the new columns have their names.
    pub(super) fn again(&self) -> String {
        let mut sql = String::new();
        for index in &self.indexes {
            let (name, shadow) = (&index.name, &index.shadow);
            sql.push_str(&format!("ALTER INDEX {shadow} RENAME TO {name};\n"));
            if index.constraint {
                sql.push_str(&format!(
                    "ALTER TABLE workflow_runs ADD CONSTRAINT {name} UNIQUE USING INDEX {name};\n"
                ));
            }
        }
        for (_, action) in &self.actions {
            sql.push_str(&format!("ALTER TABLE workflow_runs {action};\n"));
        }
        sql.push_str(&self.comments.concat());
        sql
    }
}

// Not checked at build time: they ask for what a new ledger doesn't have.
async fn list(
    hand: &mut Hand<'_>,
    sql: &'static str,
    columns: &[String],
) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(columns)
        .fetch_all(&mut *hand.connection)
        .await
        .map_err(Error::Database)
}

async fn pairs(
    hand: &mut Hand<'_>,
    sql: &'static str,
    columns: &[String],
) -> Result<Vec<(String, String)>, Error> {
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(columns)
        .fetch_all(&mut *hand.connection)
        .await
        .map_err(Error::Database)?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect::<Result<_, sqlx::Error>>()
        .map_err(Error::Database)
}

/// Valid indexes. A name of a column inside a string is none.
const INDEXES: &str = r#"
    SELECT n.oid::regclass::text AS name, 'runledger_' || n.oid AS shadow, i.indisunique AS unique,
           k.oid IS NOT NULL AS constraint, d.says,
           regexp_replace(d.says, '(?<![''"\w])(' || array_to_string($1, '|') || ')(?![''"\w])', 'runledger_\1', 'g')
               AS says_of_shadows
    FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid
    LEFT JOIN pg_constraint k ON k.conindid = n.oid AND k.conrelid = i.indrelid AND k.contype = 'u'
    CROSS JOIN LATERAL (SELECT substring(pg_get_indexdef(n.oid) FROM ' USING .*$') AS says) d
    WHERE i.indrelid = to_regclass('workflow_runs') AND i.indisvalid AND EXISTS (
        SELECT FROM pg_depend p JOIN pg_attribute a ON a.attrelid = p.refobjid AND a.attnum = p.refobjsubid
        WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = i.indrelid AND a.attname = ANY ($1)
          AND (p.classid = 'pg_class'::regclass AND p.objid = n.oid
               OR p.classid = 'pg_constraint'::regclass AND p.objid = k.oid))
    ORDER BY 1"#;

/// Checks, which hold for new rows at once and are validated with all others, and defaults.
const ACTIONS: &str = r"
    SELECT 'constraint ' || conname, format('ADD CONSTRAINT %I %s NOT VALID', conname,
           regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', ''))
    FROM pg_constraint k
    WHERE conrelid = to_regclass('workflow_runs') AND contype = 'c' AND EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = conrelid AND a.attnum = ANY (conkey) AND a.attname = ANY ($1))
    UNION ALL
    SELECT 'default of ' || a.attname, format('ALTER COLUMN %I SET DEFAULT %s', a.attname, pg_get_expr(f.adbin, f.adrelid))
    FROM pg_attrdef f JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum AND a.attgenerated = ''
    WHERE f.adrelid = to_regclass('workflow_runs') AND a.attname = ANY ($1)
    ORDER BY 1";

const COMMENTS: &str = r"
    SELECT format(E'COMMENT ON COLUMN workflow_runs.%I IS %L;\n', a.attname, col_description(a.attrelid, a.attnum))
    FROM pg_attribute a WHERE a.attrelid = to_regclass('workflow_runs') AND a.attname = ANY ($1)
      AND col_description(a.attrelid, a.attnum) IS NOT NULL ORDER BY 1";

/// Whatever else depends on one of the columns: views, policies, generated columns, triggers, functions,
/// foreign keys, publications and what Postgres may yet invent.
const IN_THE_WAY: &str = r"
    WITH changing AS (
        SELECT a.* FROM pg_attribute a WHERE a.attrelid = to_regclass('workflow_runs') AND a.attname = ANY ($1)
    )
    SELECT DISTINCT format('%s on %s', coalesce(r.ev_class::regclass::text,
                           pg_describe_object(d.classid, d.objid, d.objsubid)), c.attname)
    FROM changing c
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.attrelid AND d.refobjsubid = c.attnum
    LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_index i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid AND i.indrelid = c.attrelid
    LEFT JOIN pg_constraint k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid AND k.conrelid = c.attrelid
        AND (k.contype IN ('c', 'n') OR k.contype = 'u' AND NOT k.condeferrable)
    LEFT JOIN pg_attrdef f ON d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid AND f.adrelid = c.attrelid
        AND f.adnum = c.attnum
    WHERE i.indexrelid IS NULL AND k.oid IS NULL AND f.oid IS NULL
    UNION ALL
    SELECT format('what generates its values on %s', attname) FROM changing
    WHERE attgenerated <> '' OR attidentity <> ''
    ORDER BY 1";
