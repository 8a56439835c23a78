INSERT INTO workflow_runs AS r
    (id, run_id, workflow_name, agent_type, task_input, status, session_id, session_name, user_id,
     created_at, completed_at, duration_seconds, workspace_path, workspace_persistent, temp_workspace,
     result, error_message, cost_estimate, cost_source, input_tokens, output_tokens, cache_read_tokens,
     cache_creation_tokens, total_tokens, git_repo, git_branch, final_commit_hash, metadata)
SELECT x.id, x.run_id, coalesce(x.workflow_name, 'unknown'), x.legacy ->> 'agent_type',
       coalesce(x.task_input, runledger_no_task()), x.status, x.session_id, x.session_name, x.user_id,
       coalesce(x.created_at, now()), x.completed_at, x.duration_seconds, x.workspace_path,
       coalesce(x.workspace_persistent, true), NOT coalesce(x.workspace_persistent, true),
       x.result, x.error_message, x.cost_estimate, CASE WHEN x.cost_estimate IS NOT NULL THEN 'sdk' END,
       coalesce(x.input_tokens, 0), coalesce(x.output_tokens, 0), coalesce(x.cache_read_tokens, 0),
       coalesce(x.cache_creation_tokens, 0), coalesce(x.total_tokens, 0),
       x.git_repo, x.git_branch, x.final_commit_hash, jsonb_build_object('legacy', x.legacy)
FROM jsonb_to_recordset($1) AS x (
    id uuid, run_id text, workflow_name text, task_input text, status text, session_id uuid,
    session_name text, user_id uuid, created_at timestamptz, completed_at timestamptz,
    duration_seconds int, workspace_path text, workspace_persistent boolean, result text,
    error_message text, cost_estimate numeric, input_tokens bigint, output_tokens bigint,
    cache_read_tokens bigint, cache_creation_tokens bigint, total_tokens bigint, git_repo text,
    git_branch text, final_commit_hash text, legacy jsonb)
ON CONFLICT (run_id) DO UPDATE SET
    -- What is there stays; what isn't is filled in; nothing moves backward.
    workflow_name = CASE r.workflow_name WHEN 'unknown' THEN EXCLUDED.workflow_name ELSE r.workflow_name END,
    created_at = CASE r.workflow_name WHEN 'unknown' THEN least(r.created_at, EXCLUDED.created_at)
                 ELSE r.created_at END,
    agent_type = coalesce(r.agent_type, EXCLUDED.agent_type),
    task_input = CASE r.task_input WHEN runledger_no_task() THEN EXCLUDED.task_input ELSE r.task_input END,
    status = CASE WHEN runledger_status_rank(EXCLUDED.status) > runledger_status_rank(r.status)
                  THEN EXCLUDED.status ELSE r.status END,
    session_id = coalesce(r.session_id, EXCLUDED.session_id),
    session_name = coalesce(r.session_name, EXCLUDED.session_name),
    user_id = coalesce(r.user_id, EXCLUDED.user_id),
    completed_at = coalesce(r.completed_at, EXCLUDED.completed_at),
    duration_seconds = coalesce(r.duration_seconds, EXCLUDED.duration_seconds),
    workspace_path = coalesce(r.workspace_path, EXCLUDED.workspace_path),
    workspace_persistent = CASE WHEN r.workspace_path IS NULL THEN EXCLUDED.workspace_persistent
                           ELSE r.workspace_persistent END,
    temp_workspace = CASE WHEN r.workspace_path IS NULL THEN EXCLUDED.temp_workspace ELSE r.temp_workspace END,
    result = coalesce(r.result, EXCLUDED.result),
    error_message = coalesce(r.error_message, EXCLUDED.error_message),
    cost_estimate = coalesce(r.cost_estimate, EXCLUDED.cost_estimate),
    cost_source = CASE WHEN r.cost_estimate IS NULL THEN EXCLUDED.cost_source ELSE r.cost_source END,
    input_tokens = greatest(r.input_tokens, EXCLUDED.input_tokens),
    output_tokens = greatest(r.output_tokens, EXCLUDED.output_tokens),
    cache_read_tokens = greatest(r.cache_read_tokens, EXCLUDED.cache_read_tokens),
    cache_creation_tokens = greatest(r.cache_creation_tokens, EXCLUDED.cache_creation_tokens),
    total_tokens = greatest(r.total_tokens, EXCLUDED.total_tokens),
    git_repo = coalesce(r.git_repo, EXCLUDED.git_repo),
    git_branch = coalesce(r.git_branch, EXCLUDED.git_branch),
    final_commit_hash = coalesce(r.final_commit_hash, EXCLUDED.final_commit_hash),
    metadata = jsonb_build_object('legacy',
        (EXCLUDED.metadata -> 'legacy') || coalesce(r.metadata -> 'legacy', '{}')
        || jsonb_build_object('read', coalesce(r.metadata #> '{legacy,read}', '{}')
                                      || (EXCLUDED.metadata #> '{legacy,read}')))
WHERE r.namespace IS NULL
RETURNING run_id, xmax = 0 AS "new!"
