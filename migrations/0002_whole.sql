-- The whole ledger: what existing readers of users, agents, sessions and messages know, where a run
-- ran and with what, its labels, what each model used and what that costs, and who did what to it.
--
-- Locks: as the head of 0001 says. Columns without constraints and IF NOT EXISTS, indexes IF NOT EXISTS,
-- constraints NOT VALID: on tables with rows `runledger migrate` does the long part of each beside this
-- file's transaction, while everybody reads and writes.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- agents, and the columns of the others, by the names that existing readers use.

CREATE TABLE IF NOT EXISTS agents (id serial PRIMARY KEY);
ALTER TABLE agents
    ADD COLUMN IF NOT EXISTS name        text NOT NULL,
    ADD COLUMN IF NOT EXISTS type        text NOT NULL,
    ADD COLUMN IF NOT EXISTS model       text NOT NULL,
    ADD COLUMN IF NOT EXISTS description text,
    ADD COLUMN IF NOT EXISTS version     text,
    ADD COLUMN IF NOT EXISTS config      jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS active      boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS run_id      int DEFAULT 0,
    ADD COLUMN IF NOT EXISTS created_at  timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at  timestamptz NOT NULL DEFAULT now();
-- Named as Postgres names the one of `name text UNIQUE`.
CREATE UNIQUE INDEX IF NOT EXISTS agents_name_key ON agents (name);
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = to_regclass('agents')
                   AND tgfoid = to_regprocedure('update_updated_at_column()')) THEN
        CREATE TRIGGER agents_updated_at BEFORE UPDATE ON agents
            FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
    END IF;
END $$;

ALTER TABLE sessions
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS agent_id int,
    ADD COLUMN IF NOT EXISTS agent_name text,
    ADD COLUMN IF NOT EXISTS platform text,
    ADD COLUMN IF NOT EXISTS run_finished_at timestamptz,
    ADD COLUMN IF NOT EXISTS parent_session_id uuid,
    ADD COLUMN IF NOT EXISTS branch_point_message_id uuid,
    ADD COLUMN IF NOT EXISTS branch_type text,
    ADD COLUMN IF NOT EXISTS is_main_branch boolean DEFAULT true,
    ADD COLUMN IF NOT EXISTS last_position bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN sessions.last_position IS 'Highest position among its messages';
-- Sessions of a namespace, the one last spoken in first.
CREATE INDEX IF NOT EXISTS sessions_namespace_updated_at ON sessions (namespace, updated_at DESC, id DESC)
    WHERE namespace IS NOT NULL;

ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS user_id uuid,
    ADD COLUMN IF NOT EXISTS agent_id int,
    ADD COLUMN IF NOT EXISTS media_url text,
    ADD COLUMN IF NOT EXISTS mime_type text,
    ADD COLUMN IF NOT EXISTS context jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS system_prompt text,
    ADD COLUMN IF NOT EXISTS user_feedback text,
    ADD COLUMN IF NOT EXISTS flagged text,
    ADD COLUMN IF NOT EXISTS channel_payload jsonb,
    ADD COLUMN IF NOT EXISTS position bigint;
COMMENT ON COLUMN messages.position IS
    'Order of arrival in its session, given out under the session''s lock: who has read up to one and asks for what is after it misses nothing. Null in rows from before Runledger';
-- What a session's reader has not seen yet.
CREATE INDEX IF NOT EXISTS messages_session_id_position ON messages (session_id, position)
    WHERE position IS NOT NULL;

-- Our own writers number a batch at once; who knows nothing of positions gets one here, and may have no
-- right to touch sessions.
CREATE FUNCTION runledger_message_position() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE sessions SET last_position = last_position + 1 WHERE id = NEW.session_id
        RETURNING last_position INTO NEW.position;
    RETURN NEW;
END $$;
CREATE TRIGGER messages_position BEFORE INSERT ON messages
    FOR EACH ROW WHEN (NEW.position IS NULL AND NEW.session_id IS NOT NULL)
    EXECUTE FUNCTION runledger_message_position();

-- Where a run ran, and with what.

