//! Reads migrations as text: which statements they hold, which of those can be run ahead of the
//! migration's transaction without a long lock, and what columns they want. Pure.

/// Something that a migration wants of a table that may be there already.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Online {
    /// `ALTER TABLE … ADD COLUMN IF NOT EXISTS …`: the statement changes the catalog only.
    Columns { table: String, sql: String },
    /// `CREATE INDEX IF NOT EXISTS …`, as it is run `CONCURRENTLY`.
    Index {
        table: String,
        name: String,
        sql: String,
    },
}

/// A column as a migration wants it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) table: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) not_null: bool,
    /// An expression.
    pub(super) default: Option<String>,
}

impl Column {
    /// Whether it can be added to a table with rows.
    pub(super) fn is_addable(&self) -> bool {
        !self.not_null || self.default.is_some()
    }
}

/// The statements of a script, without comments.
pub(super) fn split(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    let mut rest = script;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            let length = rest.find('\n').unwrap_or(rest.len());
            rest = &rest[length..];
            continue;
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").map_or(rest.len(), |end| end + 2);
            rest = &rest[length..];
            statement.push(' ');
            continue;
        } else if next == '\'' || next == '"' {
            // A doubled quote ends one string and begins the next: no difference here.
            rest[1..].find(next).map_or(rest.len(), |end| end + 2)
        } else if let Some(tag) = dollar(rest) {
            rest[tag.len()..]
                .find(tag)
                .map_or(rest.len(), |end| end + 2 * tag.len())
        } else if next == ';' {
            rest = &rest[1..];
            push(&mut statements, &mut statement);
            continue;
        } else {
            next.len_utf8()
        };
        statement.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    push(&mut statements, &mut statement);
    statements
}

fn push(statements: &mut Vec<String>, statement: &mut String) {
    let whole = std::mem::take(statement);
    if !whole.trim().is_empty() {
        statements.push(whole.trim().to_owned());
    }
}

/// The tag of a dollar-quoted string that begins here.
fn dollar(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('$')?;
    let end = inner.find(|c: char| !(c.is_ascii_alphabetic() || c == '_'))?;
    inner[end..].starts_with('$').then(|| &text[..end + 2])
}

/// What the script wants of tables that may be there already.
pub(super) fn online(script: &str) -> Vec<Online> {
    split(script)
        .iter()
        .filter_map(|statement| columns_of(statement).or_else(|| index_of(statement)))
        .collect()
}

fn columns_of(statement: &str) -> Option<Online> {
    let words: Vec<&str> = statement.split_whitespace().take(8).collect();
    let [
        "ALTER",
        "TABLE",
        table,
        "ADD",
        "COLUMN",
        "IF",
        "NOT",
        "EXISTS",
    ] = words[..]
    else {
        return None;
    };
    Some(Online::Columns {
        table: table.to_owned(),
        sql: statement.to_owned(),
    })
}

fn index_of(statement: &str) -> Option<Online> {
    let (head, rest) = statement.split_once(" IF NOT EXISTS ")?;
    let head = head.trim_end();
    if head != "CREATE INDEX" && head != "CREATE UNIQUE INDEX" {
        return None;
    }
    let mut words = rest.split_whitespace();
    let (name, "ON", table) = (words.next()?, words.next()?, words.next()?) else {
        return None;
    };
    Some(Online::Index {
        table: table.split('(').next()?.to_owned(),
        name: name.to_owned(),
        sql: format!("{head} CONCURRENTLY IF NOT EXISTS {rest}"),
    })
}

/// A name that the script gives to something new, of which nobody else may have one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Made {
    /// A table or view.
    Table(String),
    /// An index, and of which table. It may be there already, if it is that table's.
    Index { name: String, table: String },
    /// A function, without its arguments.
    Function(String),
}

/// What the script makes.
pub(super) fn made(script: &str) -> Vec<Made> {
    let name = |text: &str| text.split('(').next().unwrap_or(text).to_owned();
    let made = |statement: &String| {
        let words: Vec<&str> = statement
            .split_whitespace()
            .filter(|word| !["UNIQUE", "IF", "NOT", "EXISTS"].contains(word))
            .take(5)
            .collect();
        match words[..] {
            // A table that may be there already is looked at column by column.
            ["CREATE", "TABLE" | "VIEW", table, ..] if !statement.contains(" IF NOT EXISTS ") => {
                Some(Made::Table(name(table)))
            }
            ["CREATE", "INDEX", index, "ON", table] => Some(Made::Index {
                name: index.to_owned(),
                table: name(table),
            }),
            ["CREATE", "FUNCTION", function, ..] => Some(Made::Function(name(function))),
            _ => None,
        }
    };
    split(script).iter().filter_map(made).collect()
}

