//! The tables that are copied from another database: their columns, what those refer to, and the
//! statement that writes a batch. Pure.

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Uuid,
    Text,
    Count,
    Flag,
    Time,
    Json,
    /// An agent's number, which is another one here.
    Agent,
}

impl Kind {
    /// Its name in the database.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Text => "text",
            Self::Count | Self::Agent => "int",
            Self::Flag => "boolean",
            Self::Time => "timestamptz",
            Self::Json => "jsonb",
        }
    }
}

/// A table that is copied.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// Columns that refer to a table.
    pub(super) refers: &'static [(&'static str, &'static str)],
    /// Where what has no place is kept.
    pub(super) keeps: &'static str,
    pub(super) order: &'static str,
}

use Kind::{Agent, Count, Flag, Json, Text, Time, Uuid as Id};

/// In the order in which they refer to each other.
pub(super) const TABLES: [Table; 4] = [
    Table {
        name: "users",
        columns: &[
            ("id", Id),
            ("email", Text),
            ("phone_number", Text),
            ("user_data", Json),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[],
        keeps: "user_data",
        order: "id",
    },
    Table {
        name: "agents",
        columns: &[
            ("name", Text),
            ("type", Text),
            ("model", Text),
            ("description", Text),
            ("version", Text),
            ("config", Json),
            ("active", Flag),
            ("run_id", Count),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[],
        keeps: "config",
        order: "id",
    },
    Table {
        name: "sessions",
        columns: &[
            ("id", Id),
            ("user_id", Id),
            ("agent_id", Agent),
            ("agent_name", Text),
            ("name", Text),
            ("platform", Text),
            ("metadata", Json),
            ("created_at", Time),
            ("updated_at", Time),
            ("run_finished_at", Time),
            ("message_count", Count),
            ("branch_type", Text),
            ("is_main_branch", Flag),
        ],
        refers: &[("user_id", "users")],
        keeps: "metadata",
        order: "id",
    },
    Table {
        name: "messages",
        columns: &[
            ("id", Id),
            ("session_id", Id),
            ("user_id", Id),
            ("agent_id", Agent),
            ("role", Text),
            ("text_content", Text),
            ("media_url", Text),
            ("mime_type", Text),
            ("message_type", Text),
            ("raw_payload", Json),
            ("tool_calls", Json),
            ("tool_outputs", Json),
            ("context", Json),
            ("system_prompt", Text),
            ("user_feedback", Text),
            ("flagged", Text),
            ("channel_payload", Json),
            ("usage", Json),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[("session_id", "sessions"), ("user_id", "users")],
        keeps: "raw_payload",
        // They are numbered in the order in which they come.
        order: "created_at, id",
    },
];

/// Columns that the report says nothing of: they are brought over by other means, or are made here.
const KNOWN: [&str; 3] = ["id", "parent_session_id", "branch_point_message_id"];

/// What the report calls its rows.
pub(super) fn rows_of(table: &str) -> &'static str {
    match table {
        "users" => "users (copied)",
        "agents" => "agents (copied)",
        "sessions" => "sessions (copied)",
        _ => "messages (copied)",
    }
}

/// Whether the ledger has a place for the column's values.
pub(super) fn is_known(table: &Table, column: &str) -> bool {
    KNOWN.contains(&column) || table.columns.iter().any(|(known, _)| *known == column)
}

/// One statement for a batch: rows that are there stay as they are; a reference to nothing, and what
/// could not be read, goes to `lost` in the column that keeps such things.
pub(super) fn insert(table: &Table) -> String {
    let refers = |column: &str| table.refers.iter().find(|(of, _)| *of == column);
    let names: Vec<&str> = table.columns.iter().map(|(name, _)| *name).collect();
    let kinds: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| format!("{name} {}", kind.sql()))
        .collect();
    let missing: Vec<String> = table
        .refers
        .iter()
        .map(|(column, of)| {
            format!("'{column}', CASE WHEN NOT EXISTS (SELECT FROM {of} o WHERE o.id = x.{column}) THEN x.{column} END")
        })
        .collect();
    let lost = format!(
        "(x.lost || jsonb_strip_nulls(jsonb_build_object({})))",
        missing.join(", ")
    );
    let values: Vec<String> = table
        .columns
        .iter()
        .map(|(name, kind)| match (*name, kind) {
            (name, _) if name == table.keeps => format!(
                "CASE WHEN {lost} = '{{}}' THEN x.{name}
                      WHEN jsonb_typeof(coalesce(x.{name}, '{{}}')) = 'object'
                      THEN coalesce(x.{name}, '{{}}') || jsonb_build_object('lost', {lost})
                      ELSE jsonb_build_object('lost', {lost}, 'value', x.{name}) END"
            ),
            ("usage", _) => {
                "CASE jsonb_typeof(x.usage) WHEN 'object' THEN x.usage ELSE '{}' END".to_owned()
            }
            ("created_at", _) => "coalesce(x.created_at, x.updated_at, now())".to_owned(),
            ("updated_at", _) => "coalesce(x.updated_at, x.created_at, now())".to_owned(),
            ("role" | "type" | "model", _) => format!("coalesce(x.{name}, '')"),
            (name, _) => match refers(name) {
                Some((_, of)) => format!("(SELECT o.id FROM {of} o WHERE o.id = x.{name})"),
                None => format!("x.{name}"),
            },
        })
        .collect();
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM jsonb_to_recordset($1) AS x ({}, lost jsonb) ON CONFLICT DO NOTHING",
        table.name,
        names.join(", "),
        values.join(", "),
        kinds.join(", "),
    )
}
