SELECT CASE WHEN $1::bool THEN day END AS "day: jiff_sqlx::Date",
       CASE WHEN $2::bool THEN namespace END AS namespace,
       CASE WHEN $3::bool THEN workflow_name END AS workflow,
       CASE WHEN $4::bool THEN model END AS model,
       CASE WHEN $5::bool THEN repository END AS repository,
       sum(runs)::bigint AS "runs!",
       sum(completed)::bigint AS "completed!",
       sum(failed)::bigint AS "failed!",
       sum(killed)::bigint AS "killed!",
       round(sum(completed) / nullif(sum(completed) + sum(failed) + sum(killed), 0), 4) AS success_rate,
       -- Unknown is not zero.
       CASE WHEN sum(cost) > 0 OR sum(unknown_cost) = 0 THEN round(sum(cost), 6) END AS cost,
       sum(unknown_cost)::bigint AS "unknown_cost!",
       least(sum(input_tokens), 9223372036854775807)::bigint AS "input_tokens!",
       least(sum(output_tokens), 9223372036854775807)::bigint AS "output_tokens!",
       least(sum(cache_read_tokens), 9223372036854775807)::bigint AS "cache_read_tokens!",
       least(sum(cache_creation_tokens), 9223372036854775807)::bigint AS "cache_creation_tokens!",
       round(sum(cache_read_tokens)
             / nullif(sum(input_tokens) + sum(cache_read_tokens) + sum(cache_creation_tokens), 0), 4)
           AS cache_efficiency,
       least(sum(added_lines), 9223372036854775807)::bigint AS "added_lines!",
       least(sum(removed_lines), 9223372036854775807)::bigint AS "removed_lines!",
       round(sum(costed) / nullif(sum(costed_lines), 0), 6) AS cost_per_line
-- Not run_rollups_live, which groups by everything first. Who asks for no namespace and no repository is
-- answered by the sums over them, which are a few rows for each day; of the two, one is never read.
FROM (
    SELECT * FROM run_rollups WHERE $2::bool OR $5::bool OR $8::text IS NOT NULL OR $11::text IS NOT NULL
    UNION ALL
    SELECT day, by_model, '', workflow_name, model, '', runs, completed, failed, killed, unknown_cost, cost, input_tokens,
           output_tokens, cache_read_tokens, cache_creation_tokens, added_lines, removed_lines, costed, costed_lines
    FROM run_rollup_sums WHERE NOT ($2::bool OR $5::bool OR $8::text IS NOT NULL OR $11::text IS NOT NULL)
    UNION ALL
    TABLE run_rollup_deltas
) kept
WHERE day BETWEEN $6 AND $7
  -- Where models are told apart, a run counts for each that it used.
  AND by_model = ($4 OR $10::text IS NOT NULL)
  AND ($8::text IS NULL OR namespace = $8)
  AND ($9::text IS NULL OR workflow_name = $9)
  AND ($10::text IS NULL OR model = $10)
  AND ($11::text IS NULL OR repository = $11)
GROUP BY 1, 2, 3, 4, 5
-- What went on under other words has left nothing here.
HAVING sum(runs) <> 0
ORDER BY 1, sum(cost) DESC, 2, 3, 4, 5
