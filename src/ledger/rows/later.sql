-- What models used after the attempt's last result that named a cost, which the SDK's figure does not
-- cover: all of it anew, from the events, so that it does not matter in which order they came. Each request
-- at the price of its moment.
WITH later AS (
    SELECT r.model, sum(r.input)::bigint AS input, sum(r.output)::bigint AS output,
           sum(r.cache_read)::bigint AS cache_read, sum(r.cache_creation)::bigint AS cache_creation,
           CASE WHEN bool_and(c.cost IS NOT NULL) THEN sum(c.cost) END AS cost
    FROM (
        SELECT coalesce(e.body ->> 'model', $5) AS model, e.at,
               (e.body #>> '{tokens,input}')::bigint AS input,
               (e.body #>> '{tokens,output}')::bigint AS output,
               (e.body #>> '{tokens,cacheRead}')::bigint AS cache_read,
               (e.body #>> '{tokens,cacheCreation}')::bigint AS cache_creation
        FROM run_events e
        WHERE e.run_id = $1 AND e.attempt = $2 AND e.started_day = $3 AND e.sequence > $4
          AND e.type = 'request_ended'
    ) r CROSS JOIN LATERAL (SELECT runledger_cost(
        r.model, r.at, r.input, r.output, r.cache_read, r.cache_creation) AS cost) c
    GROUP BY r.model
)
UPDATE run_model_usage m SET
    later_input_tokens = l.input,
    later_output_tokens = l.output,
    later_cache_read_tokens = l.cache_read,
    later_cache_creation_tokens = l.cache_creation,
    later_cost_micro_usd = l.cost
FROM (
    SELECT u.model, coalesce(l.input, 0) AS input, coalesce(l.output, 0) AS output,
           coalesce(l.cache_read, 0) AS cache_read, coalesce(l.cache_creation, 0) AS cache_creation,
           CASE WHEN l.model IS NULL THEN 0 ELSE l.cost END AS cost
    FROM run_model_usage u LEFT JOIN later l ON l.model = u.model
    WHERE u.run_id = $1 AND u.attempt = $2
) l
WHERE m.run_id = $1 AND m.attempt = $2 AND m.model = l.model
  AND (m.later_input_tokens, m.later_output_tokens, m.later_cache_read_tokens, m.later_cache_creation_tokens,
       m.later_cost_micro_usd) IS DISTINCT FROM (l.input, l.output, l.cache_read, l.cache_creation, l.cost)
