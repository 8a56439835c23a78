-- What a writer could still slip past the rules, or a reader past its rights.
--
-- Locks: as the head of 0001 says. Functions are replaced without one on a table; a constraint is dropped
-- and comes again NOT VALID, which changes the catalog only; a comment on an index stops nobody's reading
-- or writing. One column was not added as that head says: 0002's run_attempts.told_requests, with its
-- CHECK, has the table read under a lock. In an adoption that table is 0001's own, and empty.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- A run's row moves forward, whoever writes it. What would undo something is refused with SQLSTATE
-- RL001; metadata and settings are merged. Bound to our schema: where the writer's own search_path leads,
-- a function or operator of the same name may stand, or nothing. (That costs an update some microseconds.
-- And it may be anybody's update: what a foreign key does to this row is done in the owner's name.)
CREATE OR REPLACE FUNCTION runledger_run_moves_forward() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    wrong text;
BEGIN
    -- Others' rows may hold anything that is JSON, and only objects can be merged.
    NEW.metadata := CASE
        WHEN jsonb_typeof(OLD.metadata) = 'object' AND jsonb_typeof(NEW.metadata) = 'object'
            THEN OLD.metadata || NEW.metadata
        WHEN coalesce(jsonb_typeof(NEW.metadata), 'null') = 'null' THEN coalesce(OLD.metadata, '{}')
        ELSE NEW.metadata
    END;
    NEW.settings := OLD.settings || NEW.settings;
    wrong := CASE
        WHEN NEW.id <> OLD.id OR NEW.run_id <> OLD.run_id THEN 'its id never changes'
        -- Without one it would be a row of others, which less is asked of.
        WHEN OLD.namespace IS NOT NULL AND NEW.namespace IS DISTINCT FROM OLD.namespace
            THEN 'its namespace was filled in before'
        WHEN NEW.status <> OLD.status
             AND runledger_status_rank(NEW.status) <= runledger_status_rank(OLD.status)
            THEN format('status goes from %s to %s', OLD.status, NEW.status)
        WHEN NEW.input_tokens < OLD.input_tokens OR NEW.output_tokens < OLD.output_tokens
             OR NEW.cache_read_tokens < OLD.cache_read_tokens
             OR NEW.cache_creation_tokens < OLD.cache_creation_tokens
             OR NEW.total_tokens < OLD.total_tokens THEN 'tokens fall'
        WHEN NEW.turns < OLD.turns THEN 'turns fall'
        WHEN NEW.attempt < OLD.attempt THEN 'attempt falls'
        -- The sum over the attempts may: the SDK's figure takes the place of tokens x price. From what is
        -- no number, nothing falls.
        WHEN pg_trigger_depth() = 1
             AND coalesce(NEW.cost_estimate, 0) < coalesce(nullif(OLD.cost_estimate, 'NaN'), 0) THEN 'cost falls'
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
        WHEN jsonb_typeof(NEW.metadata) <> 'object' AND jsonb_typeof(OLD.metadata) = 'object'
             AND OLD.metadata <> '{}' THEN 'its metadata is an object'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'workflow_runs % only moves forward: %', OLD.run_id, wrong USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION runledger_attempt_moves_forward() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
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
             OR NEW.told_requests < OLD.told_requests THEN 'requests fall'
        WHEN NEW.acknowledged < OLD.acknowledged OR NEW.model_sequence < OLD.model_sequence
             OR NEW.result_sequence < OLD.result_sequence THEN 'the sequence falls'
        WHEN OLD.sealed_sequence IS NOT NULL AND NEW.sealed_sequence IS DISTINCT FROM OLD.sealed_sequence
            THEN 'it was sealed before'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'run_attempts % of % only moves forward: %', OLD.attempt, OLD.run_id, wrong
            USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;

ALTER FUNCTION runledger_keep_updated_at() SET search_path FROM CURRENT;
ALTER FUNCTION runledger_audit_stays() SET search_path FROM CURRENT;
-- 0010 bound these to the search_path of whoever migrated, where a temporary table comes first.
ALTER FUNCTION runledger_roll_up() SET search_path FROM CURRENT;
ALTER FUNCTION runledger_fold_rollups(int) SET search_path FROM CURRENT;
-- Where it is ours (0001), it names the one thing that it needs in full; that is cheaper.
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_proc WHERE oid = to_regprocedure('update_updated_at_column()')
               AND prosrc = 'BEGIN NEW.updated_at := now(); RETURN NEW; END' AND pg_has_role(proowner, 'USAGE')) THEN
        CREATE OR REPLACE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.updated_at := pg_catalog.now(); RETURN NEW; END';
    END IF;
END $$;

-- What runs with its owner's rights is for those who need it: whoever may execute such a trigger's function
-- could hang it on a temporary table of his own, and have it write what he likes. Triggers that are there
-- ask nobody for that right.
REVOKE EXECUTE ON FUNCTION
    runledger_event_partition(date), runledger_fold_rollups(int), runledger_complete_row_of_others(),
    runledger_message_position(), runledger_session_resumed(), runledger_session_finished(),
    runledger_sum_attempts(), runledger_roll_up()
