//! Volumes in the ledger: which Workspaces there are, and which runs' work is gone with its volume.
//! The controller says what it sees, again and again; nothing is guessed from a name.

use jiff::Timestamp;
use jiff_sqlx::ToSqlx;
use uuid::Uuid;

use super::records::WorkspaceRecord;
use super::{Error, Ledger};

/// Most runs that are asked about at once.
const PAGE: i64 = 1000;

impl Ledger {
    /// Writes these Workspaces of this cluster down.
    pub async fn keep_workspaces(&self, workspaces: &[WorkspaceRecord]) -> Result<(), Error> {
        let ids: Vec<Uuid> = workspaces.iter().map(|w| w.id).collect();
        let namespaces: Vec<String> = workspaces.iter().map(|w| w.namespace.clone()).collect();
        let names: Vec<String> = workspaces.iter().map(|w| w.name.clone()).collect();
        let claims: Vec<Option<String>> = workspaces.iter().map(|w| w.claim.clone()).collect();
        let created: Vec<jiff_sqlx::Timestamp> =
            workspaces.iter().map(|w| w.created_at.to_sqlx()).collect();
        Self::tries(|| async {
            sqlx::query!(
                "INSERT INTO workspaces AS w (id, cluster, namespace, name, claim, created_at)
                 SELECT u.id, $1, u.namespace, u.name, u.claim, u.created_at
                 FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[])
                      AS u (id, namespace, name, claim, created_at)
                 ON CONFLICT (id) DO UPDATE SET claim = EXCLUDED.claim WHERE w.claim IS NULL",
                self.cluster,
                &ids,
                &namespaces,
                &names,
                &claims as &[Option<String>],
                &created as _,
            )
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// This cluster's Workspaces that were there when last looked at.
    pub async fn workspaces_there(&self) -> Result<Vec<Uuid>, Error> {
        Self::tries(|| async {
            Ok(sqlx::query_scalar!(
                "SELECT id FROM workspaces WHERE cluster = $1 AND removed_at IS NULL",
                self.cluster
            )
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// These Workspaces and their volumes are gone, and with them what their runs left there.
    pub async fn workspaces_gone(&self, ids: &[Uuid], now: Timestamp) -> Result<(), Error> {
        let texts: Vec<String> = ids.iter().map(Uuid::to_string).collect();
        Self::tries(|| async {
            sqlx::query!(
                "WITH gone AS (
                     UPDATE workspaces SET removed_at = greatest($2, created_at)
                     WHERE id = ANY ($1) AND removed_at IS NULL
                 ), run AS (
                     SELECT id FROM workflow_runs
                     WHERE workspace_id = ANY ($3) AND NOT workspace_cleaned_up
                     -- In the order in which they are mirrored.
                     ORDER BY id FOR NO KEY UPDATE
                 )
                 UPDATE workflow_runs SET workspace_cleaned_up = true
                 WHERE id IN (SELECT id FROM run)",
                ids,
                now.to_sqlx() as _,
                &texts,
            )
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }

    /// Runs of this cluster that have ended, whose volume goes with their pod, and of which it isn't
    /// known to be gone.
    pub async fn ended_on_volumes_of_pods(&self) -> Result<Vec<Uuid>, Error> {
        Self::tries(|| async {
            Ok(sqlx::query_scalar!(
                "SELECT id FROM workflow_runs
                 WHERE cluster = $1 AND NOT workspace_persistent AND NOT workspace_cleaned_up
                   AND status IN ('completed', 'failed', 'killed')
                 LIMIT $2",
                self.cluster,
                PAGE
            )
            .fetch_all(&self.pool)
            .await?)
        })
        .await
    }

    /// The pods of these runs are gone, and their volumes with them.
    pub async fn cleaned_up(&self, runs: &[Uuid]) -> Result<(), Error> {
        Self::tries(|| async {
            sqlx::query!(
                "WITH run AS (
                     SELECT id FROM workflow_runs
                     WHERE id = ANY ($1) AND NOT workspace_persistent AND NOT workspace_cleaned_up
                     -- In the order in which they are mirrored.
                     ORDER BY id FOR NO KEY UPDATE
                 )
                 UPDATE workflow_runs SET workspace_cleaned_up = true WHERE id IN (SELECT id FROM run)",
                runs
            )
            .execute(&self.pool)
            .await?;
            Ok(())
        })
        .await
    }
}
