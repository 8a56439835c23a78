-- Rollups: what runs came to, by the UTC day they were created on, namespace, workflow and repository;
-- and the same by each model that they used, where a run counts for every one of them, with what that
-- one used and cost. So who tells models apart reads the second, and who doesn't the first, or a run of
-- two models would be two. They are kept by triggers in the transaction that writes the run, so that
-- they are exact at every moment, and they outlive the runs that are pruned.
--
-- Writers only ever append to run_rollup_deltas: two that finish runs of the same workflow at the
-- same time would otherwise wait for each other on one hot row. runledger_fold_rollups moves what
-- has gathered there into run_rollups; readers take the sum of both, run_rollups_live.
--
-- CREATE TRIGGER locks workflow_runs against writers for the moment that it takes; the rows that are
-- there already are counted by the next migration, without a lock.

CREATE TABLE run_rollups (
    day                   date NOT NULL,
    by_model              boolean NOT NULL,
    -- The empty text stands for what a run has not, or not yet.
    namespace             text NOT NULL,
    workflow_name         text NOT NULL,
    model                 text NOT NULL CHECK (by_model OR model = ''),
    repository            text NOT NULL,
    runs                  bigint NOT NULL,
    completed             bigint NOT NULL,
    failed                bigint NOT NULL,
    killed                bigint NOT NULL,
    unknown_cost          bigint NOT NULL,
    -- Sums as numeric: however many rows of whatever size, none overflows and fails the run's write.
    cost                  numeric NOT NULL,
    input_tokens          numeric NOT NULL,
    output_tokens         numeric NOT NULL,
    cache_read_tokens     numeric NOT NULL,
    cache_creation_tokens numeric NOT NULL,
    added_lines           numeric NOT NULL,
    removed_lines         numeric NOT NULL,
    costed                numeric NOT NULL,
    costed_lines          numeric NOT NULL,
    -- Reports ask for a range of days.
    PRIMARY KEY (by_model, day, namespace, workflow_name, model, repository)
) WITH (fillfactor = 70);
COMMENT ON COLUMN run_rollups.unknown_cost IS 'Runs that cost something, or more than is counted here, and nobody said how much';
COMMENT ON COLUMN run_rollups.cost IS 'USD, of the runs whose cost is known, wholly or in part';
COMMENT ON COLUMN run_rollups.costed IS 'USD, of those runs as a whole: of all models';
COMMENT ON COLUMN run_rollups.costed_lines IS 'Lines added and removed by those runs';

-- No index, no key: it is written by every run and read whole. Vacuumed after each fold of note.
CREATE TABLE run_rollup_deltas (LIKE run_rollups)
    WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
          autovacuum_vacuum_insert_threshold = -1);

-- From which day on every run is still there, so that its rollups can be counted again.
CREATE TABLE run_rollup_horizon (
    single     boolean PRIMARY KEY DEFAULT true CHECK (single),
    exact_from date NOT NULL
);
INSERT INTO run_rollup_horizon (exact_from) VALUES ('-infinity');