FROM PUBLIC;
-- Roles that write events already, whoever gave them that right.
DO $$
DECLARE
    role text;
BEGIN
    FOR role IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = to_regclass('run_events') AND a.privilege_type = 'INSERT'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION runledger_event_partition(date), runledger_fold_rollups(int) TO %s',
                       role);
    END LOOP;
END $$;

-- NaN is greater than every number, and a sum with one in it is none for ever. Infinity is less than NaN.
ALTER TABLE workflow_runs DROP CONSTRAINT IF EXISTS workflow_runs_cost_check,
    ADD CONSTRAINT workflow_runs_cost_check
    CHECK (cost_estimate >= 0 AND cost_estimate < 'Infinity' AND (cost_source IS NULL OR cost_estimate IS NOT NULL)
           AND cost_source IN ('sdk', 'prices', 'mixed', 'partial')) NOT VALID;
ALTER TABLE run_model_usage DROP CONSTRAINT IF EXISTS run_model_usage_cost_micro_usd_check,
    ADD CONSTRAINT run_model_usage_cost_micro_usd_check
    CHECK (cost_micro_usd >= 0 AND cost_micro_usd < 'Infinity') NOT VALID;
ALTER TABLE model_prices DROP CONSTRAINT IF EXISTS model_prices_usd_per_million_check,
    ADD CONSTRAINT model_prices_usd_per_million_check
    CHECK (usd_per_million >= 0 AND usd_per_million < 'Infinity') NOT VALID;
-- Whatever else a run's row is counted by, model_usage for one, comes through here.
ALTER TABLE run_rollup_deltas ADD CONSTRAINT run_rollup_deltas_finite_check
    CHECK (greatest(cost, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens, costed) < 'Infinity'
           AND least(cost, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens, costed) > '-Infinity')
    NOT VALID;

-- Why each index is there. The keys that Postgres makes an index for say it themselves. There is none on
-- workflow_runs (namespace, name): who asks by name is a person at a shell (`runledger changes`), and finds
-- the latest run of that name on the way through its namespace from the newest on.
DO $$
DECLARE
    i record;
BEGIN
    FOR i IN SELECT * FROM (VALUES
        ('agents_name_key', 'No two agents of a name'),
        ('users_email_key', 'No two users of an address'),
        ('sessions_namespace_name_key', 'No two sessions of a name in a namespace; finds one by its name'),
        ('sessions_namespace_updated_at', 'Sessions of a namespace, the one last spoken in first'),
        ('sessions_branch_point_message_id', 'Its foreign key: a deleted message looks for sessions that branch off there'),
        ('sessions_parent_session_id', 'Its foreign key: a deleted session looks for its branches'),
        ('messages_session_id_created_at',
         'A page of a session''s conversation, its last message in a list of sessions, and its foreign key'),
        ('messages_session_id_position', 'What a session''s reader has not seen yet'),
        ('messages_run_id', 'Its foreign key: a deleted run looks for its messages'),
        ('workflow_runs_run_id_key', 'No two runs of an id; existing readers find a run by it as text'),
        ('workflow_runs_workspace_id', 'Whose volume a run was on, and what to mark once it is gone'),
        ('workflow_runs_created_at', 'Runs of all namespaces, newest first; existing readers know no namespaces'),
        ('workflow_runs_namespace_created_at', 'Runs of a namespace, newest first'),
        ('workflow_runs_namespace_status', 'Runs of a namespace and status, newest first'),
        ('workflow_runs_session_id',
         'Runs of a session with what they cost, the state of a session in a list, and its foreign key'),
        ('workflow_runs_workflow_name', 'Runs of a workflow, newest first'),
        ('workflow_runs_git_branch', 'Runs of a branch, newest first'),
        ('workflow_runs_user_id', 'Runs of a user, newest first, and its foreign key'),
        ('workflow_runs_active', 'What is under way, among millions that have ended'),
        ('workflow_runs_volume_of_pod', 'Whose volume goes with its pod, and may still be there'),
        ('workspaces_there', 'Workspaces that were there when last looked at'),
        ('run_labels_value', 'Runs of a namespace by label, newest first, without a look at the runs'),
        ('run_model_usage_unpriced', 'What has no price yet, for when one comes'),
        ('audit_request', 'What only the controller saw is written down once'),
        ('audit_namespace', 'What was done in a namespace, latest first'),
        ('audit_run_id', 'What was done to a run, latest first'),
        ('audit_session_id', 'What was done in a session, latest first')
    ) AS i (name, why) LOOP
        IF to_regclass(i.name) IS NOT NULL AND obj_description(to_regclass(i.name), 'pg_class') IS NULL THEN
            EXECUTE format('COMMENT ON INDEX %I IS %L', i.name, i.why);
        END IF;
    END LOOP;
END $$;
