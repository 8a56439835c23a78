-- Rows of the earlier system with every oddity that it is known for. Chance, and the number of rows, are
-- the two functions' that stand before this script: seed() and rows().
CREATE FUNCTION pick(n bigint, k int, of int) RETURNS int LANGUAGE sql IMMUTABLE AS
$$ SELECT (abs(hashint8extended(n, seed() * 100 + k) % 1000003) % of)::int $$;
CREATE FUNCTION session_of(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS
$$ SELECT ('40000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$;
CREATE FUNCTION at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT timestamptz '2025-06-01 00:00Z' + n * interval '1 minute' $$;
-- A time as one of those who wrote them would have.
CREATE FUNCTION spelled(t timestamptz, how int) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE how
        WHEN 0 THEN to_jsonb(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS'))
        WHEN 1 THEN to_jsonb(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'))
        WHEN 2 THEN to_jsonb(extract(epoch FROM t)::bigint)
        WHEN 3 THEN to_jsonb(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS+00'))
        ELSE to_jsonb(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
    END $$;

CREATE TABLE IF NOT EXISTS workflow_processes (
    run_id varchar(255) PRIMARY KEY,
    pid integer,
    status varchar(50) NOT NULL DEFAULT 'running',
    workflow_name varchar(255),
    session_id varchar(255),
    user_id varchar(255),
    started_at timestamptz DEFAULT now(),
    last_heartbeat timestamptz DEFAULT now(),
    workspace_path text,
    process_info jsonb DEFAULT '{}',
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);

-- kind 0: no run at all; 1: nothing but its type; 2: facts without a run_id; 3: the run of the session before.
INSERT INTO sessions (id, user_id, name, platform, metadata, created_at, updated_at, run_finished_at)
SELECT session_of(n),
       CASE WHEN pick(n, 1, 10) > 0 THEN ('00000000-0000-4000-8000-' || lpad(to_hex(1 + pick(n, 2, 20)), 12, '0'))::uuid END,
       'talk ' || pick(n, 3, 100), 'claude-code',
       CASE pick(n, 4, 20)
           WHEN 0 THEN '{"theme": "dark", "run_id": "not-ours"}'
           WHEN 1 THEN '{"agent_type": "claude-code", "theme": "dark"}'
           ELSE jsonb_strip_nulls(jsonb_build_object(
               'agent_type', 'claude-code',
               'theme', CASE WHEN pick(n, 5, 2) = 0 THEN 'dark' END,
               'run_id', CASE pick(n, 4, 20) WHEN 2 THEN NULL WHEN 3 THEN 'run-' || (n - 1) ELSE 'run-' || n END,
               'workflow_name', CASE WHEN pick(n, 6, 10) > 0 THEN (ARRAY['builder', 'surgeon', 'reviewer'])[1 + pick(n, 7, 3)] END,
               'run_status', (ARRAY['completed', 'completed', 'completed', 'failed', 'killed', 'running', 'timeout',
                                    'terminated', 'whatever', NULL])[1 + pick(n, 8, 10)],
               'success', CASE pick(n, 9, 6) WHEN 0 THEN to_jsonb(false) WHEN 1 THEN to_jsonb(true) WHEN 2 THEN to_jsonb('True'::text) END,
               'started_at', CASE WHEN pick(n, 10, 8) > 0 THEN spelled(at(n), pick(n, 11, 5)) END,
               'completed_at', CASE WHEN pick(n, 12, 4) > 0 THEN spelled(at(n) + interval '90 seconds', pick(n, 13, 5)) END,
               'duration_ms', CASE pick(n, 14, 5) WHEN 0 THEN to_jsonb(12345.6) WHEN 1 THEN to_jsonb(-5) END,
               'final_result', CASE WHEN pick(n, 15, 2) = 0 THEN 'Done ' || n END,
               'elapsed_seconds', CASE pick(n, 41, 4) WHEN 0 THEN to_jsonb(7.9) WHEN 1 THEN to_jsonb('61'::text) END,
               'error', CASE WHEN pick(n, 16, 9) = 0 THEN 'It broke.' END,
               'error_message', CASE WHEN pick(n, 42, 9) = 0 THEN 'It broke, in more words.' END,
               'execution_results', CASE WHEN pick(n, 43, 3) = 0 THEN jsonb_build_object('exit_code', n % 3) END,
               'total_cost_usd', CASE pick(n, 17, 6) WHEN 0 THEN to_jsonb('0.5'::text) WHEN 1 THEN to_jsonb('NaN'::text)
                                 WHEN 2 THEN to_jsonb(1e-7) WHEN 3 THEN to_jsonb(-1) WHEN 4 THEN to_jsonb(n * 0.001) END,
               'input_tokens', CASE pick(n, 18, 6) WHEN 0 THEN to_jsonb('17'::text) WHEN 1 THEN to_jsonb(-1)
                               WHEN 2 THEN to_jsonb(99999999999999999999999::numeric) ELSE to_jsonb(n) END,
               'output_tokens', n % 1000,
               'total_tokens', n + n % 1000,
               'cache_created', CASE WHEN pick(n, 19, 2) = 0 THEN 7 END,
               'cache_read', CASE WHEN pick(n, 19, 2) = 0 THEN 70 END,
               'git_branch', CASE WHEN pick(n, 20, 3) = 0 THEN 'branch-' || n % 50 END,
               'auto_commit_sha', CASE WHEN pick(n, 21, 3) = 0 THEN md5(n::text) END,
               'claude_session_id', 'c' || n,
               'total_turns', n % 40,
               'tools_used', '["Bash", "Edit"]'::jsonb,
               'model_used', 'sonnet',
               'request', CASE pick(n, 22, 5)
                   WHEN 0 THEN NULL
                   WHEN 1 THEN to_jsonb(jsonb_build_object('message', 'Do ' || n)::text)
                   WHEN 2 THEN jsonb_build_object('message', 'Do ' || n, 'workspace_path', '/asked/w' || n,
                                                  'workspace_persistent', pick(n, 44, 2) = 0)
                   ELSE jsonb_build_object('message', 'Do ' || n, 'repository_url', 'https://git.example/' || n % 9,
                                           'max_turns', 30) END))
       END,
       at(n) - interval '1 second', at(n) + interval '2 hours',
       CASE WHEN pick(n, 45, 3) = 0 THEN at(n) + interval '95 seconds' END
FROM generate_series(1, rows() / 2) n;

INSERT INTO workflow_processes
SELECT CASE WHEN n % 2 = 0 THEN 'run-' || n ELSE 'proc-' || n END, n,
       (ARRAY['running', 'running', 'completed', 'failed', 'killed', 'timeout', 'terminated'])[1 + pick(n, 31, 7)],
       CASE WHEN pick(n, 32, 8) > 0 THEN 'builder' END,
       CASE pick(n, 33, 5) WHEN 0 THEN NULL WHEN 1 THEN 'no-uuid' WHEN 2 THEN '99999999-0000-4000-8000-000000000009'
           ELSE session_of(1 + pick(n, 34, greatest(rows() / 2, 1)))::text END,
       CASE pick(n, 35, 4) WHEN 0 THEN NULL WHEN 1 THEN 'somebody' WHEN 2 THEN '99999999-0000-4000-8000-000000000009'
           ELSE '00000000-0000-4000-8000-000000000005' END,
       CASE WHEN pick(n, 36, 9) > 0 THEN at(n) END,
       CASE pick(n, 37, 10) WHEN 0 THEN NULL WHEN 1 THEN now() + interval '1 hour' ELSE at(n) + interval '30 seconds' END,
       CASE pick(n, 38, 3) WHEN 0 THEN '/work/w' || n || '_persistent' WHEN 1 THEN '/work/w' || n END,
       CASE pick(n, 39, 3) WHEN 0 THEN NULL ELSE jsonb_build_object('cmd', 'run.py', 'n', n) END,
       at(n), at(n) + CASE pick(n, 40, 8) WHEN 0 THEN interval '-1 minute' ELSE interval '61 seconds' END
FROM generate_series(1, rows() - rows() / 2) n;
