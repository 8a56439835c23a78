-- What the SDK's figure of an attempt covers: the requests up to the result that named it. What was used
-- after (somebody wrote into the session, and the pod was killed before the next result) costs tokens x
-- price. And in which order a run first used its tools, whatever the clock did.
--
-- Locks: as the head of 0001 says. Tables of ours only: columns with a constant default, a constraint NOT
-- VALID, functions that are replaced. CREATE TRIGGER keeps writers of run_model_usage out for its moment.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

ALTER TABLE run_tools ADD COLUMN first_use bigint[];
COMMENT ON COLUMN run_tools.first_use IS
    'Attempt, sequence of the event, place in its message; null in rows from before this column';

ALTER TABLE run_attempts ADD COLUMN cost_sequence bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN run_attempts.cost_sequence IS
    'Sequence of the last result that named a cost: the SDK''s figure covers the requests before it';

ALTER TABLE run_model_usage
    ADD COLUMN later_input_tokens          bigint NOT NULL DEFAULT 0,
    ADD COLUMN later_output_tokens         bigint NOT NULL DEFAULT 0,
    ADD COLUMN later_cache_read_tokens     bigint NOT NULL DEFAULT 0,
    ADD COLUMN later_cache_creation_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN later_cost_micro_usd        numeric(26, 6) DEFAULT 0,
    ADD CONSTRAINT run_model_usage_later_check CHECK (
        least(later_input_tokens, later_output_tokens, later_cache_read_tokens, later_cache_creation_tokens) >= 0
        AND (later_cost_micro_usd >= 0 AND later_cost_micro_usd < 'Infinity') IS NOT FALSE) NOT VALID;
COMMENT ON COLUMN run_model_usage.later_input_tokens IS
    'Of input_tokens (and so on for the other kinds) those of requests after the SDK last named a cost';
COMMENT ON COLUMN run_model_usage.later_cost_micro_usd IS 'Tokens x price of these; null where a price was not known';

COMMENT ON COLUMN workflow_runs.cost_source IS
    'sdk: the SDK''s figure; prices: tokens x price; mixed: some of it each; partial: some usage has no known price, so the run cost more';

-- As in 0013, and the new column.
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
             OR NEW.result_sequence < OLD.result_sequence OR NEW.cost_sequence < OLD.cost_sequence THEN 'the sequence falls'
        WHEN OLD.sealed_sequence IS NOT NULL AND NEW.sealed_sequence IS DISTINCT FROM OLD.sealed_sequence
            THEN 'it was sealed before'
    END;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'run_attempts % of % only moves forward: %', OLD.attempt, OLD.run_id, wrong
            USING ERRCODE = 'RL001';
    END IF;
    RETURN NEW;
END $$;

