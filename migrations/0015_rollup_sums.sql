-- What did it cost, by workflow and model? run_rollups has a row for each namespace and repository too, so
-- that the more teams there are, the more rows such a report adds up: at ten million runs a year it read
-- 80,000 rows for thirty days. Here are their sums over namespaces and repositories, some dozens a day.
--
-- Reads run_rollups once and locks no table of others. Nothing is folded while it runs.

-- The schema that the connection works in, as in 0001: what the functions below are bound to.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- Servers fold meanwhile; from here on they leave it to a later round.
SELECT pg_advisory_xact_lock(hashtext('runledger_fold_rollups'));

CREATE TABLE run_rollup_sums (LIKE run_rollups) WITH (fillfactor = 70);
ALTER TABLE run_rollup_sums
    DROP COLUMN namespace,
    DROP COLUMN repository,
    -- Reports ask for a range of days.
    ADD PRIMARY KEY (by_model, day, workflow_name, model);
COMMENT ON TABLE run_rollup_sums IS 'run_rollups, over all namespaces and repositories';

-- What run_rollups comes to. The columns are in the order of the table's.
CREATE VIEW run_rollups_summed AS
SELECT day, by_model, workflow_name, model, sum(runs)::bigint AS runs, sum(completed)::bigint AS completed,
       sum(failed)::bigint AS failed, sum(killed)::bigint AS killed, sum(unknown_cost)::bigint AS unknown_cost,
       sum(cost) AS cost, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,
       sum(cache_read_tokens) AS cache_read_tokens, sum(cache_creation_tokens) AS cache_creation_tokens,
       sum(added_lines) AS added_lines, sum(removed_lines) AS removed_lines, sum(costed) AS costed,
       sum(costed_lines) AS costed_lines
FROM run_rollups GROUP BY day, by_model, workflow_name, model;

INSERT INTO run_rollup_sums TABLE run_rollups_summed;

-- As in 0010, and into both.
CREATE OR REPLACE FUNCTION runledger_fold_rollups(most int) RETURNS bigint
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
    ), summed AS (
        INSERT INTO run_rollup_sums AS r
        SELECT day, by_model, workflow_name, model,
               sum(runs), sum(completed), sum(failed), sum(killed), sum(unknown_cost), sum(cost),
               sum(input_tokens), sum(output_tokens), sum(cache_read_tokens), sum(cache_creation_tokens),
               sum(added_lines), sum(removed_lines), sum(costed), sum(costed_lines)
        FROM taken GROUP BY day, by_model, workflow_name, model
        ON CONFLICT (by_model, day, workflow_name, model) DO UPDATE SET
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
    )
    SELECT (SELECT count(*) FROM taken), array_agg(DISTINCT day) FILTER (WHERE runs = 0)
    INTO folded, emptied FROM added;
    -- Runs went on under other words (their workflow or model became known).
    DELETE FROM run_rollups
    WHERE day = ANY (emptied) AND runs = 0 AND unknown_cost = 0 AND cost = 0
      AND input_tokens = 0 AND output_tokens = 0 AND cache_read_tokens = 0 AND cache_creation_tokens = 0
      AND added_lines = 0 AND removed_lines = 0 AND costed = 0;
    DELETE FROM run_rollup_sums
    WHERE day = ANY (emptied) AND runs = 0 AND unknown_cost = 0 AND cost = 0
      AND input_tokens = 0 AND output_tokens = 0 AND cache_read_tokens = 0 AND cache_creation_tokens = 0
      AND added_lines = 0 AND removed_lines = 0 AND costed = 0;
    RETURN folded;
END $$;

-- How many sums are not what run_rollups comes to (nothing, or somebody wrote into either); if asked, they
-- are made that. With the rights of whoever asks: who may only read may ask how many.
CREATE FUNCTION runledger_rollup_sums_differ(mend boolean) RETURNS bigint
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    differ bigint;
BEGIN
    -- Nothing is folded meanwhile.
    PERFORM pg_advisory_xact_lock(hashtext('runledger_fold_rollups'));
    SELECT count(DISTINCT (day, by_model, workflow_name, model)) INTO differ FROM (
        (TABLE run_rollups_summed EXCEPT TABLE run_rollup_sums)
        UNION ALL
        (TABLE run_rollup_sums EXCEPT TABLE run_rollups_summed)
    ) either;
    IF mend AND differ > 0 THEN
        DELETE FROM run_rollup_sums;
        INSERT INTO run_rollup_sums TABLE run_rollups_summed;
    END IF;
    RETURN differ;
END $$;
