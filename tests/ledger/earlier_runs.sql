-- The earlier system's workflow_runs as it was built: text where uuids were meant, no foreign keys.
CREATE TABLE workflow_runs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    run_id varchar(255) UNIQUE NOT NULL,
    workflow_name varchar(255) NOT NULL,
    agent_type varchar(50),
    ai_model varchar(100),
    task_input text NOT NULL,
    session_id varchar(255),
    session_name varchar(255),
    git_repo text,
    git_branch varchar(255),
    initial_commit_hash varchar(40),
    final_commit_hash varchar(40),
    git_diff_added_lines integer DEFAULT 0,
    git_diff_removed_lines integer DEFAULT 0,
    git_diff_files_changed integer DEFAULT 0,
    git_diff_stats jsonb DEFAULT '{}',
    status varchar(50) NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'running', 'completed', 'failed', 'killed')),
    result text,
    error_message text,
    created_at timestamptz DEFAULT now(),
    completed_at timestamptz,
    duration_seconds integer CHECK (duration_seconds >= 0),
    workspace_id varchar(255),
    workspace_path text,
    workspace_persistent boolean DEFAULT true,
    workspace_cleaned_up boolean DEFAULT false,
    temp_workspace boolean DEFAULT false,
    cost_estimate numeric(10, 6),
    input_tokens integer DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens integer DEFAULT 0 CHECK (output_tokens >= 0),
    total_tokens integer DEFAULT 0 CHECK (total_tokens >= 0),
    user_id varchar(255),
    metadata jsonb DEFAULT '{}',
    updated_at timestamptz DEFAULT now()
);
CREATE INDEX idx_workflow_runs_session_id ON workflow_runs (session_id);
CREATE INDEX idx_workflow_runs_workspace_id ON workflow_runs (workspace_id);
CREATE INDEX idx_workflow_runs_status ON workflow_runs (status);
CREATE INDEX idx_workflow_runs_metadata ON workflow_runs USING gin (metadata);
CREATE INDEX idx_workflow_runs_active ON workflow_runs (created_at) WHERE status IN ('pending', 'running');
-- Ended without a time, totals that are no sums, NULLs where there are defaults, sessions that are
-- none or were deleted.
INSERT INTO workflow_runs (id, run_id, workflow_name, task_input, session_id, status, created_at, completed_at,
    workspace_persistent, cost_estimate, input_tokens, output_tokens, total_tokens, user_id, metadata, updated_at)
SELECT ('30000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'run_' || n, 'builder', 'task ' || n,
       CASE n % 6 WHEN 0 THEN NULL WHEN 1 THEN 'talk-' || n WHEN 2 THEN '99999999-0000-4000-8000-000000000001'
            ELSE '10000000-0000-4000-8000-' || lpad(to_hex(1 + n % 200), 12, '0') END,
       (ARRAY['pending', 'running', 'completed', 'failed', 'killed'])[1 + n % 5],
       CASE WHEN n % 31 > 0 THEN timestamptz '2025-04-01 00:00Z' + n * interval '1 minute' END,
       CASE WHEN n % 4 = 0 THEN timestamptz '2025-04-02 00:00Z' + n * interval '1 minute' END,
       CASE WHEN n % 3 > 0 THEN n % 3 = 1 END, n * 0.001234, n, nullif(n % 17, 0), 10 * n,
       CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN 'somebody'
            ELSE '00000000-0000-4000-8000-' || lpad(to_hex(1 + n % 20), 12, '0') END,
       CASE n % 7 WHEN 0 THEN NULL ELSE jsonb_build_object('n', n) END, '2025-05-01 00:00Z'
FROM generate_series(1, 1000) n;
CREATE TRIGGER update_workflow_runs_updated_at BEFORE UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