-- What each model used in all of a run's attempts. Tokens are those of its requests; what an attempt
-- used beyond (the events are not all here) stands under no name. The SDK's figure is for all models of
-- an attempt up to a result: it is shared out among them as tokens x price says, where all of them have a
-- price, and is the only model's where there is but one; otherwise nobody knows whose it is, and it stands
-- under no name too. What came after that result costs each model tokens x price.
CREATE OR REPLACE FUNCTION runledger_usage_by_model(run uuid) RETURNS jsonb LANGUAGE plpgsql STABLE AS $$
BEGIN RETURN (
    WITH used AS (
        SELECT m.attempt, m.model, m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_creation_tokens,
               t.cost_micro_usd AS told, m.cost_micro_usd AS priced, m.later_cost_micro_usd AS later,
               m.cost_micro_usd - least(m.later_cost_micro_usd, m.cost_micro_usd) AS before,
               m.input_tokens > m.later_input_tokens OR m.output_tokens > m.later_output_tokens
               OR m.cache_read_tokens > m.later_cache_read_tokens
               OR m.cache_creation_tokens > m.later_cache_creation_tokens AS covered
        FROM run_model_usage m JOIN run_attempts t ON t.run_id = m.run_id AND t.attempt = m.attempt
        -- A request that was refused used nothing.
        WHERE m.run_id = run
          AND (m.input_tokens > 0 OR m.output_tokens > 0 OR m.cache_read_tokens > 0 OR m.cache_creation_tokens > 0)
    ), beside AS (
        SELECT *, count(*) OVER covered_ones AS models, bool_and(before IS NOT NULL) OVER covered_ones AS all_priced,
               sum(before) OVER covered_ones AS all_cost
        FROM used WINDOW covered_ones AS (PARTITION BY attempt, covered)
    ), shared AS (
        SELECT *, CASE WHEN told IS NULL OR NOT covered THEN NULL
                       WHEN models = 1 OR told = 0 THEN told
                       WHEN all_priced AND all_cost > 0 THEN told * before / all_cost END AS share
        FROM beside
    ), parts AS (
        SELECT model, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
               CASE WHEN told IS NULL THEN priced
                    WHEN share IS NOT NULL OR later > 0 THEN coalesce(share, 0) + coalesce(later, 0) END AS cost,
               CASE WHEN told IS NULL THEN priced IS NULL
                    ELSE covered AND share IS NULL OR later IS NULL END AS unpriced
        FROM shared
        UNION ALL
        SELECT '', greatest(t.input_tokens - s.input, 0), greatest(t.output_tokens - s.output, 0),
               greatest(t.cache_read_tokens - s.cache_read, 0), greatest(t.cache_creation_tokens - s.cache_creation, 0),
               CASE WHEN s.share IS NULL THEN t.cost_micro_usd END, t.cost_micro_usd IS NULL
        FROM run_attempts t LEFT JOIN LATERAL (
            SELECT coalesce(sum(u.input_tokens), 0) AS input, coalesce(sum(u.output_tokens), 0) AS output,
                   coalesce(sum(u.cache_read_tokens), 0) AS cache_read,
                   coalesce(sum(u.cache_creation_tokens), 0) AS cache_creation, sum(u.share) AS share
            FROM shared u WHERE u.attempt = t.attempt
        ) s ON true
        WHERE t.run_id = run AND EXISTS (SELECT FROM used)
          AND (t.input_tokens > s.input OR t.output_tokens > s.output OR t.cache_read_tokens > s.cache_read
               OR t.cache_creation_tokens > s.cache_creation OR t.cost_micro_usd > 0 AND s.share IS NULL)
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
-- one. So it doesn't matter who wrote them first. An attempt costs what the SDK said, and tokens x price
-- of what its models used that this doesn't cover. In plpgsql, as what it calls: there each session plans
-- it once and not with each batch of events.
CREATE OR REPLACE FUNCTION runledger_sum_run(run uuid) RETURNS void LANGUAGE plpgsql AS $$
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
               sum(CASE WHEN t.cost_micro_usd IS NULL THEN u.cost
                        ELSE t.cost_micro_usd + coalesce(u.later, 0) END) AS cost,
               coalesce(bool_or(t.cost_micro_usd IS NOT NULL), false) AS told,
               coalesce(bool_or(CASE WHEN t.cost_micro_usd IS NULL THEN u.cost ELSE u.later END > 0), false) AS priced,
               coalesce(bool_or(CASE WHEN t.cost_micro_usd IS NULL
                   THEN u.unpriced OR t.input_tokens + t.output_tokens + t.cache_read_tokens
                        + t.cache_creation_tokens > coalesce(u.tokens, 0)
                   ELSE u.later_unpriced END), false) AS unpriced,
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
                   sum(m.later_cost_micro_usd) AS later,
                   bool_or(m.later_cost_micro_usd IS NULL) AS later_unpriced,
                   sum(m.input_tokens + m.output_tokens + m.cache_read_tokens + m.cache_creation_tokens) AS tokens
            FROM run_model_usage m WHERE m.run_id = t.run_id AND m.attempt = t.attempt
        ) u ON true
        WHERE t.run_id = run
    ) a
    WHERE r.id = run AND a.attempt IS NOT NULL;
END $$;

-- What is later than a cost is known only once all of a batch is there.
CREATE TRIGGER run_model_usage_changed AFTER UPDATE ON run_model_usage
    FOR EACH ROW WHEN (
        (OLD.later_input_tokens, OLD.later_output_tokens, OLD.later_cache_read_tokens,
         OLD.later_cache_creation_tokens, OLD.later_cost_micro_usd)
        IS DISTINCT FROM
        (NEW.later_input_tokens, NEW.later_output_tokens, NEW.later_cache_read_tokens,
         NEW.later_cache_creation_tokens, NEW.later_cost_micro_usd))
    EXECUTE FUNCTION runledger_sum_attempts();
