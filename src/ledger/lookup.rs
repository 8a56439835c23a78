//! What the server asks of the ledger before it lets a pod hand something in.

use uuid::Uuid;

use super::{Error, Ledger};

impl Ledger {
    /// Whether the run has ended and worked on the same volume as the other: whose pod may then hand
    /// in what the run had left there.
    pub async fn ended_on_the_workspace_of(
        &self,
        namespace: &str,
        run: Uuid,
        other: Uuid,
    ) -> Result<bool, Error> {
        Self::tries(|| async {
            let row = sqlx::query_scalar!(
                "SELECT 1 AS one FROM workflow_runs r
                 JOIN workflow_runs o ON o.id = $3 AND o.namespace = $1 AND o.workspace_id = r.workspace_id
                 WHERE r.id = $2 AND r.namespace = $1 AND r.workspace_id IS NOT NULL
                   AND r.status IN ('completed', 'failed', 'killed')",
                namespace,
                run,
                other,
            )
            .fetch_optional(&self.pool)
            .await?;
            Ok(row.is_some())
        })
        .await
    }
}