-- What one run adds: a row for all of it, and one for each model. A row that was there before the ledger
-- may have none of it. Texts are cut so that the longest fit into an index entry together. The columns
-- and not the row: a row as an argument would be read whole, and its task may be megabytes.
CREATE FUNCTION runledger_rollup_of(
    created_at timestamptz, namespace text, workflow_name text, model text, repository text,
    status text, cost numeric, cost_source text, input_tokens bigint, output_tokens bigint, cache_read_tokens bigint,
    cache_creation_tokens bigint, added_lines bigint, removed_lines bigint, model_usage jsonb
) RETURNS SETOF run_rollup_deltas LANGUAGE sql IMMUTABLE AS $$
    SELECT (coalesce($1, 'epoch') AT TIME ZONE 'UTC')::date, one.by_model,
           left(coalesce($2, ''), 63), left(coalesce($3, ''), 255), left(one.model, 80), left(coalesce($5, ''), 255),
           1::bigint, coalesce($6 = 'completed', false)::int::bigint, coalesce($6 = 'failed', false)::int::bigint,
           coalesce($6 = 'killed', false)::int::bigint,
           one.unknown::int::bigint, one.cost, one.input, one.output, one.cache_read, one.cache_creation,
           coalesce($13, 0)::numeric, coalesce($14, 0)::numeric, run.cost,
           CASE WHEN $7 IS NULL THEN 0 ELSE coalesce($13, 0)::numeric + coalesce($14, 0) END
    FROM (
        SELECT coalesce($7, 0) AS cost, coalesce($9, 0)::numeric AS input, coalesce($10, 0)::numeric AS output,
               coalesce($11, 0)::numeric AS cache_read, coalesce($12, 0)::numeric AS cache_creation,
               -- A run of ours that met no model cost nothing; of others' rows nobody knows.
               coalesce(CASE WHEN $7 IS NOT NULL THEN $8 = 'partial'
                             ELSE $6 = 'completed' OR $2 IS NULL AND $6 IN ('failed', 'killed')
                                  OR $9 > 0 OR $10 > 0 OR $11 > 0 OR $12 > 0 END, false) AS unknown
    ) run, LATERAL (
        SELECT false AS by_model, '' AS model, run.*
        -- Where nothing is known by model, all of it counts for the one that the row names.
        UNION ALL SELECT true, coalesce($4, ''), run.* WHERE coalesce($15, '{}') = '{}'
        UNION ALL
        SELECT true, m.key, coalesce((m.value ->> 'cost')::numeric, 0), (m.value ->> 'input')::numeric,
               (m.value ->> 'output')::numeric, (m.value ->> 'cache_read')::numeric,
               (m.value ->> 'cache_creation')::numeric, (m.value ->> 'unpriced')::boolean
        FROM jsonb_each($15) m
    ) one
$$;

