-- What do we store? One row per run, which only moves forward; the session that it belongs to and
-- the messages said in it; each attempt's cumulative figures; and the events as they were journalled.
--
-- Names and types of users, sessions, messages and workflow_runs are those that existing readers
-- use, but for counts and cost, which are wider (bigint, numeric(20,6)): a long run has more tokens
-- than an int holds, and every reader of the narrow type reads the wide one.
--
-- These tables may be there already, large and in use. So in every migration, on them:
-- * A column is added with ADD COLUMN IF NOT EXISTS, with a constant default or none and no constraint
--   but NOT NULL: that changes the catalog only. From these lines `runledger migrate` also knows which
--   type a column that is there must have, and which NULLs it has to fill before NOT NULL.
-- * An index is made with CREATE INDEX IF NOT EXISTS: `runledger migrate` has made it CONCURRENTLY
--   before this file runs.
-- * A constraint is added NOT VALID: it holds for new rows at once, without a look at the old ones.
--   `runledger migrate` validates it after this file, under a lock that lets everybody read and write.
-- So this file, one transaction, takes strong locks but for milliseconds, and gives up (to be tried
-- again) rather than queue for one behind a long query, where everybody else would queue behind it.

-- The schema that the connection works in, and nothing that a writer could slip in front of it: what
-- SECURITY DEFINER functions below are bound to.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- Databases of the earlier system have it, perhaps owned by somebody else.
DO $$ BEGIN
    IF to_regprocedure('update_updated_at_column()') IS NULL THEN
        CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.updated_at := now(); RETURN NEW; END';
    END IF;
END $$;

CREATE TABLE IF NOT EXISTS users (id uuid PRIMARY KEY);
ALTER TABLE users
    ADD COLUMN IF NOT EXISTS email        text,
    ADD COLUMN IF NOT EXISTS phone_number text,
    ADD COLUMN IF NOT EXISTS user_data    jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at   timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at   timestamptz NOT NULL DEFAULT now();
-- Named as Postgres names the one of `email text UNIQUE`.
CREATE UNIQUE INDEX IF NOT EXISTS users_email_key ON users (email);

CREATE TABLE IF NOT EXISTS sessions (id uuid PRIMARY KEY);
ALTER TABLE sessions
    ADD COLUMN IF NOT EXISTS namespace     text,
    ADD COLUMN IF NOT EXISTS name          text,
    ADD COLUMN IF NOT EXISTS metadata      jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS message_count int DEFAULT 0,
    ADD COLUMN IF NOT EXISTS created_at    timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at    timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN sessions.namespace IS 'Kubernetes namespace; null in rows that are not ours';
-- Reuse by name must never cross namespaces; rows of others may repeat a name.
CREATE UNIQUE INDEX IF NOT EXISTS sessions_namespace_name_key ON sessions (namespace, name)
    WHERE namespace IS NOT NULL;

CREATE TABLE IF NOT EXISTS workflow_runs (id uuid PRIMARY KEY);
ALTER TABLE workflow_runs
    ADD COLUMN IF NOT EXISTS run_id                 varchar(255) NOT NULL,
    ADD COLUMN IF NOT EXISTS namespace              text,
    ADD COLUMN IF NOT EXISTS name                   text,
    ADD COLUMN IF NOT EXISTS workflow_name          varchar NOT NULL,
    ADD COLUMN IF NOT EXISTS agent_type             varchar,
    ADD COLUMN IF NOT EXISTS ai_model               varchar,
    ADD COLUMN IF NOT EXISTS task_input             text NOT NULL,
    ADD COLUMN IF NOT EXISTS session_id             uuid,
    ADD COLUMN IF NOT EXISTS session_name           varchar(255),
    ADD COLUMN IF NOT EXISTS git_repo               varchar,
    ADD COLUMN IF NOT EXISTS git_branch             varchar,
    ADD COLUMN IF NOT EXISTS initial_commit_hash    varchar,
    ADD COLUMN IF NOT EXISTS final_commit_hash      varchar,
    ADD COLUMN IF NOT EXISTS git_commits            int NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS git_pushed_branch      varchar,
    ADD COLUMN IF NOT EXISTS git_diff_added_lines   bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS git_diff_removed_lines bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS git_diff_files_changed bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS git_diff_stats         jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS status                 varchar(50) NOT NULL DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS reason                 varchar,
    ADD COLUMN IF NOT EXISTS attempt                int NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS result                 text,
    ADD COLUMN IF NOT EXISTS error_message          text,
    ADD COLUMN IF NOT EXISTS created_at             timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS started_at             timestamptz,
    ADD COLUMN IF NOT EXISTS completed_at           timestamptz,
    ADD COLUMN IF NOT EXISTS duration_seconds       int,
    ADD COLUMN IF NOT EXISTS workspace_id           varchar,
    ADD COLUMN IF NOT EXISTS workspace_path         varchar,
    ADD COLUMN IF NOT EXISTS workspace_persistent   boolean NOT NULL DEFAULT true,
    ADD COLUMN IF NOT EXISTS workspace_cleaned_up   boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS temp_workspace         boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS cost_estimate          numeric(20, 6),
    ADD COLUMN IF NOT EXISTS input_tokens           bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS output_tokens          bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_read_tokens      bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS cache_creation_tokens  bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS total_tokens           bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS turns                  bigint NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS transcript_missing_from bigint,
    ADD COLUMN IF NOT EXISTS user_id                uuid,
    ADD COLUMN IF NOT EXISTS metadata               jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS updated_at             timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN workflow_runs.id IS 'metadata.uid of the WorkflowRun; run_id is its text';
