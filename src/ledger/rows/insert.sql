-- The rows of a batch, none of which is there: events, messages, calls of tools, what requests used, and
-- what they change in the attempt's row.
WITH told AS (
    INSERT INTO run_events (run_id, attempt, sequence, started_day, at, type, body, altered)
    -- Not from unnest, where each array would become a table first: that took most of the time.
    SELECT $1, $2, unnest($4::bigint[]), $3, unnest($5::timestamptz[]), unnest($6::text[]),
           unnest($7::text[])::jsonb, unnest($8::bool[])
), session AS (
    UPDATE sessions SET
        message_count = message_count + cardinality($10::uuid[]),
        last_position = last_position + cardinality($10::uuid[]),
        metadata = metadata || jsonb_build_object('run_id', $1::uuid)
    WHERE id = $9 AND cardinality($10::uuid[]) > 0
    RETURNING last_position - cardinality($10::uuid[]) AS position
), said AS (
    INSERT INTO messages (id, session_id, run_id, position, sequence, role, message_type,
                          text_content, raw_payload, tool_calls, tool_outputs, usage, created_at)
    SELECT unnest($10::uuid[]), $9, $1, session.position + generate_series(1, cardinality($10::uuid[])),
           unnest($11::bigint[]), unnest($12::text[]), unnest($13::text[]), unnest($14::text[]),
           unnest($15::text[])::jsonb, unnest($16::text[])::jsonb, unnest($17::text[])::jsonb,
           unnest($18::text[])::jsonb, unnest($19::timestamptz[])
    FROM session
), tools AS (
    INSERT INTO run_tools AS t (run_id, tool, calls, first_at, first_use)
    SELECT $1, u.tool, u.calls, u.at, ARRAY[$2::bigint, u.sequence, u.place]
    FROM unnest($20::text[], $21::bigint[], $22::timestamptz[], $51::bigint[], $52::bigint[])
         AS u (tool, calls, at, sequence, place)
    ON CONFLICT (run_id, tool) DO UPDATE SET
        calls = t.calls + EXCLUDED.calls,
        first_at = least(t.first_at, EXCLUDED.first_at),
        first_use = least(t.first_use, EXCLUDED.first_use)
), priced AS (
    -- Priced together where the prices are the same, which they are between two of their dates.
    SELECT u.model, sum(u.input)::bigint AS input, sum(u.output)::bigint AS output,
           sum(u.cache_read)::bigint AS cache_read, sum(u.cache_creation)::bigint AS cache_creation,
           count(*) AS requests, sum(u.estimated) AS estimated, sum(u.milliseconds) AS milliseconds,
           min(u.at) AS first_at, max(u.at) AS last_at
    FROM unnest($23::text[], $24::timestamptz[], $25::bigint[], $26::bigint[], $27::bigint[], $28::bigint[],
                $29::bigint[], $30::bigint[])
         AS u (model, at, input, output, cache_read, cache_creation, estimated, milliseconds)
    GROUP BY u.model, width_bucket(u.at, ARRAY(SELECT DISTINCT valid_from FROM model_prices ORDER BY 1))
), used AS (
    -- What nothing was used of (a request may be refused) has no price and needs none.
    INSERT INTO run_model_usage AS m
        (run_id, attempt, model, input_tokens, output_tokens, cache_read_tokens, cache_creation_tokens,
         requests, estimated_requests, api_milliseconds, first_at, cost_micro_usd)
    SELECT $1, $2, p.model, sum(p.input)::bigint, sum(p.output)::bigint, sum(p.cache_read)::bigint,
           sum(p.cache_creation)::bigint, sum(p.requests)::bigint, sum(p.estimated)::bigint,
           sum(p.milliseconds)::bigint, min(p.first_at),
           CASE WHEN bool_and(c.cost IS NOT NULL) THEN sum(c.cost) END
    FROM priced p CROSS JOIN LATERAL (SELECT runledger_cost(
         p.model, p.last_at, p.input, p.output, p.cache_read, p.cache_creation) AS cost) c
    GROUP BY p.model
    ON CONFLICT (run_id, attempt, model) DO UPDATE SET
        input_tokens = m.input_tokens + EXCLUDED.input_tokens,
        output_tokens = m.output_tokens + EXCLUDED.output_tokens,
        cache_read_tokens = m.cache_read_tokens + EXCLUDED.cache_read_tokens,
        cache_creation_tokens = m.cache_creation_tokens + EXCLUDED.cache_creation_tokens,
        requests = m.requests + EXCLUDED.requests,
        estimated_requests = m.estimated_requests + EXCLUDED.estimated_requests,
        api_milliseconds = m.api_milliseconds + EXCLUDED.api_milliseconds,
        first_at = least(m.first_at, EXCLUDED.first_at),
        cost_micro_usd = m.cost_micro_usd + EXCLUDED.cost_micro_usd
    RETURNING model, cost_micro_usd IS NULL AS unpriced
)
UPDATE run_attempts a SET
    input_tokens = greatest(a.input_tokens, $31),
    output_tokens = greatest(a.output_tokens, $32),
    cache_read_tokens = greatest(a.cache_read_tokens, $33),
    cache_creation_tokens = greatest(a.cache_creation_tokens, $34),
    cost_micro_usd = greatest(a.cost_micro_usd, $35),
    turns = greatest(a.turns, $36),
    requests = greatest(a.requests, $37),
    estimated_requests = greatest(a.estimated_requests, $38),
    repository = coalesce(a.repository, $39),
    branch = coalesce(a.branch, $40),
    initial_commit = coalesce(a.initial_commit, $41),
    -- The event knows more than the pod's termination message, which came to the controller.
    changes = coalesce(coalesce(a.changes, '{}') || $42, a.changes),
    model = CASE WHEN $43::bigint > a.model_sequence THEN $44 ELSE a.model END,
    model_sequence = greatest(a.model_sequence, $43),
    result = CASE WHEN $45::bigint > a.result_sequence THEN $46 ELSE a.result END,
    result_sequence = greatest(a.result_sequence, $45),
    sealed_sequence = coalesce(a.sealed_sequence, $47),
    cli_version = CASE WHEN $48::text IS NOT NULL THEN $48 ELSE a.cli_version END,
    told_requests = a.told_requests + cardinality($23::text[]),
    cost_sequence = greatest(a.cost_sequence, $53),
    -- What this statement inserts it can't see: that is counted up to $49, and beyond it in $50.
    acknowledged = runledger_stored_up_to($1, $2, $3, greatest(a.acknowledged, $49), $50)
WHERE a.run_id = $1 AND a.attempt = $2
RETURNING a.acknowledged, a.cost_sequence, ARRAY(SELECT u.model FROM used u WHERE u.unpriced) AS "unpriced!"