-- The owner's rights, so that whoever may write a run needs none on the rollups.
CREATE FUNCTION runledger_roll_up() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- What is pruned stays counted.
    IF TG_OP = 'DELETE' AND current_setting('runledger.pruning', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO run_rollup_deltas SELECT * FROM runledger_rollup_of(
                NEW.created_at, NEW.namespace, NEW.workflow_name, NEW.ai_model, NEW.git_repo, NEW.status,
                NEW.cost_estimate, NEW.cost_source, NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens,
                NEW.cache_creation_tokens, NEW.git_diff_added_lines, NEW.git_diff_removed_lines, NEW.model_usage);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO run_rollup_deltas
            SELECT day, by_model, namespace, workflow_name, model, repository, -runs, -completed, -failed, -killed,
                   -unknown_cost, -cost, -input_tokens, -output_tokens, -cache_read_tokens,
                   -cache_creation_tokens, -added_lines, -removed_lines, -costed, -costed_lines
            FROM runledger_rollup_of(
                OLD.created_at, OLD.namespace, OLD.workflow_name, OLD.ai_model, OLD.git_repo, OLD.status,
                OLD.cost_estimate, OLD.cost_source, OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens,
                OLD.cache_creation_tokens, OLD.git_diff_added_lines, OLD.git_diff_removed_lines, OLD.model_usage);
    ELSE
        -- Mostly the words are the same and some figures have grown: one row then and not two.
        INSERT INTO run_rollup_deltas
        SELECT day, by_model, namespace, workflow_name, model, repository,
            sum(runs), sum(completed), sum(failed), sum(killed), sum(unknown_cost), sum(cost), sum(input_tokens),
            sum(output_tokens), sum(cache_read_tokens), sum(cache_creation_tokens), sum(added_lines),
            sum(removed_lines), sum(costed), sum(costed_lines)
        FROM (
            SELECT * FROM runledger_rollup_of(
                NEW.created_at, NEW.namespace, NEW.workflow_name, NEW.ai_model, NEW.git_repo, NEW.status,
                NEW.cost_estimate, NEW.cost_source, NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens,
                NEW.cache_creation_tokens, NEW.git_diff_added_lines, NEW.git_diff_removed_lines, NEW.model_usage)
            UNION ALL
            SELECT day, by_model, namespace, workflow_name, model, repository, -runs, -completed, -failed, -killed,
                   -unknown_cost, -cost, -input_tokens, -output_tokens, -cache_read_tokens,
                   -cache_creation_tokens, -added_lines, -removed_lines, -costed, -costed_lines
            FROM runledger_rollup_of(
                OLD.created_at, OLD.namespace, OLD.workflow_name, OLD.ai_model, OLD.git_repo, OLD.status,
                OLD.cost_estimate, OLD.cost_source, OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens,
                OLD.cache_creation_tokens, OLD.git_diff_added_lines, OLD.git_diff_removed_lines, OLD.model_usage)
        ) changed
        GROUP BY day, by_model, namespace, workflow_name, model, repository;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER workflow_runs_rolled_up AFTER INSERT OR DELETE ON workflow_runs
    FOR EACH ROW EXECUTE FUNCTION runledger_roll_up();
-- Most updates change nothing that is counted; from pending to running, for one. In plain words: each statement
-- reads this condition anew, and would parse a function in it.
CREATE TRIGGER workflow_runs_rolled_up_again AFTER UPDATE ON workflow_runs
    FOR EACH ROW WHEN (
        (OLD.created_at, OLD.namespace, OLD.workflow_name, OLD.ai_model, OLD.git_repo,
         CASE WHEN OLD.status NOT IN ('pending', 'running') THEN OLD.status END, OLD.cost_estimate, OLD.cost_source,
         OLD.input_tokens, OLD.output_tokens, OLD.cache_read_tokens, OLD.cache_creation_tokens,
         OLD.git_diff_added_lines, OLD.git_diff_removed_lines, OLD.model_usage)
        IS DISTINCT FROM
        (NEW.created_at, NEW.namespace, NEW.workflow_name, NEW.ai_model, NEW.git_repo,
         CASE WHEN NEW.status NOT IN ('pending', 'running') THEN NEW.status END, NEW.cost_estimate, NEW.cost_source,
         NEW.input_tokens, NEW.output_tokens, NEW.cache_read_tokens, NEW.cache_creation_tokens,
         NEW.git_diff_added_lines, NEW.git_diff_removed_lines, NEW.model_usage))
    EXECUTE FUNCTION runledger_roll_up();

-- What is true now: the folded and what is still to be folded, in one snapshot.
CREATE VIEW run_rollups_live AS
SELECT day, by_model, namespace, workflow_name, model, repository,
       sum(runs) AS runs, sum(completed) AS completed, sum(failed) AS failed, sum(killed) AS killed,
       sum(unknown_cost) AS unknown_cost, sum(cost) AS cost,
       sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
       sum(cache_read_tokens) AS cache_read_tokens, sum(cache_creation_tokens) AS cache_creation_tokens,
       sum(added_lines) AS added_lines, sum(removed_lines) AS removed_lines,
       sum(costed) AS costed, sum(costed_lines) AS costed_lines
FROM (TABLE run_rollups UNION ALL TABLE run_rollup_deltas) both_of_them
GROUP BY day, by_model, namespace, workflow_name, model, repository;

-- Moves at most so many deltas into run_rollups, and answers how many. One at a time: another that
-- folds meanwhile leaves nothing to do.
CREATE FUNCTION runledger_fold_rollups(most int) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    folded bigint;
    emptied date[];
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtext('runledger_fold_rollups')) THEN
        RETURN 0;
    END IF;
    WITH taken AS (
        DELETE FROM run_rollup_deltas
        WHERE ctid = ANY (ARRAY(SELECT ctid FROM run_rollup_deltas LIMIT most))
        RETURNING *
    ), added AS (
        INSERT INTO run_rollups AS r
        SELECT day, by_model, namespace, workflow_name, model, repository,
               sum(runs), sum(completed), sum(failed), sum(killed), sum(unknown_cost), sum(cost),
               sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_creation_tokens),
               sum(added_lines), sum(removed_lines), sum(costed), sum(costed_lines)
        FROM taken GROUP BY day, by_model, namespace, workflow_name, model, repository
        ON CONFLICT (by_model, day, namespace, workflow_name, model, repository) DO UPDATE SET
            runs = r.runs + EXCLUDED.runs,
            completed = r.completed + EXCLUDED.completed,
            failed = r.failed + EXCLUDED.failed,
            killed = r.killed + EXCLUDED.killed,
            unknown_cost = r.unknown_cost + EXCLUDED.unknown_cost,
            cost = r.cost + EXCLUDED.cost,
            input_tokens = r.input_tokens + EXCLUDED.input_tokens,
            output_tokens = r.output_tokens + EXCLUDED.output_tokens,
            cache_read_tokens = r.cache_read_tokens + EXCLUDED.cache_read_tokens,
            cache_creation_tokens = r.cache_creation_tokens + EXCLUDED.cache_creation_tokens,
            added_lines = r.added_lines + EXCLUDED.added_lines,
            removed_lines = r.removed_lines + EXCLUDED.removed_lines,
            costed = r.costed + EXCLUDED.costed,
            costed_lines = r.costed_lines + EXCLUDED.costed_lines
        RETURNING r.day, r.runs
    )
    SELECT (SELECT count(*) FROM taken), array_agg(DISTINCT day) FILTER (WHERE runs = 0)
    INTO folded, emptied FROM added;
    -- Runs went on under other words (their workflow or model became known).
    DELETE FROM run_rollups
    WHERE day = ANY (emptied) AND runs = 0 AND unknown_cost = 0 AND cost = 0
      AND input_tokens = 0 AND output_tokens = 0 AND cache_read_tokens = 0 AND cache_creation_tokens = 0
      AND added_lines = 0 AND removed_lines = 0 AND costed = 0;
    RETURN folded;
