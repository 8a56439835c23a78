-- What do we store? One row per run, which only moves forward; the session that it belongs to and
-- the messages said in it; each attempt's cumulative figures; and the events as they were journalled.
--
-- Names and types of users, sessions, messages and workflow_runs are those that existing readers
-- use, but for counts and cost, which are wider (bigint, numeric(20,6)): a long run has more tokens
-- than an int holds, and every reader of the narrow type reads the wide one.

-- The schema that the connection works in, and nothing that a writer could slip in front of it: what
-- SECURITY DEFINER functions below are bound to.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END $$;

CREATE TABLE users (
    id           uuid PRIMARY KEY,
    email        text UNIQUE,
    phone_number text,
    user_data    jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE sessions (
    id            uuid PRIMARY KEY,
    namespace     text,
    name          text,
    metadata      jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    message_count int NOT NULL DEFAULT 0 CHECK (message_count >= 0),
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN sessions.namespace IS 'Kubernetes namespace; null in rows that are not ours';
-- Reuse by name must never cross namespaces; rows of others may repeat a name.
CREATE UNIQUE INDEX sessions_namespace_name_key ON sessions (namespace, name) WHERE namespace IS NOT NULL;

CREATE TABLE workflow_runs (
    id                     uuid PRIMARY KEY,
    run_id                 varchar(255) NOT NULL UNIQUE,
    namespace              text,
    name                   text,
    workflow_name          varchar NOT NULL,
    agent_type             varchar,
    ai_model               varchar,
    task_input             text NOT NULL,
    session_id             uuid REFERENCES sessions (id) ON DELETE SET NULL,
    session_name           varchar(255),
    git_repo               varchar,
    git_branch             varchar,
    initial_commit_hash    varchar,
    final_commit_hash      varchar,
    git_commits            int NOT NULL DEFAULT 0 CHECK (git_commits >= 0),
    git_pushed_branch      varchar,
    git_diff_added_lines   bigint NOT NULL DEFAULT 0 CHECK (git_diff_added_lines >= 0),
    git_diff_removed_lines bigint NOT NULL DEFAULT 0 CHECK (git_diff_removed_lines >= 0),
    git_diff_files_changed bigint NOT NULL DEFAULT 0 CHECK (git_diff_files_changed >= 0),
    git_diff_stats         jsonb NOT NULL DEFAULT '{}',
    status                 varchar(50) NOT NULL DEFAULT 'pending'
                           CHECK (status IN ('pending', 'running', 'completed', 'failed', 'killed')),
    reason                 varchar,
    attempt                int NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    result                 text,
    error_message          text,
    created_at             timestamptz NOT NULL DEFAULT now(),
    started_at             timestamptz,
    completed_at           timestamptz,
    duration_seconds       int CHECK (duration_seconds >= 0),
    workspace_id           varchar,
    workspace_path         varchar,
    workspace_persistent   boolean NOT NULL DEFAULT true,
    workspace_cleaned_up   boolean NOT NULL DEFAULT false,
    temp_workspace         boolean NOT NULL DEFAULT false,
    cost_estimate          numeric(20, 6) CHECK (cost_estimate >= 0),
    input_tokens           bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens          bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    cache_read_tokens      bigint NOT NULL DEFAULT 0 CHECK (cache_read_tokens >= 0),
    cache_creation_tokens  bigint NOT NULL DEFAULT 0 CHECK (cache_creation_tokens >= 0),
    total_tokens           bigint NOT NULL DEFAULT 0,
    turns                  bigint NOT NULL DEFAULT 0 CHECK (turns >= 0),
    transcript_missing_from bigint CHECK (transcript_missing_from > 0),
    user_id                uuid REFERENCES users (id) ON DELETE SET NULL,
    metadata               jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    updated_at             timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT workflow_runs_total_is_the_sum CHECK (total_tokens =
        input_tokens + output_tokens + cache_read_tokens + cache_creation_tokens),
    CONSTRAINT workflow_runs_end_has_a_time CHECK
        (status NOT IN ('completed', 'failed', 'killed') OR completed_at IS NOT NULL)
);
COMMENT ON COLUMN workflow_runs.id IS 'metadata.uid of the WorkflowRun; run_id is its text';
COMMENT ON COLUMN workflow_runs.transcript_missing_from IS
    'Sequence from which on the last attempt''s events are still on the workspace volume';
CREATE INDEX workflow_runs_session_id ON workflow_runs (session_id);
CREATE INDEX workflow_runs_status ON workflow_runs (status);
CREATE INDEX workflow_runs_workflow_name ON workflow_runs (workflow_name);
CREATE INDEX workflow_runs_created_at ON workflow_runs (created_at DESC, id);
CREATE INDEX workflow_runs_user_id ON workflow_runs (user_id);
CREATE INDEX workflow_runs_git_branch ON workflow_runs (git_branch);
CREATE INDEX workflow_runs_workspace_id ON workflow_runs (workspace_id);
CREATE INDEX workflow_runs_namespace_name ON workflow_runs (namespace, name);
CREATE INDEX workflow_runs_metadata ON workflow_runs USING gin (metadata);
CREATE INDEX workflow_runs_git_diff_stats ON workflow_runs USING gin (git_diff_stats);
CREATE INDEX workflow_runs_active ON workflow_runs (created_at DESC) WHERE status IN ('pending', 'running');
CREATE INDEX workflow_runs_completed ON workflow_runs (completed_at DESC) WHERE status = 'completed';
CREATE INDEX workflow_runs_uncleaned ON workflow_runs (workspace_id) WHERE NOT workspace_cleaned_up;

CREATE TABLE messages (
    id           uuid PRIMARY KEY,
    session_id   uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    run_id       uuid REFERENCES workflow_runs (id) ON DELETE SET NULL,
    sequence     bigint CHECK (sequence > 0),
    role         text NOT NULL,
    text_content text,
    message_type text,
    raw_payload  jsonb NOT NULL DEFAULT '{}',
    tool_calls   jsonb NOT NULL DEFAULT '{}',
    tool_outputs jsonb NOT NULL DEFAULT '{}',
    usage        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(usage) = 'object'),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN messages.sequence IS 'Sequence of its event in the run''s attempt: breaks ties of created_at';
CREATE INDEX messages_session_id_created_at ON messages (session_id, created_at, sequence);
CREATE INDEX messages_run_id ON messages (run_id);

-- What each pod of a run has used and found, cumulative over the attempt. A run's own figures are
-- sums over these rows, so that controller and server may both write them, twice, late, in any order.
CREATE TABLE run_attempts (
    run_id                uuid NOT NULL REFERENCES workflow_runs (id) ON DELETE CASCADE,
    attempt               int NOT NULL CHECK (attempt > 0),
    started_day           date,
    input_tokens          bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens         bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    cache_read_tokens     bigint NOT NULL DEFAULT 0 CHECK (cache_read_tokens >= 0),
    cache_creation_tokens bigint NOT NULL DEFAULT 0 CHECK (cache_creation_tokens >= 0),
    cost_micro_usd        bigint CHECK (cost_micro_usd >= 0),
    turns                 bigint NOT NULL DEFAULT 0 CHECK (turns >= 0),
    requests              bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    estimated_requests    bigint NOT NULL DEFAULT 0 CHECK (estimated_requests >= 0),
    repository            text,
    branch                text,
    initial_commit        text,
    changes               jsonb,
    model                 text,
    model_sequence        bigint NOT NULL DEFAULT 0,
    result                text,
    result_sequence       bigint NOT NULL DEFAULT 0,
    acknowledged          bigint NOT NULL DEFAULT 0 CHECK (acknowledged >= 0),
    sealed_sequence       bigint CHECK (sealed_sequence > 0),
    missing_from          bigint CHECK (missing_from > 0),
    created_at            timestamptz NOT NULL DEFAULT now(),
    updated_at            timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, attempt)
);
COMMENT ON COLUMN run_attempts.started_day IS
    'UTC day of the attempt''s first event at the server: the partition of all its events';
COMMENT ON COLUMN run_attempts.acknowledged IS 'Highest sequence up to which every event is stored';
COMMENT ON COLUMN run_attempts.sealed_sequence IS 'Sequence of the attempt''s last event';
COMMENT ON COLUMN run_attempts.missing_from IS
    'First sequence that the pod had not delivered when it ended, as the controller read it';

-- No foreign keys: partitions are dropped whole, and a new one must not lock run_attempts.
CREATE TABLE run_events (
    run_id      uuid NOT NULL,
    attempt     int NOT NULL CHECK (attempt > 0),
    sequence    bigint NOT NULL CHECK (sequence > 0),
    started_day date NOT NULL,
    at          timestamptz NOT NULL,
    type        text NOT NULL,
    body        jsonb NOT NULL,
    altered     boolean NOT NULL DEFAULT false,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, attempt, sequence, started_day)
) PARTITION BY RANGE (started_day);
COMMENT ON COLUMN run_events.altered IS 'Held U+0000, which jsonb can''t: U+FFFD stands in its place';

