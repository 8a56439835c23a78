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
    /// JSON that must be an object.
    Object,
    /// A text of at most 255 characters.
    Name,
    /// A count that may be beyond an int.
    Big,
    /// US dollars.
    Cost,
    /// How a run stands.
    Status,
    /// An agent's number, which is another one here.
    Agent,
}

impl Kind {
    /// Its name in the database.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Self::Uuid => "uuid",
            Self::Text | Self::Name | Self::Status => "text",
            Self::Count | Self::Agent => "int",
            Self::Big => "bigint",
            Self::Cost => "numeric",
            Self::Flag => "boolean",
            Self::Time => "timestamptz",
            Self::Json | Self::Object => "jsonb",
        }
    }
}

/// A table that is copied.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// Columns that refer to a table.
    pub(super) refers: &'static [(&'static str, &'static str)],
    /// Columns that are NOT NULL here, with no default that says as much: NULLs become empty.
    pub(super) required: &'static [&'static str],
    /// Where what has no place is kept, and under which key.
    pub(super) keeps: (&'static str, &'static str),
    /// What tells that a row is there already.
    pub(super) key: &'static str,
    pub(super) order: &'static str,
}

use Kind::{Agent, Big, Cost, Count, Flag, Json, Name, Object, Status, Text, Time, Uuid as Id};

/// In the order in which they refer to each other.
pub(super) const TABLES: [Table; 5] = [
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
        required: &[],
        keeps: ("user_data", "lost"),
        key: "id",
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
        required: &["type", "model"],
        keeps: ("config", "lost"),
        key: "name",
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
        required: &[],
        keeps: ("metadata", "lost"),
        key: "id",
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
            ("usage", Object),
            ("created_at", Time),
            ("updated_at", Time),
        ],
        refers: &[("session_id", "sessions"), ("user_id", "users")],
        required: &["role"],
        keeps: ("raw_payload", "lost"),
        key: "id",
        // They are numbered in the order in which they come.
        order: "created_at, id",
    },
    Table {
        name: "workflow_runs",
        columns: &[
            ("id", Id),
            ("run_id", Text),
            ("workflow_name", Name),
            ("agent_type", Name),
            ("ai_model", Name),
            ("task_input", Text),
            ("session_id", Id),
            ("session_name", Name),
            ("git_repo", Text),
            ("git_branch", Name),
            ("initial_commit_hash", Name),
            ("final_commit_hash", Name),
            ("git_diff_added_lines", Big),
            ("git_diff_removed_lines", Big),
            ("git_diff_files_changed", Big),
            ("git_diff_stats", Object),
            ("status", Status),
            ("result", Text),
            ("error_message", Text),
            ("created_at", Time),
            ("completed_at", Time),
            ("duration_seconds", Count),
            ("workspace_id", Name),
            ("workspace_path", Text),
            ("workspace_persistent", Flag),
            ("workspace_cleaned_up", Flag),
            ("temp_workspace", Flag),
            ("cost_estimate", Cost),
            ("input_tokens", Big),
            ("output_tokens", Big),
            ("total_tokens", Big),
            ("user_id", Id),
            ("metadata", Json),
            ("updated_at", Time),
        ],
        refers: &[("session_id", "sessions"), ("user_id", "users")],
        required: &["workflow_name", "task_input"],
        // As where the table is joined in place.
        keeps: ("metadata", "legacy"),
        key: "id",
        order: "id",
    },
];

/// What the report calls its rows.
pub(super) fn rows_of(table: &str) -> &'static str {
    match table {
        "users" => "users (copied)",
        "agents" => "agents (copied)",
        "sessions" => "sessions (copied)",
        "messages" => "messages (copied)",
        _ => "workflow_runs (copied)",
    }
}

/// Whether the column's values have a place, or are brought over by other means.
pub(super) fn is_known(table: &Table, column: &str) -> bool {
    let beside = match table.name {
        "agents" => column == "id",
        "sessions" => BRANCHES.contains(&column),
        _ => false,
    };
    beside || table.columns.iter().any(|(known, _)| *known == column)
}

/// Columns of sessions that refer to rows which come later.
pub(super) const BRANCHES: [&str; 2] = ["parent_session_id", "branch_point_message_id"];

/// One statement for a batch: rows that are there stay as they are; a reference to nothing, and what
/// could not be read, goes to `lost` in the column that keeps such things. A row whose key is new and
/// that is another's all the same (by its email, its name, its run_id) is refused.
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
        .map(|(name, _)| match *name {
            name if name == table.keeps.0 => keep(&format!("x.{name}"), table.keeps.1, &lost),
            "created_at" => "coalesce(x.created_at, x.updated_at, now())".to_owned(),
            "updated_at" => "coalesce(x.updated_at, x.created_at, now())".to_owned(),
            "usage" => "coalesce(x.usage, '{}')".to_owned(),
            // Not there before sessions had branches.
            "is_main_branch" => "coalesce(x.is_main_branch, true)".to_owned(),
            "workflow_name" => "coalesce(x.workflow_name, 'unknown')".to_owned(),
            "task_input" => "coalesce(x.task_input, runledger_no_task())".to_owned(),
            name if table.required.contains(&name) => format!("coalesce(x.{name}, '')"),
            name => match refers(name) {
                Some((_, of)) => format!("(SELECT o.id FROM {of} o WHERE o.id = x.{name})"),
                None => format!("x.{name}"),
            },
        })
        .collect();
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM jsonb_to_recordset($1) AS x ({}, lost jsonb) ON CONFLICT ({}) DO NOTHING",
        table.name,
        names.join(", "),
        values.join(", "),
        kinds.join(", "),
        table.key,
    )
}

/// `json` with what was lost under `key` in it; what is no object goes below one.
pub(super) fn keep(json: &str, key: &str, lost: &str) -> String {
    format!(
        "CASE WHEN {lost} = '{{}}' THEN {json}
              WHEN jsonb_typeof(coalesce({json}, '{{}}')) <> 'object'
              THEN jsonb_build_object('{key}', {lost}, 'value', {json})
              WHEN jsonb_typeof({json} -> '{key}') = 'object'
              THEN {json} || jsonb_build_object('{key}', ({json} -> '{key}') || {lost})
              ELSE coalesce({json}, '{{}}') || jsonb_build_object('{key}', {lost}) END"
    )
}