COMMENT ON COLUMN workflow_runs.namespace IS 'Kubernetes namespace; null in rows that are not ours';
COMMENT ON COLUMN workflow_runs.transcript_missing_from IS
    'Sequence from which on the last attempt''s events are still on the workspace volume';
CREATE UNIQUE INDEX IF NOT EXISTS workflow_runs_run_id_key ON workflow_runs (run_id);
CREATE INDEX IF NOT EXISTS workflow_runs_workspace_id ON workflow_runs (workspace_id);

CREATE TABLE IF NOT EXISTS messages (id uuid PRIMARY KEY);
ALTER TABLE messages
    ADD COLUMN IF NOT EXISTS session_id   uuid,
    ADD COLUMN IF NOT EXISTS run_id       uuid,
    ADD COLUMN IF NOT EXISTS sequence     bigint,
    ADD COLUMN IF NOT EXISTS role         text NOT NULL,
    ADD COLUMN IF NOT EXISTS text_content text,
    ADD COLUMN IF NOT EXISTS message_type text,
    ADD COLUMN IF NOT EXISTS raw_payload  jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS tool_calls   jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS tool_outputs jsonb DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS usage        jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN IF NOT EXISTS created_at   timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at   timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN messages.sequence IS 'Sequence of its event in the run''s attempt: breaks ties of created_at';
CREATE INDEX IF NOT EXISTS messages_session_id_created_at ON messages (session_id, created_at, sequence);
CREATE INDEX IF NOT EXISTS messages_run_id ON messages (run_id);

-- Where a table was there before, its constraints may be so too, under other names: what a foreign
-- key or a check says is compared, not what it is called. Rows that are not ours (no namespace) are
-- bound by no rule that their writers didn't know.
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN SELECT * FROM (VALUES
        ('sessions', 'sessions_metadata_check',
         'CHECK (namespace IS NULL OR jsonb_typeof(metadata) = ''object'')'),
        ('sessions', 'sessions_message_count_check', 'CHECK (namespace IS NULL OR message_count >= 0)'),
        ('messages', 'messages_session_id_fkey',
         'FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE CASCADE'),
        ('messages', 'messages_run_id_fkey',
         'FOREIGN KEY (run_id) REFERENCES workflow_runs(id) ON DELETE SET NULL'),
        ('messages', 'messages_sequence_check', 'CHECK (sequence > 0)'),
        ('messages', 'messages_usage_check', 'CHECK (jsonb_typeof(usage) = ''object'')'),
        ('workflow_runs', 'workflow_runs_session_id_fkey',
         'FOREIGN KEY (session_id) REFERENCES sessions(id) ON DELETE SET NULL'),
        ('workflow_runs', 'workflow_runs_user_id_fkey',
         'FOREIGN KEY (user_id) REFERENCES users(id) ON DELETE SET NULL'),
        ('workflow_runs', 'workflow_runs_status_check',
         'CHECK (status IN (''pending'', ''running'', ''completed'', ''failed'', ''killed''))'),
        -- All in one, without the NULLs: each statement reads every CHECK of the table anew.
        ('workflow_runs', 'workflow_runs_figures_check',
         'CHECK (least(git_commits, git_diff_added_lines, git_diff_removed_lines, git_diff_files_changed, attempt,
                       duration_seconds, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
                       turns, transcript_missing_from - 1) >= 0)'),
        ('workflow_runs', 'workflow_runs_of_ours_check',
         'CHECK (namespace IS NULL OR jsonb_typeof(metadata) = ''object'' AND total_tokens =
                 input_tokens + output_tokens + cache_read_tokens + cache_creation_tokens
                 AND (status NOT IN (''completed'', ''failed'', ''killed'') OR completed_at IS NOT NULL))')
    ) AS c (tab, name, says) LOOP
        IF NOT EXISTS (
            SELECT FROM pg_constraint k WHERE k.conrelid = to_regclass(c.tab)
            AND (k.conname = c.name OR k.contype = 'f' AND pg_get_constraintdef(k.oid) LIKE c.says || '%')
        ) THEN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I %s NOT VALID', c.tab, c.name, c.says);
        END IF;
    END LOOP;
END $$;

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

