-- Runs that are on their way, of which all else was written before: what changes until the end, by the
-- same rules as in `mirror.sql`. Answers which of them are there. One that isn't, or has ended, or that
-- the events made anew after it was lost, or whose session is gone, is left to that.
UPDATE workflow_runs r SET
    status = CASE WHEN runledger_status_rank(g.status) > runledger_status_rank(r.status)
                  THEN g.status ELSE r.status END,
    reason = CASE WHEN runledger_status_rank(g.status) >= runledger_status_rank(r.status)
                   AND (g.attempt >= r.attempt OR r.reason IS NULL)
                  THEN g.reason ELSE r.reason END,
    error_message = NULL,
    attempt = greatest(r.attempt, g.attempt),
    started_at = coalesce(r.started_at, g.started_at),
    duration_seconds = NULL
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::timestamptz[])
     AS g (id, status, reason, attempt, started_at)
-- In a CASE, which no index knows: the rows are to be found by their keys alone, also by a plan that was
-- made when there were few.
WHERE r.id = g.id
  AND CASE WHEN r.completed_at IS NULL AND r.session_id IS NOT NULL AND r.workflow_name <> 'unknown'
           THEN runledger_status_rank(r.status) < 2 END
RETURNING r.id
