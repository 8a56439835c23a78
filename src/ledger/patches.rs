//! Patches on their way into `run_patches` and out of it: which rows an event becomes, that the last
//! word of a run counts, and how they are found again.

use jiff_sqlx::ToSqlx;
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::effects::Stored;
use super::figures::{self, figure};
use super::rows::Attempt;
use super::{Error, Ledger, clean};
use crate::wire::patch::{MAX_PATCH_BYTES, Patch, PatchText};

/// Longest patch with the names at its head, in bytes; the table's constraint too.
const MAX_PART_BYTES: usize = 2 * MAX_PATCH_BYTES;
/// Longest sentence about why there is none, in characters.
const MAX_WHY: usize = 1000;

/// A row of `run_patches`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PatchRow {
    part: &'static str,
    base_commit: Option<String>,
    patch: Vec<u8>,
    files: i64,
    binary: i64,
    left_out: i64,
    size: Option<i64>,
    unknown: Option<String>,
}

/// The rows of a patch.
pub(super) fn rows(patch: &Patch) -> Result<[PatchRow; 2], &'static str> {
    Ok([
        row("committed", &patch.initial_commit, &patch.committed)?,
        row("uncommitted", &patch.final_commit, &patch.uncommitted)?,
    ])
}

fn row(
    part: &'static str,
    base: &Option<String>,
    text: &PatchText,
) -> Result<PatchRow, &'static str> {
    if text.text.len() > MAX_PART_BYTES {
        return Err("its patch's length");
    }
    let base = base.as_deref().filter(|commit| !commit.is_empty());
    if base.is_some_and(|commit| commit.len() > figures::MAX_COMMIT || commit.contains('\0')) {
        return Err("its commit");
    }
    let unknown = text.unknown.as_deref();
    Ok(PatchRow {
        part,
        base_commit: base.map(str::to_owned),
        patch: text.text.clone(),
        files: figure("its files", text.files)?,
        binary: figure("its binary files", text.binary)?,
        left_out: figure("its files that are left out", text.left_out)?,
        size: text
            .size
            .map(|size| figure("its patch's size", size))
            .transpose()?,
        unknown: unknown.map(|why| clean::marked(why, MAX_WHY)),
    })
}

/// Stores the last patch among the new events, unless a later one is there.
pub(super) async fn insert(
    tx: &mut Transaction<'_, Postgres>,
    stored: &Stored,
    attempt: Attempt,
    new: &[i64],
) -> Result<(), Error> {
    let Some((event, rows)) = stored.patch(new) else {
        return Ok(());
    };
    for row in rows {
        sqlx::query!(
            "INSERT INTO run_patches AS p (run_id, part, attempt, sequence, at, base_commit, patch, files,
                                           binary_files, left_out, size, unknown)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (run_id, part) DO UPDATE SET
                 attempt = EXCLUDED.attempt, sequence = EXCLUDED.sequence, at = EXCLUDED.at,
                 base_commit = EXCLUDED.base_commit, patch = EXCLUDED.patch, files = EXCLUDED.files,
                 binary_files = EXCLUDED.binary_files, left_out = EXCLUDED.left_out,
                 size = EXCLUDED.size, unknown = EXCLUDED.unknown
             WHERE (p.attempt, p.sequence) < (EXCLUDED.attempt, EXCLUDED.sequence)",
            attempt.run,
            row.part,
            attempt.attempt,
            event.sequence,
            event.at.to_sqlx() as _,
            row.base_commit,
            row.patch,
            row.files,
            row.binary,
            row.left_out,
            row.size,
            row.unknown,
        )
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

impl Ledger {
    /// What a run changed, as patches; nothing where none were kept (it had no repository, has not
    /// ended, or they were pruned).
    pub async fn run_patch(&self, id: Uuid) -> Result<Option<Patch>, Error> {
        Self::tries(|| async {
            let rows = sqlx::query!(
                "SELECT part, base_commit, patch, files, binary_files, left_out, size, unknown
                 FROM run_patches WHERE run_id = $1",
                id
            )
            .fetch_all(&self.readers)
            .await?;
            let count = |n: i64| n.unsigned_abs();
            let mut patch = None;
            for row in rows {
                let patch = patch.get_or_insert_with(Patch::default);
                let (base, text) = match row.part.as_str() {
                    "committed" => (&mut patch.initial_commit, &mut patch.committed),
                    _ => (&mut patch.final_commit, &mut patch.uncommitted),
                };
                *base = row.base_commit;
                *text = PatchText {
                    text: row.patch,
                    files: count(row.files),
                    binary: count(row.binary_files),
                    left_out: count(row.left_out),
                    size: row.size.map(count),
                    unknown: row.unknown,
                };
            }
            Ok(patch)
        })
        .await
    }

    /// The run of that name that was created last; rows of others have no namespace.
    pub async fn run_named(&self, namespace: &str, name: &str) -> Result<Option<Uuid>, Error> {
        Self::tries(|| async {
            let found = sqlx::query_scalar!(
                "SELECT id FROM workflow_runs WHERE namespace = $1 AND name = $2
                 ORDER BY created_at DESC, id DESC LIMIT 1",
                namespace,
                name
            );
            Ok(found.fetch_optional(&self.readers).await?)
        })
        .await
    }
}