ALTER TABLE workflow_runs
    ADD COLUMN IF NOT EXISTS cluster     text,
    ADD COLUMN IF NOT EXISTS agent_image text,
    ADD COLUMN IF NOT EXISTS cli_version text,
    ADD COLUMN IF NOT EXISTS settings    jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS cost_source text,
    ADD COLUMN IF NOT EXISTS model_usage jsonb NOT NULL DEFAULT '{}';
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT * FROM (VALUES
        ('sessions', 'sessions_user_id_fkey', 'FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE SET NULL'),
        ('sessions', 'sessions_agent_id_fkey', 'FOREIGN KEY (agent_id) REFERENCES agents(id) ON DELETE CASCADE'),
        ('sessions', 'sessions_parent_session_id_fkey',
         'FOREIGN KEY (parent_session_id) REFERENCES sessions(id) ON DELETE CASCADE'),
        ('sessions', 'sessions_branch_point_message_id_fkey',
         'FOREIGN KEY (branch_point_message_id) REFERENCES messages(id) ON DELETE SET NULL'),
        ('messages', 'messages_user_id_fkey', 'FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE SET NULL'),
        ('messages', 'messages_agent_id_fkey', 'FOREIGN KEY (agent_id) REFERENCES agents(id) ON DELETE CASCADE'),
        ('messages', 'messages_position_check', 'CHECK (position > 0)'),
        ('workflow_runs', 'workflow_runs_objects_check',
         'CHECK (jsonb_typeof(settings) = ''object'' AND jsonb_typeof(model_usage) = ''object'')'),
        ('workflow_runs', 'workflow_runs_cost_check',
         'CHECK (cost_estimate >= 0 AND (cost_source IS NULL OR cost_estimate IS NOT NULL)
                 AND cost_source IN (''sdk'', ''prices'', ''mixed'', ''partial''))')
    ) AS c (tab, name, says) LOOP
        IF NOT EXISTS (
            SELECT FROM pg_constraint k WHERE k.conrelid = to_regclass(c.tab)
            AND (k.conname = c.name OR k.contype = 'f' AND pg_get_constraintdef(k.oid) LIKE c.says || '%')
        ) THEN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I %s NOT VALID', c.tab, c.name, c.says);
        END IF;
    END LOOP;
END $$;
COMMENT ON COLUMN workflow_runs.settings IS 'The spec as it was resolved: model, maxTurns, timeout';
COMMENT ON COLUMN workflow_runs.cost_source IS
    'sdk: the SDK''s figure; prices: tokens x price; mixed: some attempts each; partial: some usage has no known price, so the run cost more';
COMMENT ON COLUMN workflow_runs.model_usage IS
    'What each model used: {model: {input, output, cache_read, cache_creation, cost, unpriced}}; under the empty name what nobody told the model of. Empty where nothing is known by model';
COMMENT ON COLUMN workflow_runs.workspace_path IS
    'pvc://namespace/claim/work, or pod://namespace/pod/work where the volume went with its pod';

ALTER TABLE run_attempts
    ADD COLUMN cli_version   text,
    ADD COLUMN told_requests bigint NOT NULL DEFAULT 0 CHECK (told_requests >= 0);
COMMENT ON COLUMN run_attempts.told_requests IS 'Requests whose events are stored, and which run_model_usage counts';

-- Volumes with a life of their own. workflow_runs.workspace_id is the text of its id, without a
-- foreign key: rows of the earlier system hold other texts there.
CREATE TABLE workspaces (
    id         uuid PRIMARY KEY,
    cluster    text,
    namespace  text NOT NULL,
    name       text NOT NULL,
    claim      text,
    created_at timestamptz NOT NULL,
    removed_at timestamptz CHECK (removed_at >= created_at),
    updated_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN workspaces.id IS 'metadata.uid of the Workspace';
COMMENT ON COLUMN workspaces.removed_at IS 'When the Workspace and its volume were gone';
-- Workspaces that were there when last looked at.
CREATE INDEX workspaces_there ON workspaces (cluster) WHERE removed_at IS NULL;
CREATE TRIGGER workspaces_updated_at BEFORE UPDATE ON workspaces
    FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();

-- Narrow, and with what a list by label is ordered by, so that its index alone finds the page.
CREATE TABLE run_labels (
    run_id     uuid NOT NULL REFERENCES workflow_runs (id) ON DELETE CASCADE,
    key        text NOT NULL,
    value      text NOT NULL,
    namespace  text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, key)
);
COMMENT ON TABLE run_labels IS 'metadata.labels of the WorkflowRun; created_at is the run''s';
-- Runs of a namespace by label, newest first.
CREATE INDEX run_labels_value ON run_labels (namespace, key, value, created_at DESC, run_id DESC);

