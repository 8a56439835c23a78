-- Counts the runs that were there before their rollups were kept. One statement, one snapshot: what is
-- written meanwhile counts itself. Reads workflow_runs once and locks nobody out.
INSERT INTO run_rollup_deltas SELECT * FROM runledger_rollup_differences();