END $$;

-- What would have to be added for the rollups to be what the runs say, in one snapshot: nothing, or
-- somebody wrote where only the triggers write.
CREATE FUNCTION runledger_rollup_differences() RETURNS SETOF run_rollup_deltas LANGUAGE sql STABLE AS $$
    SELECT day, by_model, namespace, workflow_name, model, repository,
           sum(runs)::bigint, sum(completed)::bigint, sum(failed)::bigint, sum(killed)::bigint,
           sum(unknown_cost)::bigint, sum(cost), sum(input_tokens), sum(output_tokens),
           sum(cache_read_tokens), sum(cache_creation_tokens), sum(added_lines), sum(removed_lines),
           sum(costed), sum(costed_lines)
    FROM (
        SELECT one.* FROM workflow_runs r, LATERAL runledger_rollup_of(
            r.created_at, r.namespace, r.workflow_name, r.ai_model, r.git_repo, r.status,
            r.cost_estimate, r.cost_source, r.input_tokens, r.output_tokens, r.cache_read_tokens,
            r.cache_creation_tokens, r.git_diff_added_lines, r.git_diff_removed_lines, r.model_usage) one
        UNION ALL
        SELECT day, by_model, namespace, workflow_name, model, repository, -runs, -completed, -failed, -killed,
               -unknown_cost, -cost, -input_tokens, -output_tokens, -cache_read_tokens,
               -cache_creation_tokens, -added_lines, -removed_lines, -costed, -costed_lines
        FROM run_rollups_live
    ) counted_and_kept
    WHERE day >= (SELECT exact_from FROM run_rollup_horizon)
    GROUP BY day, by_model, namespace, workflow_name, model, repository
    HAVING (sum(runs), sum(completed), sum(failed), sum(killed), sum(unknown_cost), sum(cost),
            sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_creation_tokens),
            sum(added_lines), sum(removed_lines), sum(costed), sum(costed_lines))
        IS DISTINCT FROM (0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric,
            0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric, 0::numeric)
$$;
