SELECT CASE WHEN $1::bool THEN day END AS "day: jiff_sqlx::Date",
       CASE WHEN $2::bool THEN namespace END AS namespace,
       CASE WHEN $3::bool THEN workflow_name END AS workflow,
       CASE WHEN $4::bool THEN model END AS model,
       CASE WHEN $5::bool THEN repository END AS repository,
       percentile_disc(0.50) WITHIN GROUP (ORDER BY duration_seconds) AS "p50!",
       percentile_disc(0.95) WITHIN GROUP (ORDER BY duration_seconds) AS "p95!",
       percentile_disc(0.99) WITHIN GROUP (ORDER BY duration_seconds) AS "p99!"
FROM (
    SELECT one.*, r.duration_seconds
    FROM workflow_runs r, LATERAL runledger_rollup_of(
        r.created_at, r.namespace, r.workflow_name, r.ai_model, r.git_repo, r.status,
        r.cost_estimate, r.cost_source, r.input_tokens, r.output_tokens, r.cache_read_tokens,
        r.cache_creation_tokens, r.git_diff_added_lines, r.git_diff_removed_lines, r.model_usage) one
    WHERE r.created_at >= $6::date::timestamp AT TIME ZONE 'UTC'
      AND r.created_at < ($7::date + 1)::timestamp AT TIME ZONE 'UTC'
      AND r.duration_seconds IS NOT NULL
) timed
WHERE by_model = ($4 OR $10::text IS NOT NULL)
  AND ($8::text IS NULL OR namespace = $8)
  AND ($9::text IS NULL OR workflow_name = $9)
  AND ($10::text IS NULL OR model = $10)
  AND ($11::text IS NULL OR repository = $11)
GROUP BY 1, 2, 3, 4, 5