-- Up to where an attempt's events are stored without a gap: it is known up to `base`, beyond it there are
-- those in the table and those of `ahead`. A function, in plpgsql, since who asks for one day of many
-- plans for that day, each time: this query then, and not the whole statement that it would be in.
CREATE FUNCTION runledger_stored_up_to(run uuid, attempt int, day date, base bigint, ahead bigint[])
RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN (
    SELECT coalesce(max(s.sequence), $4)
    FROM (SELECT x.sequence, row_number() OVER (ORDER BY x.sequence) AS n
          FROM (SELECT e.sequence FROM run_events e
                WHERE e.run_id = $1 AND e.attempt = $2 AND e.started_day = $3 AND e.sequence > $4
                UNION ALL SELECT unnest($5)) x) s
    WHERE s.sequence = $4 + s.n
); END $$;

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
    NEW.metadata := coalesce(OLD.metadata, '{}') || coalesce(NEW.metadata, '{}');
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
-- Writers of before know nothing of our rules: what they leave out or set to NULL gets its default,
-- and a session or user that is not there (they had no foreign keys) is kept in the metadata instead.
-- SECURITY DEFINER, since they may have no right to read the tables that are looked at.
CREATE FUNCTION runledger_complete_row_of_others() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    kept jsonb := '{}';
BEGIN
    NEW.status := coalesce(NEW.status, 'pending');
    NEW.created_at := coalesce(NEW.created_at, now());
    NEW.updated_at := coalesce(NEW.updated_at, now());
    NEW.git_commits := coalesce(NEW.git_commits, 0);
    NEW.git_diff_added_lines := coalesce(NEW.git_diff_added_lines, 0);
    NEW.git_diff_removed_lines := coalesce(NEW.git_diff_removed_lines, 0);
    NEW.git_diff_files_changed := coalesce(NEW.git_diff_files_changed, 0);
    NEW.git_diff_stats := coalesce(NEW.git_diff_stats, '{}');
    NEW.attempt := coalesce(NEW.attempt, 0);
    NEW.workspace_persistent := coalesce(NEW.workspace_persistent, true);
    NEW.workspace_cleaned_up := coalesce(NEW.workspace_cleaned_up, false);
    NEW.temp_workspace := coalesce(NEW.temp_workspace, false);
    NEW.input_tokens := coalesce(NEW.input_tokens, 0);
    NEW.output_tokens := coalesce(NEW.output_tokens, 0);
    NEW.cache_read_tokens := coalesce(NEW.cache_read_tokens, 0);
    NEW.cache_creation_tokens := coalesce(NEW.cache_creation_tokens, 0);
    NEW.total_tokens := coalesce(NEW.total_tokens, 0);
    NEW.turns := coalesce(NEW.turns, 0);
    NEW.metadata := coalesce(NEW.metadata, '{}');
    IF NEW.session_id IS NOT NULL AND NOT EXISTS (SELECT FROM sessions s WHERE s.id = NEW.session_id) THEN
        kept := jsonb_build_object('session_id', NEW.session_id);
        NEW.session_id := NULL;
    END IF;
    IF NEW.user_id IS NOT NULL AND NOT EXISTS (SELECT FROM users u WHERE u.id = NEW.user_id) THEN
        kept := kept || jsonb_build_object('user_id', NEW.user_id);
        NEW.user_id := NULL;
    END IF;
    IF kept <> '{}' AND jsonb_typeof(NEW.metadata) = 'object' THEN
        NEW.metadata := NEW.metadata
            || jsonb_build_object('legacy', coalesce(NEW.metadata -> 'legacy', '{}') || kept);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER workflow_runs_completes_row_of_others BEFORE INSERT OR UPDATE ON workflow_runs
    FOR EACH ROW WHEN (NEW.namespace IS NULL) EXECUTE FUNCTION runledger_complete_row_of_others();

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

-- As the earlier system's tables have it, under whatever name.
DO $$
DECLARE
    tab text;
BEGIN
    FOREACH tab IN ARRAY ARRAY['users', 'sessions', 'messages', 'workflow_runs', 'run_attempts'] LOOP
        IF NOT EXISTS (
            SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass(tab)
            AND t.tgfoid = to_regprocedure('update_updated_at_column()')
        ) THEN
            EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE ON %I FOR EACH ROW
                            EXECUTE FUNCTION update_updated_at_column()', tab || '_updated_at', tab);
        END IF;
    END LOOP;
END $$;

-- What migrate and the import do to rows of before is not an update to those who order by updated_at.
-- Triggers fire in the order of their names: this one is last.
CREATE OR REPLACE FUNCTION runledger_keep_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := coalesce(OLD.updated_at, now());
    RETURN NEW;
END $$;
DO $$
DECLARE
    tab text;
BEGIN
    FOREACH tab IN ARRAY ARRAY['users', 'sessions', 'messages', 'workflow_runs'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER zz_runledger_keeps_updated_at BEFORE UPDATE ON %I FOR EACH ROW
                        WHEN (current_setting(''runledger.backfill'', true) = ''on'')
                        EXECUTE FUNCTION runledger_keep_updated_at()', tab);
    END LOOP;
END $$;
