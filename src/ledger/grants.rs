//! Who may write what: rights for roles of the controller, of the server, of prune and of readers, which the
//! owner of the tables gives. What one part never writes, its role can't. A run's figures are summed by
//! a trigger with its owner's rights, so that neither role needs any on those columns.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Error};

/// Roles that are to get rights.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Roles {
    /// Give this role what the controller needs: runs, their lifecycle, labels and workspaces.
    #[arg(long, value_name = "ROLE")]
    pub controller_role: Option<String>,
    /// Give this role what the server needs: sessions, messages, events and usage.
    #[arg(long, value_name = "ROLE")]
    pub server_role: Option<String>,
    /// Give this role what `runledger prune` needs: to delete what is old, and nothing else.
    #[arg(long, value_name = "ROLE")]
    pub prune_role: Option<String>,
    /// Let this role read everything.
    #[arg(long, value_name = "ROLE")]
    pub reader_role: Option<String>,
}

const READER: &[&str] = &[
    "USAGE ON SCHEMA %1$I",
    "SELECT ON ALL TABLES IN SCHEMA %1$I",
];

/// The columns are those that `mirror.sql` and `workspaces` write.
const CONTROLLER: &[&str] = &[
    "INSERT ON %1$I.sessions",
    "INSERT (id, run_id, namespace, name, workflow_name, agent_type, ai_model, task_input, session_id,
             session_name, git_repo, git_branch, status, reason, attempt, error_message, created_at,
             started_at, completed_at, duration_seconds, workspace_id, workspace_persistent,
             temp_workspace, metadata, cluster, agent_image, settings, workspace_path),
     UPDATE (namespace, name, workflow_name, created_at, task_input, ai_model, session_id, session_name,
             git_repo, git_branch, status, reason, error_message, attempt, started_at, completed_at,
             duration_seconds, workspace_id, workspace_persistent, temp_workspace, metadata, cluster,
             agent_image, settings, workspace_path, workspace_cleaned_up) ON %1$I.workflow_runs",
    "INSERT, UPDATE ON %1$I.run_attempts",
    "INSERT, UPDATE, DELETE ON %1$I.run_labels",
    "INSERT, UPDATE ON %1$I.workspaces",
    "INSERT ON %1$I.audit",
];

/// A run's row only as far as events come before it; the rest is `store`, `rows` and `query`.
const SERVER: &[&str] = &[
    "INSERT, UPDATE ON %1$I.sessions",
    "INSERT, UPDATE ON %1$I.messages",
    "INSERT (id, run_id, namespace, name, workflow_name, agent_type, task_input, session_id,
             session_name, attempt, created_at),
     UPDATE (task_input, session_id, session_name) ON %1$I.workflow_runs",
    "INSERT, UPDATE ON %1$I.run_attempts",
    "INSERT ON %1$I.run_events",
    "INSERT, UPDATE ON %1$I.run_tools",
    "INSERT, UPDATE ON %1$I.run_model_usage",
    "INSERT, UPDATE ON %1$I.run_patches",
    "INSERT ON %1$I.audit",
    "EXECUTE ON FUNCTION %1$I.runledger_event_partition(date), %1$I.runledger_fold_rollups(int)",
];

/// Attempts, labels, usage and patches go with their run, by foreign keys.
const PRUNE: &[&str] = &[
    "DELETE ON %1$I.messages",
    "DELETE ON %1$I.run_patches",
    "DELETE ON %1$I.workflow_runs",
    "DELETE ON %1$I.sessions",
    "DELETE ON %1$I.audit",
    "UPDATE ON %1$I.run_rollup_horizon",
    "EXECUTE ON FUNCTION %1$I.runledger_drop_event_partition(date)",
];

impl Roles {
    /// Each role with the rights that it is to have.
    fn rights(&self) -> impl Iterator<Item = (&str, Vec<&'static str>)> {
        [
            (&self.controller_role, CONTROLLER),
            (&self.server_role, SERVER),
            (&self.prune_role, PRUNE),
            (&self.reader_role, &[]),
        ]
        .into_iter()
        .filter_map(|(role, own)| Some((role.as_deref()?, [READER, own].concat())))
    }

    /// Names of the roles.
    pub(super) fn names(&self) -> Vec<&str> {
        self.rights().map(|(role, _)| role).collect()
    }

    /// Gives the rights, all or none of them. Given twice they stay as they are.
    pub(super) async fn grant(&self, connection: &mut PgConnection) -> Result<(), Error> {
        let mut statements = Vec::new();
        for (role, rights) in self.rights() {
            for right in rights {
                let sql: String =
                    sqlx::query_scalar("SELECT format($1, current_schema(), $2::text)")
                        .bind(format!("GRANT {right} TO %2$I"))
                        .bind(role)
                        .fetch_one(&mut *connection)
                        .await?;
                statements.push(sql);
            }
        }
        if statements.is_empty() {
            return Ok(());
        }
        // One simple query is one transaction.
        sqlx::raw_sql(AssertSqlSafe(statements.join(";\n")))
            .execute(connection)
            .await?;
        Ok(())
    }
}
