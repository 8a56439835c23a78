-- What legacy.md's table makes of the rows of legacy_rows.sql, said again in SQL: one line for each run
-- that the ledger has otherwise. Sessions and processes are read from `old`, a schema with native types.
WITH s AS (
    SELECT DISTINCT ON (run_id) * FROM (
        SELECT coalesce(metadata ->> 'run_id', 'session_' || id) AS run_id, s.* FROM old.sessions s
        WHERE metadata ->> 'agent_type' = 'claude-code' AND metadata ? 'model_used'
    ) s ORDER BY run_id, id
), twice AS (
    SELECT metadata ->> 'run_id' AS run_id FROM old.sessions WHERE metadata ? 'model_used' GROUP BY 1 HAVING count(*) > 1
), known AS (
    SELECT coalesce(s.run_id, p.run_id) AS run_id, s.id AS session, s.metadata AS m, p.run_id AS process,
           s.metadata ->> 'run_status' AS said, lower(s.metadata ->> 'success')::bool AS success, p.status AS raw,
           s.updated_at AS touched, p.last_heartbeat, p.updated_at, p.started_at, p.created_at AS p_created,
           p.workflow_name AS p_workflow, p.workspace_path AS path, s.created_at AS s_created
    FROM s FULL JOIN old.workflow_processes p ON p.run_id = s.run_id
    WHERE coalesce(s.run_id, p.run_id) NOT IN (SELECT run_id FROM twice WHERE run_id IS NOT NULL)
), told AS (
    SELECT *,
        CASE WHEN said IN ('failed', 'timeout') THEN 'failed'
             WHEN said IN ('killed', 'terminated') THEN 'killed'
             WHEN said = 'running' THEN 'running'
             WHEN success = false THEN 'failed'
             WHEN said = 'completed' OR success THEN 'completed' END AS by_session,
        CASE raw WHEN 'timeout' THEN 'failed' WHEN 'terminated' THEN 'killed' ELSE raw END AS by_process
    FROM known
), expected AS (
    SELECT run_id,
        CASE WHEN coalesce(by_session, 'running') <> 'running' THEN by_session
             WHEN coalesce(by_process, 'running') <> 'running' THEN by_process
             WHEN coalesce(by_session, by_process) = 'running'
                  AND coalesce(last_heartbeat, updated_at, touched) > now() - interval '5 minutes' THEN 'running'
             ELSE 'failed' END AS status,
        coalesce(m ->> 'workflow_name', p_workflow, 'unknown') AS workflow_name,
        coalesce(CASE jsonb_typeof(m -> 'request') WHEN 'object' THEN m #>> '{request,message}'
                 WHEN 'string' THEN (m ->> 'request')::jsonb ->> 'message' END, runledger_no_task()) AS task,
        -- In the legacy system's words a start may be a number or lack its zone.
        coalesce(CASE WHEN NOT m ? 'started_at' THEN NULL
                      WHEN jsonb_typeof(m -> 'started_at') = 'number' THEN to_timestamp((m ->> 'started_at')::bigint)
                      WHEN m ->> 'started_at' ~ '(Z|\+00(:00)?)$' THEN (m ->> 'started_at')::timestamptz
                      ELSE (m ->> 'started_at')::timestamp AT TIME ZONE 'UTC' END,
                 s_created, started_at, p_created) AS created_at,
        CASE WHEN m ->> 'total_cost_usd' = 'NaN' THEN NULL
             WHEN (m ->> 'total_cost_usd')::numeric < 0 THEN NULL
             ELSE round((m ->> 'total_cost_usd')::numeric, 6) END AS cost,
        CASE WHEN (m ->> 'input_tokens')::numeric BETWEEN 0 AND 9e18 THEN (m ->> 'input_tokens')::bigint ELSE 0 END AS input,
        coalesce((m ->> 'cache_read')::bigint, 0) AS cache_read,
        path AS workspace_path,
        CASE WHEN path IS NULL THEN true ELSE path LIKE '%\_persistent' END AS persistent,
        m ->> 'git_branch' AS branch, m ->> 'auto_commit_sha' AS sha, m ->> 'final_result' AS result,
        session, process
    FROM told
)
SELECT format('%s: expected %s, there is %s', e.run_id, to_jsonb(e), to_jsonb(r))
FROM expected e LEFT JOIN workflow_runs r ON r.run_id = e.run_id
WHERE (e.status, e.workflow_name, e.task, e.created_at, e.cost, e.input, e.cache_read, e.workspace_path,
       e.persistent, NOT e.persistent, e.branch, e.sha, e.result)
   IS DISTINCT FROM (r.status, r.workflow_name, r.task_input, r.created_at, r.cost_estimate, r.input_tokens,
       r.cache_read_tokens, r.workspace_path, r.workspace_persistent, r.temp_workspace, r.git_branch,
       r.final_commit_hash, r.result)
   OR r.duration_seconds < 0
   OR e.session IS NOT NULL AND NOT coalesce(r.metadata #> '{legacy,read}' ? ('session:' || e.session), false)
   OR e.process IS NOT NULL AND NOT coalesce(r.metadata #> '{legacy,read}' ? 'process', false)
LIMIT 5
