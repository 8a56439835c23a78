-- What legacy.md's table makes of the rows of legacy_rows.sql, said again in SQL: one line for each run
-- that the ledger has otherwise. Sessions and processes are read from `old`, a schema with native types.
WITH named AS (
    SELECT coalesce(metadata ->> 'run_id', 'session_' || id) AS run_id, metadata AS m, s.*,
           row_number() OVER (PARTITION BY coalesce(metadata ->> 'run_id', 'session_' || id) ORDER BY id) AS nth,
           metadata ->> 'run_status' AS said, lower(metadata ->> 'success')::bool AS success,
           CASE jsonb_typeof(metadata -> 'request') WHEN 'string' THEN (metadata ->> 'request')::jsonb
                ELSE metadata -> 'request' END AS request
    FROM old.sessions s
    WHERE metadata ->> 'agent_type' = 'claude-code' AND metadata ? 'model_used'
), stood AS (
    SELECT *, CASE WHEN said IN ('failed', 'timeout') THEN 'failed'
                   WHEN said IN ('killed', 'terminated') THEN 'killed'
                   WHEN said = 'running' THEN 'running'
                   WHEN success = false THEN 'failed'
                   WHEN said = 'completed' OR success THEN 'completed' END AS status
    FROM named
), told AS (
    SELECT run_id, nth, id, user_id, name, updated_at, status, said, m, request,
        coalesce(old.time_of(m -> 'started_at'), created_at) AS created_at,
        coalesce(old.time_of(m -> 'completed_at'), CASE WHEN status <> 'running' THEN run_finished_at END) AS completed_at,
        CASE WHEN m ?| ARRAY['duration_ms', 'elapsed_seconds'] THEN
            greatest(trunc(coalesce((m ->> 'duration_ms')::numeric / 1000, (m ->> 'elapsed_seconds')::numeric))::int, 0) END AS duration,
        CASE WHEN (m ->> 'total_cost_usd')::numeric BETWEEN 0 AND 1e12 THEN (m ->> 'total_cost_usd')::numeric END AS cost,
        CASE WHEN (m ->> 'input_tokens')::numeric BETWEEN 0 AND 9e18 THEN (m ->> 'input_tokens')::bigint END AS input,
        coalesce(m ->> 'error_message', m ->> 'error') AS error
    FROM stood
-- A run that two sessions name: what the first doesn't know, the second tells.
), s AS (
    SELECT a.run_id, a.id AS session, b.id AS second, a.name, coalesce(a.user_id, b.user_id) AS user_id,
        CASE WHEN coalesce(a.status, 'running') = 'running' AND b.status <> 'running' THEN b.status
             ELSE coalesce(a.status, b.status) END AS status,
        a.created_at, coalesce(a.completed_at, b.completed_at) AS completed_at, a.updated_at AS touched,
        coalesce(a.duration, b.duration) AS duration, coalesce(a.cost, b.cost) AS cost, coalesce(a.input, b.input) AS input,
        coalesce(a.error, b.error) AS error, coalesce(b.m, '{}') || a.m AS m,
        coalesce(a.request ->> 'message', b.request ->> 'message') AS task,
        coalesce(a.request ->> 'repository_url', b.request ->> 'repository_url') AS repo,
        coalesce(a.request ->> 'workspace_path', b.request ->> 'workspace_path') AS path,
        coalesce(a.request -> 'workspace_persistent', b.request -> 'workspace_persistent')::bool AS persistent,
        coalesce(CASE WHEN a.said IS DISTINCT FROM a.status THEN a.said END,
                 CASE WHEN b.said IS DISTINCT FROM b.status THEN b.said END) AS raw_status
    FROM told a LEFT JOIN told b ON b.run_id = a.run_id AND b.nth = 2 WHERE a.nth = 1
), p AS (
    SELECT *, CASE status WHEN 'timeout' THEN 'failed' WHEN 'terminated' THEN 'killed' ELSE status END AS stands,
        coalesce(last_heartbeat, updated_at) AS alive
    FROM old.workflow_processes
), known AS (
    SELECT coalesce(s.run_id, p.run_id) AS run_id, s.session, s.second, s.name, s.m, s.cost, s.task, s.repo, s.raw_status,
        p.run_id AS process, p.status AS process_status, p.pid, p.process_info, p.last_heartbeat,
        coalesce(s.session::text, p.session_id) AS session_id, coalesce(s.user_id::text, p.user_id) AS user_id,
        CASE WHEN coalesce(s.status, 'running') = 'running' AND p.stands <> 'running' THEN p.stands
             ELSE coalesce(s.status, p.stands) END AS told,
        coalesce(s.m ->> 'workflow_name', p.workflow_name, 'unknown') AS workflow_name,
        coalesce(s.created_at, p.started_at, p.created_at) AS created_at,
        coalesce(s.completed_at, CASE WHEN p.stands <> 'running' THEN p.updated_at END) AS completed_at,
        coalesce(p.alive, s.touched) AS alive, s.duration, coalesce(s.input, 0) AS input,
        coalesce((s.m ->> 'output_tokens')::bigint, 0) AS output, coalesce((s.m ->> 'cache_read')::bigint, 0) AS cache_read,
        coalesce((s.m ->> 'cache_created')::bigint, 0) AS cache_creation,
        coalesce(s.path, p.workspace_path) AS path,
        coalesce(s.persistent, p.workspace_path LIKE '%\_persistent', true) AS persistent,
        coalesce(s.error, CASE p.status WHEN 'timeout' THEN 'The earlier system ended the run for its time-out.' END) AS error
    FROM s FULL JOIN p ON p.run_id = s.run_id
), ended AS (
    SELECT *, coalesce(told, 'running') = 'running' AND NOT coalesce(told = 'running' AND alive > now() - interval '5 minutes', false) AS lost
    FROM known
), expected AS (
    SELECT e.run_id, CASE WHEN lost THEN 'failed' ELSE told END AS status, workflow_name,
        coalesce(task, runledger_no_task()) AS task, e.created_at,
        CASE WHEN lost THEN coalesce(e.completed_at, alive) WHEN told <> 'running' THEN e.completed_at END AS completed_at,
        e.duration, coalesce(e.error, CASE WHEN lost AND told IS NULL THEN 'The earlier system did not keep how the run ended.'
            WHEN lost THEN 'The earlier system lost sight of the run; it was last known to be running.' END) AS error,
        round(cost, 6) AS cost, input, output, cache_read, cache_creation, path, persistent, repo,
        m ->> 'git_branch' AS branch, m ->> 'auto_commit_sha' AS sha, m ->> 'final_result' AS result,
        ses.id AS session_id, e.name AS session_name, u.id AS user_id,
        jsonb_strip_nulls(jsonb_build_object(
            'session_id', CASE WHEN ses.id IS NULL THEN e.session_id END, 'user_id', CASE WHEN u.id IS NULL THEN e.user_id END,
            'pid', pid, 'process_info', process_info, 'process_status', process_status,
            'raw_status', coalesce(raw_status, CASE WHEN lost THEN told END),
            'claude_session_id', m -> 'claude_session_id', 'total_turns', m -> 'total_turns', 'tools_used', m -> 'tools_used',
            'execution_results', m -> 'execution_results', 'model_used', m -> 'model_used',
            'agent_type', m -> 'agent_type', 'success', m -> 'success', 'duration_ms', m -> 'duration_ms',
            'elapsed_seconds', m -> 'elapsed_seconds')) AS legacy,
        last_heartbeat, session, second, process
    FROM ended e LEFT JOIN sessions ses ON ses.id::text = e.session_id LEFT JOIN users u ON u.id::text = e.user_id
)
SELECT format('%s: expected %s, there is %s', e.run_id, to_jsonb(e), to_jsonb(r))
FROM expected e FULL JOIN workflow_runs r ON r.run_id = e.run_id
WHERE (e.run_id, e.status, e.workflow_name, e.task, e.created_at, e.completed_at, e.error, e.cost, e.input, e.output,
       e.cache_read, e.cache_creation, e.input + e.output + e.cache_read + e.cache_creation, e.path, e.persistent,
       NOT e.persistent, e.repo, e.branch, e.sha, e.result, e.session_id, e.session_name, e.user_id,
       coalesce(e.duration, trunc(extract(epoch FROM greatest(e.completed_at - e.created_at, CASE WHEN e.completed_at IS NOT NULL
           THEN interval '0' END)))::int))
   IS DISTINCT FROM (r.run_id, r.status, r.workflow_name, r.task_input, r.created_at, r.completed_at, r.error_message,
       r.cost_estimate, r.input_tokens, r.output_tokens, r.cache_read_tokens, r.cache_creation_tokens, r.total_tokens,
       r.workspace_path, r.workspace_persistent, r.temp_workspace, r.git_repo, r.git_branch, r.final_commit_hash,
       r.result, r.session_id, r.session_name, r.user_id, r.duration_seconds)
   OR (r.metadata -> 'legacy') - ARRAY['read', 'request', 'unreadable', 'error', 'total_tokens', 'total_cost_usd', 'last_heartbeat', 'also']
      IS DISTINCT FROM e.legacy
   OR (r.metadata #>> '{legacy,last_heartbeat}')::timestamptz IS DISTINCT FROM e.last_heartbeat
   OR e.session IS NOT NULL AND NOT coalesce(r.metadata #> '{legacy,read}' ? ('session:' || e.session), false)
   OR e.second IS NOT NULL AND NOT coalesce(r.metadata #> '{legacy,read}' ? ('session:' || e.second)
                                            AND r.metadata #> '{legacy,also}' ? ('session:' || e.second), false)
   OR e.process IS NOT NULL AND NOT coalesce(r.metadata #> '{legacy,read}' ? 'process', false)
LIMIT 5
