-- Runs as the controller knows them, each once, in the order of their ids: so two that write several
-- at once never wait for each other in a ring.
WITH given AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[], $9::text[],
        $10::text[], $11::text[], $12::text[], $13::text[], $14::int[], $15::text[], $16::timestamptz[],
        $17::timestamptz[], $18::text[], $19::bool[], $20::jsonb[], $21::text[], $22::jsonb[], $23::text[],
        $24::jsonb[], $25::bigint[], $26::text[], $27::timestamptz[], $28::text[]
    ) AS g (id, session_id, namespace, name, session_name, created_at, workflow_name, model, task,
            repository, branch, status, reason, attempt, error_message, started_at,
            completed_at, workspace_id, persistent, metadata, agent_image, settings, workspace_path,
            changes, missing_from, kill_request, kill_at, kill_detail)
), session AS (
    INSERT INTO sessions (id, namespace, name, created_at)
    SELECT g.session_id, g.namespace, g.session_name, g.created_at FROM given g
    WHERE NOT EXISTS (SELECT FROM sessions s WHERE s.id = g.session_id)
    ORDER BY 1
    ON CONFLICT DO NOTHING
), run AS (
    INSERT INTO workflow_runs AS r
        (id, run_id, namespace, name, workflow_name, agent_type, ai_model, task_input,
         session_id, session_name, git_repo, git_branch, status, reason, attempt, error_message,
         created_at, started_at, completed_at, duration_seconds,
         workspace_id, workspace_persistent, temp_workspace, metadata,
         cluster, agent_image, settings, workspace_path)
    SELECT g.id, g.id::text, g.namespace, g.name, g.workflow_name, 'claude', g.model,
         coalesce(g.task, runledger_no_task()), g.session_id, g.session_name, g.repository, g.branch, g.status, g.reason, g.attempt, g.error_message,
         g.created_at, g.started_at, g.completed_at,
         -- Not `greatest` alone, which makes 0 of what is not known.
         CASE WHEN g.completed_at < g.started_at THEN 0
              ELSE floor(extract(epoch FROM g.completed_at - g.started_at)) END::int,
         g.workspace_id, g.persistent, NOT g.persistent, g.metadata,
         $29::text, g.agent_image, g.settings, g.workspace_path
    FROM given g
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
), wanted AS (
    SELECT * FROM unnest($30::uuid[], $31::text[], $32::text[]) AS u (run_id, key, value)
), label AS (
    INSERT INTO run_labels AS l (run_id, key, value, namespace, created_at)
    SELECT run.id, u.key, u.value, g.namespace, run.created_at
    FROM run JOIN wanted u ON u.run_id = run.id JOIN given g ON g.id = run.id
    -- Not left to the conflict: that locks, and so writes, what is the same.
    WHERE NOT EXISTS (SELECT FROM run_labels l WHERE l.run_id = u.run_id AND l.key = u.key AND l.value = u.value)
    ON CONFLICT (run_id, key) DO UPDATE SET value = EXCLUDED.value WHERE l.value <> EXCLUDED.value
), no_label AS (
    DELETE FROM run_labels l USING run
    WHERE l.run_id = run.id AND NOT EXISTS (SELECT FROM wanted u WHERE u.run_id = l.run_id AND u.key = l.key)
), kill AS (
    -- Written down once, however often the run is mirrored.
    INSERT INTO audit (at, actor, action, allowed, namespace, run_id, session_id, detail, request)
    SELECT coalesce(g.kill_at, now()), 'unknown', 'kill', true, g.namespace, run.id, g.session_id,
           g.kill_detail, g.kill_request
    FROM run JOIN given g ON g.id = run.id WHERE g.kill_request IS NOT NULL
    ON CONFLICT DO NOTHING
)
-- From `run`, so that a run's row is locked before its attempts', as everywhere.
INSERT INTO run_attempts AS a
    (run_id, attempt, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
     cost_micro_usd, turns, requests, estimated_requests, changes, missing_from)
SELECT run.id, u.attempt, u.input, u.output, u.cache_read, u.cache_creation,
       u.cost, u.turns, u.requests, u.estimated,
       CASE WHEN u.attempt = g.attempt THEN g.changes END,
       CASE WHEN u.attempt = g.attempt THEN g.missing_from END
FROM run JOIN given g ON g.id = run.id
JOIN unnest($33::uuid[], $34::int[], $35::bigint[], $36::bigint[], $37::bigint[], $38::bigint[],
            $39::bigint[], $40::bigint[], $41::bigint[], $42::bigint[])
     AS u (run_id, attempt, input, output, cache_read, cache_creation, cost, turns, requests, estimated)
     ON u.run_id = run.id
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
