-- What models used in these runs, and what nobody knew the price of: each request at the price of its
-- moment, as its event says. Where events are gone (prune), all of it at the price when it began.
UPDATE run_model_usage m SET
    cost_micro_usd = CASE WHEN w.requests = m.requests THEN w.cost ELSE runledger_cost(
        m.model, m.first_at, m.input_tokens, m.output_tokens, m.cache_read_tokens, m.cache_creation_tokens) END,
    later_cost_micro_usd = CASE WHEN w.requests = m.requests THEN w.later ELSE runledger_cost(
        m.model, m.first_at, m.later_input_tokens, m.later_output_tokens, m.later_cache_read_tokens,
        m.later_cache_creation_tokens) END
FROM (
    SELECT u.run_id, u.attempt, u.model, e.requests, e.cost, e.later
    FROM run_model_usage u JOIN run_attempts a ON a.run_id = u.run_id AND a.attempt = u.attempt
    CROSS JOIN LATERAL (
        SELECT count(*) AS requests,
               CASE WHEN bool_and(c.cost IS NOT NULL) THEN sum(c.cost) END AS cost,
               coalesce(sum(c.cost) FILTER (WHERE r.sequence > a.cost_sequence AND a.cost_sequence > 0), 0) AS later
        FROM (
            SELECT e.at, e.sequence,
                   (e.body #>> '{tokens,input}')::bigint AS input,
                   (e.body #>> '{tokens,output}')::bigint AS output,
                   (e.body #>> '{tokens,cacheRead}')::bigint AS cache_read,
                   (e.body #>> '{tokens,cacheCreation}')::bigint AS cache_creation
            FROM run_events e
            WHERE e.run_id = u.run_id AND e.attempt = u.attempt AND e.started_day = a.started_day
              AND e.type = 'request_ended' AND coalesce(e.body ->> 'model', $2) = u.model
        ) r CROSS JOIN LATERAL (SELECT runledger_cost(
            u.model, r.at, r.input, r.output, r.cache_read, r.cache_creation) AS cost) c
    ) e
    WHERE u.run_id = ANY ($1) AND u.cost_micro_usd IS NULL
) w
WHERE m.run_id = w.run_id AND m.attempt = w.attempt AND m.model = w.model
