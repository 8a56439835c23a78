WITH session AS (
    INSERT INTO sessions (id, namespace, name, created_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING
), run AS (
    INSERT INTO workflow_runs AS r
        (id, run_id, namespace, name, workflow_name, agent_type, ai_model, task_input,
         session_id, session_name, git_repo, git_branch, status, reason, attempt, error_message,
         created_at, started_at, completed_at, duration_seconds,
         workspace_id, workspace_persistent, temp_workspace, metadata,
         cluster, agent_image, settings, workspace_path)
    VALUES
        ($5, $5::uuid::text, $2, $6, $7, 'claude', $8, coalesce($9, runledger_no_task()),
         $1, $3, $10, $11, $12, $13, $14, $15,
         $4, $16, $17,
         -- Not `greatest` alone, which makes 0 of what is not known.
         CASE WHEN $17::timestamptz < $16::timestamptz THEN 0
              ELSE floor(extract(epoch FROM $17::timestamptz - $16::timestamptz)) END::int,
         $18, $19, NOT $19::bool, $20,
         $32, $33, $34, $35)
    ON CONFLICT (id) DO UPDATE SET
        namespace = coalesce(r.namespace, EXCLUDED.namespace),
        name = coalesce(r.name, EXCLUDED.name),
        -- A stub that events made is completed; anything else keeps its origin.
        workflow_name = CASE r.workflow_name WHEN 'unknown' THEN EXCLUDED.workflow_name ELSE r.workflow_name END,
        created_at = CASE r.workflow_name WHEN 'unknown' THEN EXCLUDED.created_at ELSE r.created_at END,
        task_input = CASE r.task_input WHEN runledger_no_task() THEN EXCLUDED.task_input ELSE r.task_input END,
        ai_model = coalesce(
            (SELECT a.model FROM run_attempts a WHERE a.run_id = r.id AND a.model IS NOT NULL
             ORDER BY a.attempt DESC LIMIT 1),
            EXCLUDED.ai_model, r.ai_model),
        session_id = coalesce(r.session_id, EXCLUDED.session_id),
        session_name = coalesce(r.session_name, EXCLUDED.session_name),
        git_repo = coalesce(r.git_repo, EXCLUDED.git_repo),
        git_branch = coalesce(r.git_branch, EXCLUDED.git_branch),
        status = CASE WHEN runledger_status_rank(EXCLUDED.status) > runledger_status_rank(r.status)
                      THEN EXCLUDED.status ELSE r.status END,
        -- An end is told once; before it, the latest word counts.
        reason = CASE WHEN runledger_status_rank(r.status) < 2
                       AND runledger_status_rank(EXCLUDED.status) >= runledger_status_rank(r.status)
                       AND (EXCLUDED.attempt >= r.attempt OR r.reason IS NULL)
                      THEN EXCLUDED.reason ELSE r.reason END,
        error_message = CASE WHEN runledger_status_rank(r.status) < 2
                             THEN EXCLUDED.error_message ELSE r.error_message END,
        attempt = greatest(r.attempt, EXCLUDED.attempt),
        started_at = coalesce(r.started_at, EXCLUDED.started_at),
        completed_at = coalesce(r.completed_at, EXCLUDED.completed_at),
        duration_seconds = CASE
            WHEN coalesce(r.completed_at, EXCLUDED.completed_at) < coalesce(r.started_at, EXCLUDED.started_at) THEN 0
            ELSE floor(extract(epoch FROM
                coalesce(r.completed_at, EXCLUDED.completed_at) - coalesce(r.started_at, EXCLUDED.started_at)))
            END::int,
        workspace_id = coalesce(r.workspace_id, EXCLUDED.workspace_id),
        workspace_persistent = EXCLUDED.workspace_persistent,
        temp_workspace = EXCLUDED.temp_workspace,
        metadata = EXCLUDED.metadata,
        cluster = coalesce(r.cluster, EXCLUDED.cluster),
        agent_image = coalesce(EXCLUDED.agent_image, r.agent_image),
        settings = EXCLUDED.settings,
        workspace_path = coalesce(EXCLUDED.workspace_path, r.workspace_path),
        -- The volume may have gone before its last run's row came.
        workspace_cleaned_up = r.workspace_cleaned_up OR EXISTS (
            SELECT FROM workspaces w WHERE w.id = EXCLUDED.workspace_id::uuid
            AND w.removed_at IS NOT NULL)
    RETURNING r.id, r.created_at
), label AS (
    INSERT INTO run_labels AS l (run_id, key, value, namespace, created_at)
    SELECT run.id, u.key, u.value, $2, run.created_at
    FROM run, unnest($36::text[], $37::text[]) AS u (key, value)
    ON CONFLICT (run_id, key) DO UPDATE SET value = EXCLUDED.value WHERE l.value <> EXCLUDED.value
), kill AS (
    -- Written down once, however often the run is mirrored.
    INSERT INTO audit (at, actor, action, allowed, namespace, run_id, session_id, detail, request)
    SELECT coalesce($39::timestamptz, now()), 'unknown', 'kill', true, $2, run.id, $1, $40, $38
    FROM run WHERE $38::text IS NOT NULL
    ON CONFLICT DO NOTHING
), no_label AS (
    DELETE FROM run_labels l USING run WHERE l.run_id = run.id AND l.key <> ALL ($36::text[])
)
-- From `run`, so that the run's row is locked before its attempts', as everywhere.
INSERT INTO run_attempts AS a
    (run_id, attempt, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
     cost_micro_usd, turns, requests, estimated_requests, changes, missing_from)
SELECT run.id, u.attempt, u.input, u.output, u.cache_read, u.cache_creation,
       u.cost, u.turns, u.requests, u.estimated,
       CASE WHEN u.attempt = $14 THEN $30::jsonb END,
       CASE WHEN u.attempt = $14 THEN $31::bigint END
FROM run, unnest($21::int[], $22::bigint[], $23::bigint[], $24::bigint[], $25::bigint[],
                 $26::bigint[], $27::bigint[], $28::bigint[], $29::bigint[])
     AS u (attempt, input, output, cache_read, cache_creation, cost, turns, requests, estimated)
ON CONFLICT (run_id, attempt) DO UPDATE SET
    input_tokens = greatest(a.input_tokens, EXCLUDED.input_tokens),
    output_tokens = greatest(a.output_tokens, EXCLUDED.output_tokens),
    cache_read_tokens = greatest(a.cache_read_tokens, EXCLUDED.cache_read_tokens),
    cache_creation_tokens = greatest(a.cache_creation_tokens, EXCLUDED.cache_creation_tokens),
    cost_micro_usd = greatest(a.cost_micro_usd, EXCLUDED.cost_micro_usd),
    turns = greatest(a.turns, EXCLUDED.turns),
    requests = greatest(a.requests, EXCLUDED.requests),
    estimated_requests = greatest(a.estimated_requests, EXCLUDED.estimated_requests),
    -- What the event said stays: it knows more than this.
    changes = coalesce(EXCLUDED.changes || coalesce(a.changes, '{}'), a.changes),
    missing_from = greatest(a.missing_from, EXCLUDED.missing_from)