-- Makes the partition of that day, if it is not there. SECURITY DEFINER: whoever writes events needs
-- no right to create tables. Attaching (and not CREATE … PARTITION OF) leaves writers undisturbed.
CREATE FUNCTION runledger_event_partition(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    partition text := 'run_events_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF day < current_date - 36500 OR day > current_date + 36500 THEN
        RAISE EXCEPTION 'no partition of run_events is made for %', day USING ERRCODE = 'check_violation';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('runledger_event_partition'));
    IF to_regclass(partition) IS NULL THEN
        EXECUTE format('CREATE TABLE %I (LIKE run_events INCLUDING ALL)', partition);
        EXECUTE format('ALTER TABLE run_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                       partition, day, day + 1);
    END IF;
END $$;

-- Stands in the task's place in a row that events made before the run was mirrored.
CREATE FUNCTION runledger_no_task() RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT '(the task is not known yet)' $$;

CREATE FUNCTION runledger_status_rank(status text) RETURNS int LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE status WHEN 'pending' THEN 0 WHEN 'running' THEN 1 ELSE 2 END $$;

-- A run's row moves forward, whoever writes it. What would undo something is refused with SQLSTATE
-- RL001; metadata is merged.
CREATE FUNCTION runledger_run_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    NEW.metadata := OLD.metadata || NEW.metadata;
    wrong := CASE
        WHEN NEW.id <> OLD.id OR NEW.run_id <> OLD.run_id THEN 'its id never changes'
        WHEN NEW.status <> OLD.status
             AND runledger_status_rank(NEW.status) <= runledger_status_rank(OLD.status)
            THEN format('status goes from %s to %s', OLD.status, NEW.status)
        WHEN NEW.input_tokens < OLD.input_tokens OR NEW.output_tokens < OLD.output_tokens
             OR NEW.cache_read_tokens < OLD.cache_read_tokens
             OR NEW.cache_creation_tokens < OLD.cache_creation_tokens THEN 'tokens fall'
        WHEN NEW.turns < OLD.turns THEN 'turns fall'
        WHEN NEW.attempt < OLD.attempt THEN 'attempt falls'
        WHEN coalesce(NEW.cost_estimate, 0) < coalesce(OLD.cost_estimate, 0) THEN 'cost falls'
        WHEN OLD.task_input <> runledger_no_task() AND NEW.task_input <> OLD.task_input
            THEN 'the task was filled in before'
        WHEN OLD.workflow_name <> 'unknown' AND (NEW.workflow_name <> OLD.workflow_name
             OR NEW.created_at <> OLD.created_at) THEN 'its origin was filled in before'
        WHEN OLD.started_at IS NOT NULL AND NEW.started_at IS DISTINCT FROM OLD.started_at
            THEN 'started_at was set before'
        WHEN OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at
            THEN 'completed_at was set before'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'workflow_runs % only moves forward: %', OLD.run_id, wrong USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER workflow_runs_moves_forward BEFORE UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION runledger_run_moves_forward();

CREATE FUNCTION runledger_attempt_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    wrong := CASE
        WHEN NEW.run_id <> OLD.run_id OR NEW.attempt <> OLD.attempt THEN 'its key never changes'
        WHEN OLD.started_day IS NOT NULL AND NEW.started_day IS DISTINCT FROM OLD.started_day
            THEN 'its day was set before'
        WHEN NEW.input_tokens < OLD.input_tokens OR NEW.output_tokens < OLD.output_tokens
             OR NEW.cache_read_tokens < OLD.cache_read_tokens
             OR NEW.cache_creation_tokens < OLD.cache_creation_tokens THEN 'tokens fall'
        WHEN coalesce(NEW.cost_micro_usd, 0) < coalesce(OLD.cost_micro_usd, 0) THEN 'cost falls'
        WHEN NEW.turns < OLD.turns THEN 'turns fall'
        WHEN NEW.requests < OLD.requests OR NEW.estimated_requests < OLD.estimated_requests
            THEN 'requests fall'
        WHEN NEW.acknowledged < OLD.acknowledged THEN 'the sequence falls'
        WHEN OLD.sealed_sequence IS NOT NULL AND NEW.sealed_sequence IS DISTINCT FROM OLD.sealed_sequence
            THEN 'it was sealed before'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'run_attempts % of % only moves forward: %', OLD.attempt, OLD.run_id, wrong
            USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER run_attempts_moves_forward BEFORE UPDATE ON run_attempts
    FOR EACH ROW EXECUTE FUNCTION runledger_attempt_moves_forward();

-- A run's figures are a function of its attempts: sums, and the word of the latest attempt that has
-- one. So it doesn't matter who wrote them first.
CREATE FUNCTION runledger_sum_attempts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE workflow_runs r SET
        input_tokens = a.input_tokens,
        output_tokens = a.output_tokens,
        cache_read_tokens = a.cache_read_tokens,
        cache_creation_tokens = a.cache_creation_tokens,
        total_tokens = a.input_tokens + a.output_tokens + a.cache_read_tokens + a.cache_creation_tokens,
        cost_estimate = (a.cost_micro_usd / 1000000.0)::numeric(20, 6),
        turns = a.turns,
        attempt = greatest(r.attempt, a.attempt),
        ai_model = coalesce(a.model, r.ai_model),
        result = coalesce(a.result, r.result),
        git_repo = coalesce(a.changes ->> 'repository', a.repository, r.git_repo),
        git_branch = coalesce(a.changes ->> 'branch', a.branch, r.git_branch),
        initial_commit_hash = coalesce(nullif(a.changes ->> 'initialCommit', ''), a.initial_commit),
        final_commit_hash = a.changes ->> 'finalCommit',
        git_commits = coalesce((a.changes ->> 'commits')::int, 0),
        git_pushed_branch = a.changes ->> 'pushed',
        git_diff_files_changed = coalesce((a.changes ->> 'files')::bigint, 0),
        git_diff_added_lines = coalesce((a.changes ->> 'added')::bigint, 0),
        git_diff_removed_lines = coalesce((a.changes ->> 'removed')::bigint, 0),
        transcript_missing_from = a.missing_from
    FROM (
        SELECT sum(input_tokens)::bigint AS input_tokens,
               sum(output_tokens)::bigint AS output_tokens,
               sum(cache_read_tokens)::bigint AS cache_read_tokens,
               sum(cache_creation_tokens)::bigint AS cache_creation_tokens,
               sum(cost_micro_usd) AS cost_micro_usd,
               sum(turns)::bigint AS turns,
               max(attempt) AS attempt,
               (array_agg(model ORDER BY attempt DESC) FILTER (WHERE model IS NOT NULL))[1] AS model,
               (array_agg(result ORDER BY attempt DESC) FILTER (WHERE result IS NOT NULL))[1] AS result,
               (array_agg(changes ORDER BY attempt DESC) FILTER (WHERE changes IS NOT NULL))[1] AS changes,
               (array_agg(repository ORDER BY attempt DESC) FILTER (WHERE repository IS NOT NULL))[1] AS repository,
               (array_agg(branch ORDER BY attempt DESC) FILTER (WHERE branch IS NOT NULL))[1] AS branch,
               -- The run began where its first attempt did.
               (array_agg(initial_commit ORDER BY attempt) FILTER (WHERE initial_commit IS NOT NULL))[1] AS initial_commit,
               (array_agg(CASE WHEN acknowledged < coalesce(sealed_sequence, acknowledged + 1)
                               THEN greatest(missing_from, acknowledged + 1) END
                          ORDER BY attempt DESC) FILTER (WHERE missing_from IS NOT NULL))[1] AS missing_from
        FROM run_attempts WHERE run_id = NEW.run_id
    ) a
    WHERE r.id = NEW.run_id;
    RETURN NULL;
END $$;
CREATE TRIGGER run_attempts_new AFTER INSERT ON run_attempts
    FOR EACH ROW EXECUTE FUNCTION runledger_sum_attempts();
CREATE TRIGGER run_attempts_changed AFTER UPDATE ON run_attempts
    FOR EACH ROW WHEN (
        (OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens, OLD.cache_creation_tokens,
         OLD.cost_micro_usd, OLD.turns, OLD.repository, OLD.branch, OLD.initial_commit, OLD.changes,
         OLD.model, OLD.result, OLD.missing_from, OLD.sealed_sequence)
        IS DISTINCT FROM
        (NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens, NEW.cache_creation_tokens,
         NEW.cost_micro_usd, NEW.turns, NEW.repository, NEW.branch, NEW.initial_commit, NEW.changes,
         NEW.model, NEW.result, NEW.missing_from, NEW.sealed_sequence)
        OR NEW.missing_from IS NOT NULL AND OLD.acknowledged <> NEW.acknowledged)
    EXECUTE FUNCTION runledger_sum_attempts();

CREATE TRIGGER users_updated_at BEFORE UPDATE ON users
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER sessions_updated_at BEFORE UPDATE ON sessions
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER messages_updated_at BEFORE UPDATE ON messages
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER workflow_runs_updated_at BEFORE UPDATE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER run_attempts_updated_at BEFORE UPDATE ON run_attempts
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