/// The columns that the script adds where they are missing.
pub(super) fn columns(script: &str) -> Vec<Column> {
    let mut columns = Vec::new();
    for statement in split(script) {
        let Some(Online::Columns { table, sql }) = columns_of(&statement) else {
            continue;
        };
        let parts = sql.split("ADD COLUMN IF NOT EXISTS").skip(1);
        columns.extend(parts.filter_map(|part| column(&table, part)));
    }
    columns
}

fn column(table: &str, text: &str) -> Option<Column> {
    let text = text.trim().trim_end_matches(',').trim_end();
    let (name, rest) = text.split_once(char::is_whitespace)?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let ends = [
        "NOT",
        "NULL",
        "DEFAULT",
        "CHECK",
        "REFERENCES",
        "COLLATE",
        "ADD",
    ];
    let until = |from: usize| {
        let end = words[from..].iter().position(|word| ends.contains(word));
        words[from..end.map_or(words.len(), |end| from + end)]
            .join(" ")
            .trim_end_matches(',')
            .to_owned()
    };
    let default = words.iter().position(|word| *word == "DEFAULT");
    Some(Column {
        table: table.to_owned(),
        name: name.to_owned(),
        kind: until(0),
        not_null: words.windows(2).any(|pair| pair == ["NOT", "NULL"]),
        default: default.map(|at| until(at + 1)),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_in_strings_bodies_and_comments_end_no_statement() {
        let script = "-- a; b\nSELECT ';', \";\", 'it''s;'; /* ; */ DO $$ x; y $$;\n\
                      CREATE FUNCTION f() AS $body$ $$;$$ $body$;";
        assert_eq!(
            split(script),
            [
                "SELECT ';', \";\", 'it''s;'",
                "DO $$ x; y $$",
                "CREATE FUNCTION f() AS $body$ $$;$$ $body$"
            ]
        );
        assert_eq!(split("SELECT $1; -- done"), ["SELECT $1"]);
    }

    #[test]
    fn an_index_is_made_concurrently_and_only_where_it_may_be_missing() {
        let script = "CREATE UNIQUE INDEX IF NOT EXISTS a ON t (x, y)\n WHERE x > 0; CREATE INDEX b ON t (y);
                      CREATE INDEX IF NOT EXISTS c ON u(y);";
        let index = |table: &str, name: &str, sql: &str| Online::Index {
            table: table.to_owned(),
            name: name.to_owned(),
            sql: sql.to_owned(),
        };
        assert_eq!(
            online(script),
            [
                index(
                    "t",
                    "a",
                    "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a ON t (x, y)\n WHERE x > 0"
                ),
                index(
                    "u",
                    "c",
                    "CREATE INDEX CONCURRENTLY IF NOT EXISTS c ON u(y)"
                ),
            ]
        );
    }

    #[test]
    fn columns_are_read_with_type_and_nullability() {
        let script = "ALTER TABLE t\n ADD COLUMN IF NOT EXISTS a numeric(20, 6),\n
            ADD COLUMN IF NOT EXISTS b jsonb NOT NULL DEFAULT '{}', -- told\n
            ADD COLUMN IF NOT EXISTS c text NOT NULL; ALTER TABLE t ADD COLUMN d int;";
        let read: Vec<_> = columns(script)
            .into_iter()
            .map(|c| (c.name, c.kind, c.not_null, c.default))
            .collect();
        let wanted = |name: &str, kind: &str, not_null, default: Option<&str>| {
            (
                name.to_owned(),
                kind.to_owned(),
                not_null,
                default.map(str::to_owned),
            )
        };
        assert_eq!(
            read,
            [
                wanted("a", "numeric(20, 6)", false, None),
                wanted("b", "jsonb", true, Some("'{}'")),
                wanted("c", "text", true, None),
            ]
        );
    }

    #[test]
    fn what_is_made_anew_is_named() {
        let script = "CREATE TABLE a (x int); CREATE TABLE IF NOT EXISTS b (x int); CREATE VIEW c AS SELECT 1;
            CREATE UNIQUE INDEX IF NOT EXISTS d ON b (x); CREATE INDEX e ON a(x); CREATE OR REPLACE FUNCTION f() AS '';
            CREATE FUNCTION g(x int) RETURNS int AS $$ CREATE TABLE h () $$; CREATE TABLE i(x int)";
        let index = |name: &str, table: &str| Made::Index {
            name: name.to_owned(),
            table: table.to_owned(),
        };
        assert_eq!(
            made(script),
            [
                Made::Table("a".to_owned()),
                Made::Table("c".to_owned()),
                index("d", "b"),
                index("e", "a"),
                Made::Function("g".to_owned()),
                Made::Table("i".to_owned()),
            ]
        );
    }
}