-- Tools that a run has called, in the order of first use: told in one look for 50,000 calls too.
CREATE TABLE run_tools (
    run_id   uuid NOT NULL REFERENCES workflow_runs (id) ON DELETE CASCADE,
    tool     text NOT NULL,
    calls    bigint NOT NULL CHECK (calls > 0),
    first_at timestamptz NOT NULL,
    PRIMARY KEY (run_id, tool)
);

-- Cost.

CREATE TABLE model_prices (
    pattern         text NOT NULL CHECK (pattern <> ''),
    kind            text NOT NULL CHECK (kind IN ('input', 'output', 'cache_read', 'cache_creation')),
    valid_from      timestamptz NOT NULL,
    usd_per_million numeric(20, 6) NOT NULL CHECK (usd_per_million >= 0),
    like_pattern    text NOT NULL GENERATED ALWAYS AS
        (replace(replace(replace(replace(pattern, '\', '\\'), '%', '\%'), '_', '\_'), '*', '%')) STORED,
    PRIMARY KEY (pattern, kind, valid_from)
);
COMMENT ON COLUMN model_prices.pattern IS 'Name of a model; * stands for any characters. The longest that matches counts';

-- US dollars for a million tokens, which is micro-dollars for one. Nothing where no price is known. In
-- plpgsql, which plans it once in a session and not in each statement.
CREATE FUNCTION runledger_price(model text, kind text, at timestamptz) RETURNS numeric
LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN (
    SELECT p.usd_per_million FROM model_prices p
    WHERE p.kind = $2 AND p.valid_from <= $3 AND $1 LIKE p.like_pattern
    ORDER BY length(replace(p.pattern, '*', '')) DESC, p.pattern, p.valid_from DESC LIMIT 1
); END $$;

-- Tokens x price, in micro-dollars; nothing where a kind that was used has no price.
CREATE FUNCTION runledger_cost(model text, at timestamptz, input bigint, output bigint,
                               cache_read bigint, cache_creation bigint) RETURNS numeric
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN $3 = 0 THEN 0 ELSE $3 * runledger_price($1, 'input', $2) END
         + CASE WHEN $4 = 0 THEN 0 ELSE $4 * runledger_price($1, 'output', $2) END
         + CASE WHEN $5 = 0 THEN 0 ELSE $5 * runledger_price($1, 'cache_read', $2) END
         + CASE WHEN $6 = 0 THEN 0 ELSE $6 * runledger_price($1, 'cache_creation', $2) END
$$;

-- What each model used in an attempt: sums over its requests, each counted once, with its event.
CREATE TABLE run_model_usage (
    run_id                uuid NOT NULL,
    attempt               int NOT NULL,
    model                 text NOT NULL,
    input_tokens          bigint NOT NULL CHECK (input_tokens >= 0),
    output_tokens         bigint NOT NULL CHECK (output_tokens >= 0),
    cache_read_tokens     bigint NOT NULL CHECK (cache_read_tokens >= 0),
    cache_creation_tokens bigint NOT NULL CHECK (cache_creation_tokens >= 0),
    requests              bigint NOT NULL CHECK (requests > 0),
    estimated_requests    bigint NOT NULL CHECK (estimated_requests >= 0),
    api_milliseconds      bigint NOT NULL CHECK (api_milliseconds >= 0),
    cost_micro_usd        numeric(26, 6) CHECK (cost_micro_usd >= 0),
    first_at              timestamptz NOT NULL,
    PRIMARY KEY (run_id, attempt, model),
    FOREIGN KEY (run_id, attempt) REFERENCES run_attempts (run_id, attempt) ON DELETE CASCADE
);
-- What has no price yet, for when one comes.
CREATE INDEX run_model_usage_unpriced ON run_model_usage (model) WHERE cost_micro_usd IS NULL;
COMMENT ON COLUMN run_model_usage.model IS 'In the response''s words; unknown where none came';
COMMENT ON COLUMN run_model_usage.cost_micro_usd IS
    'Tokens x price when each request was made; null where a price was not known. The SDK''s own figure is in run_attempts';

-- Who killed, wrote, resumed, when, and whether they were let. No foreign keys: it outlives what it
-- speaks of.
CREATE TABLE audit (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    actor      text NOT NULL CHECK (actor <> ''),
    action     text NOT NULL CHECK (action IN ('kill', 'write', 'resume')),
    allowed    boolean NOT NULL,
    namespace  text NOT NULL,
    run_id     uuid,
    session_id uuid,
    detail     text,
    request    text,
    CHECK (run_id IS NOT NULL OR session_id IS NOT NULL)
);
COMMENT ON COLUMN audit.request IS
    'How the cluster was asked, where nobody but the controller saw it: such a deed is written down once';
-- Written by whoever mirrors the run, each time.
CREATE UNIQUE INDEX audit_request ON audit (run_id, action, request) WHERE request IS NOT NULL;
-- What was done in a namespace, to a run, in a session: latest first.
CREATE INDEX audit_namespace ON audit (namespace, id DESC);
CREATE INDEX audit_run_id ON audit (run_id, id DESC) WHERE run_id IS NOT NULL;
CREATE INDEX audit_session_id ON audit (session_id, id DESC) WHERE session_id IS NOT NULL;

CREATE FUNCTION runledger_audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what is in the audit is not rewritten' USING ERRCODE = 'RL001';
END $$;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION runledger_audit_stays();

-- A run in a session that had one takes the session up again, whoever brings its row first. Who asked
-- for it, the API server knows and tells nobody.
CREATE FUNCTION runledger_session_resumed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM workflow_runs r WHERE r.session_id = NEW.session_id
               AND (r.created_at, r.id) < (NEW.created_at, NEW.id)) THEN
        INSERT INTO audit (at, actor, action, allowed, namespace, run_id, session_id, request)
        VALUES (NEW.created_at, 'unknown', 'resume', true, NEW.namespace, NEW.id, NEW.session_id, 'WorkflowRun')
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER workflow_runs_session_resumed AFTER INSERT ON workflow_runs
    FOR EACH ROW WHEN (NEW.namespace IS NOT NULL AND NEW.session_id IS NOT NULL)
    EXECUTE FUNCTION runledger_session_resumed();

-- Existing readers look at the session for when its last run ended.
CREATE FUNCTION runledger_session_finished() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE sessions SET run_finished_at = NEW.completed_at
    WHERE id = NEW.session_id AND (run_finished_at IS NULL OR run_finished_at < NEW.completed_at);
    RETURN NULL;
END $$;
CREATE TRIGGER workflow_runs_session_finished AFTER INSERT OR UPDATE OF completed_at ON workflow_runs
    FOR EACH ROW WHEN (NEW.namespace IS NOT NULL AND NEW.session_id IS NOT NULL AND NEW.completed_at IS NOT NULL)
    EXECUTE FUNCTION runledger_session_finished();

-- Indexes of workflow_runs, each for a query. There is none on status alone (five values), nor on JSON
-- (a row's statistics are read, never searched).
-- Runs of all namespaces, or since some time, newest first; existing readers know no namespaces.
CREATE INDEX IF NOT EXISTS workflow_runs_created_at ON workflow_runs (created_at DESC, id DESC);
-- Runs of a namespace, newest first.
CREATE INDEX IF NOT EXISTS workflow_runs_namespace_created_at ON workflow_runs (namespace, created_at DESC, id DESC);
-- Runs of a namespace and status, newest first.
CREATE INDEX IF NOT EXISTS workflow_runs_namespace_status ON workflow_runs (namespace, status, created_at DESC, id DESC);
-- Runs of a session with what they cost; the state of a session in a list; its foreign key.
CREATE INDEX IF NOT EXISTS workflow_runs_session_id ON workflow_runs (session_id, created_at DESC, id DESC);
-- Runs of a workflow, of a branch, of a user (and the foreign key of that), newest first.
CREATE INDEX IF NOT EXISTS workflow_runs_workflow_name ON workflow_runs (workflow_name, created_at DESC, id DESC);
CREATE INDEX IF NOT EXISTS workflow_runs_git_branch ON workflow_runs (git_branch, created_at DESC, id DESC)
    WHERE git_branch IS NOT NULL;
CREATE INDEX IF NOT EXISTS workflow_runs_user_id ON workflow_runs (user_id, created_at DESC, id DESC)
    WHERE user_id IS NOT NULL;
-- What is under way, among millions that have ended.
CREATE INDEX IF NOT EXISTS workflow_runs_active ON workflow_runs (namespace, created_at DESC, id DESC)
    WHERE status IN ('pending', 'running');
-- Whose volume goes with its pod, and may still be there.
CREATE INDEX IF NOT EXISTS workflow_runs_volume_of_pod ON workflow_runs (cluster)
    WHERE NOT workspace_persistent AND NOT workspace_cleaned_up;
-- workflow_runs_workspace_id stays: whose volume a run was on, and what to mark once it is gone.

-- A run's row moves forward, whoever writes it. What would undo something is refused with SQLSTATE
-- RL001; metadata and settings are merged.
CREATE OR REPLACE FUNCTION runledger_run_moves_forward() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wrong text;
BEGIN
    NEW.metadata := coalesce(OLD.metadata, '{}') || coalesce(NEW.metadata, '{}');
    NEW.settings := OLD.settings || NEW.settings;
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
        -- The sum over the attempts may: the SDK's figure takes the place of tokens x price.
        WHEN pg_trigger_depth() = 1
             AND coalesce(NEW.cost_estimate, 0) < coalesce(OLD.cost_estimate, 0) THEN 'cost falls'
        WHEN OLD.task_input <> runledger_no_task() AND NEW.task_input <> OLD.task_input
            THEN 'the task was filled in before'
        WHEN OLD.workflow_name <> 'unknown' AND (NEW.workflow_name <> OLD.workflow_name
             OR NEW.created_at <> OLD.created_at) THEN 'its origin was filled in before'
        WHEN OLD.cluster IS NOT NULL AND NEW.cluster IS DISTINCT FROM OLD.cluster
            THEN 'its cluster was filled in before'
        WHEN OLD.started_at IS NOT NULL AND NEW.started_at IS DISTINCT FROM OLD.started_at
            THEN 'started_at was set before'
        WHEN OLD.completed_at IS NOT NULL AND NEW.completed_at IS DISTINCT FROM OLD.completed_at
            THEN 'completed_at was set before'
        WHEN OLD.workspace_cleaned_up AND NOT NEW.workspace_cleaned_up
            THEN 'its workspace was cleaned up before'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'workflow_runs % only moves forward: %', OLD.run_id, wrong USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;

-- What each model used in all of a run's attempts. Tokens are those of its requests; what an attempt
-- used beyond (the events are not all here) stands under no name. The SDK's figure is for all models of
-- an attempt: it is shared out as tokens x price says, where all of them have a price, and is the only
-- model's where there is but one; otherwise nobody knows whose it is, and it stands under no name too.
CREATE FUNCTION runledger_usage_by_model(run uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN (
    WITH used AS (
        SELECT m.attempt, m.model, m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_creation_tokens,
               t.cost_micro_usd AS told, m.cost_micro_usd AS priced,
               count(*) OVER (PARTITION BY m.attempt) AS models,
               bool_and(m.cost_micro_usd IS NOT NULL) OVER (PARTITION BY m.attempt) AS all_priced,
               sum(m.cost_micro_usd) OVER (PARTITION BY m.attempt) AS all_cost
        FROM run_model_usage m JOIN run_attempts t ON t.run_id = m.run_id AND t.attempt = m.attempt
        -- A request that was refused used nothing.
        WHERE m.run_id = run
          AND (m.input_tokens > 0 OR m.output_tokens > 0 OR m.cache_read_tokens > 0 OR m.cache_creation_tokens > 0)
    ), shared AS (
        SELECT *, CASE WHEN told IS NULL THEN priced
                       WHEN models = 1 OR told = 0 THEN told
                       WHEN all_priced AND all_cost > 0 THEN told * priced / all_cost END AS cost
        FROM used
    ), parts AS (
        SELECT model, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens, cost,
               cost IS NULL AS unpriced
        FROM shared
        UNION ALL
        SELECT '', greatest(t.input_tokens - s.input, 0), greatest(t.output_tokens - s.output, 0),
               greatest(t.cache_read_tokens - s.cache_read, 0), greatest(t.cache_creation_tokens - s.cache_creation, 0),
               CASE WHEN s.cost IS NULL THEN t.cost_micro_usd END, t.cost_micro_usd IS NULL
        FROM run_attempts t LEFT JOIN LATERAL (
            SELECT coalesce(sum(u.input_tokens), 0) AS input, coalesce(sum(u.output_tokens), 0) AS output,
                   coalesce(sum(u.cache_read_tokens), 0) AS cache_read,
                   coalesce(sum(u.cache_creation_tokens), 0) AS cache_creation, sum(u.cost) AS cost
            FROM shared u WHERE u.attempt = t.attempt
        ) s ON true
        WHERE t.run_id = run AND EXISTS (SELECT FROM used)
          AND (t.input_tokens > s.input OR t.output_tokens > s.output OR t.cache_read_tokens > s.cache_read
               OR t.cache_creation_tokens > s.cache_creation OR t.cost_micro_usd > 0 AND s.cost IS NULL)
    )
    SELECT coalesce(jsonb_object_agg(model, jsonb_build_object(
        'input', input, 'output', output, 'cache_read', cache_read, 'cache_creation', cache_creation,
        -- Rounded so that the sum is the run's cost to the last digit.
        'cost', trim_scale(round(cost, 6) + CASE rank WHEN 1 THEN rest ELSE 0 END),
        'unpriced', unpriced)), '{}')
    FROM (
        SELECT *, row_number() OVER (ORDER BY cost DESC NULLS LAST, model) AS rank,
               round(sum(cost) OVER (), 6) - sum(round(cost, 6)) OVER () AS rest
        FROM (
            SELECT model, sum(input_tokens) AS input, sum(output_tokens) AS output, sum(cache_read_tokens) AS cache_read,
                   sum(cache_creation_tokens) AS cache_creation, sum(cost) / 1000000 AS cost,
                   bool_or(unpriced) AS unpriced
            FROM parts GROUP BY model
        ) m
    ) by_model
); END $$;

-- A run's figures are a function of its attempts: sums, and the word of the latest attempt that has
-- one. So it doesn't matter who wrote them first. An attempt costs what the SDK said, else tokens x
-- price of what its models used. In plpgsql, as what it calls: there each session plans it once and not
-- with each batch of events.
CREATE FUNCTION runledger_sum_run(run uuid) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE workflow_runs r SET
        input_tokens = a.input_tokens,
        output_tokens = a.output_tokens,
        cache_read_tokens = a.cache_read_tokens,
        cache_creation_tokens = a.cache_creation_tokens,
        total_tokens = a.input_tokens + a.output_tokens + a.cache_read_tokens + a.cache_creation_tokens,
        cost_estimate = round(a.cost / 1000000, 6)::numeric(20, 6),
        cost_source = CASE
            WHEN a.cost IS NULL THEN NULL
            WHEN a.unpriced THEN 'partial'
            WHEN NOT a.priced THEN 'sdk'
            WHEN NOT a.told THEN 'prices'
            ELSE 'mixed'
        END,
        model_usage = runledger_usage_by_model(run),
        turns = a.turns,
        attempt = greatest(r.attempt, a.attempt),
        ai_model = coalesce(a.model, r.ai_model),
        cli_version = coalesce(a.cli_version, r.cli_version),
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
        git_diff_stats = coalesce(a.changes -> 'stats', '{}'),
        transcript_missing_from = a.missing_from
    FROM (
        SELECT sum(input_tokens)::bigint AS input_tokens,
               sum(output_tokens)::bigint AS output_tokens,
               sum(cache_read_tokens)::bigint AS cache_read_tokens,
               sum(cache_creation_tokens)::bigint AS cache_creation_tokens,
               sum(coalesce(t.cost_micro_usd, u.cost)) AS cost,
               coalesce(bool_or(t.cost_micro_usd IS NOT NULL), false) AS told,
               coalesce(bool_or(t.cost_micro_usd IS NULL AND u.cost > 0), false) AS priced,
               coalesce(bool_or(t.cost_micro_usd IS NULL
                   AND (u.unpriced OR t.input_tokens + t.output_tokens + t.cache_read_tokens
                        + t.cache_creation_tokens > coalesce(u.tokens, 0))), false) AS unpriced,
               sum(turns)::bigint AS turns,
               max(attempt) AS attempt,
               (array_agg(model ORDER BY attempt DESC) FILTER (WHERE model IS NOT NULL))[1] AS model,
               (array_agg(cli_version ORDER BY attempt DESC) FILTER (WHERE cli_version IS NOT NULL))[1] AS cli_version,
               (array_agg(result ORDER BY attempt DESC) FILTER (WHERE result IS NOT NULL))[1] AS result,
               (array_agg(changes ORDER BY attempt DESC) FILTER (WHERE changes IS NOT NULL))[1] AS changes,
               (array_agg(repository ORDER BY attempt DESC) FILTER (WHERE repository IS NOT NULL))[1] AS repository,
               (array_agg(branch ORDER BY attempt DESC) FILTER (WHERE branch IS NOT NULL))[1] AS branch,
               -- The run began where its first attempt did.
               (array_agg(initial_commit ORDER BY attempt) FILTER (WHERE initial_commit IS NOT NULL))[1] AS initial_commit,
               (array_agg(CASE WHEN acknowledged < coalesce(sealed_sequence, acknowledged + 1)
                               THEN greatest(missing_from, acknowledged + 1) END
                          ORDER BY attempt DESC) FILTER (WHERE missing_from IS NOT NULL))[1] AS missing_from
        FROM run_attempts t
        LEFT JOIN LATERAL (
            SELECT sum(m.cost_micro_usd) AS cost,
                   bool_or(m.cost_micro_usd IS NULL) AS unpriced,
                   sum(m.input_tokens + m.output_tokens + m.cache_read_tokens + m.cache_creation_tokens) AS tokens
            FROM run_model_usage m WHERE m.run_id = t.run_id AND m.attempt = t.attempt
        ) u ON true
        WHERE t.run_id = run
    ) a
    WHERE r.id = run AND a.attempt IS NOT NULL;
END $$;

-- With its owner's rights: neither controller nor server has any on these columns.
CREATE FUNCTION runledger_sum_attempts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM runledger_sum_run(NEW.run_id);
    RETURN NULL;
END $$;
CREATE TRIGGER run_attempts_new AFTER INSERT ON run_attempts
    FOR EACH ROW EXECUTE FUNCTION runledger_sum_attempts();
CREATE TRIGGER run_attempts_changed AFTER UPDATE ON run_attempts
    FOR EACH ROW WHEN (
        (OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens, OLD.cache_creation_tokens,
         OLD.cost_micro_usd, OLD.turns, OLD.repository, OLD.branch, OLD.initial_commit, OLD.changes,
         OLD.model, OLD.cli_version, OLD.result, OLD.missing_from, OLD.sealed_sequence, OLD.told_requests)
        IS DISTINCT FROM
        (NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens, NEW.cache_creation_tokens,
         NEW.cost_micro_usd, NEW.turns, NEW.repository, NEW.branch, NEW.initial_commit, NEW.changes,
         NEW.model, NEW.cli_version, NEW.result, NEW.missing_from, NEW.sealed_sequence, NEW.told_requests)
        OR NEW.missing_from IS NOT NULL AND OLD.acknowledged <> NEW.acknowledged)
    EXECUTE FUNCTION runledger_sum_attempts();
