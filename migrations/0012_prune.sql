-- For `runledger prune`. Deleting a message or a session looks for sessions that point at it, once for
-- each row. Both are nearly always null, so the indexes are small and their build reads sessions once.
CREATE INDEX IF NOT EXISTS sessions_branch_point_message_id ON sessions (branch_point_message_id)
    WHERE branch_point_message_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS sessions_parent_session_id ON sessions (parent_session_id)
    WHERE parent_session_id IS NOT NULL;

-- The schema that the connection works in, as in 0001: what the function below is bound to.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- Whether events of an attempt of an unfinished run are in that day's partition.
CREATE FUNCTION runledger_events_are_pinned(day date) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM workflow_runs r JOIN run_attempts a ON a.run_id = r.id
                   WHERE r.status IN ('pending', 'running') AND a.started_day = $1)
$$;

-- Drops a day's partition of run_events, if it is there. SECURITY DEFINER: whoever prunes owns no table.
-- An attempt gets its day after its run's row is locked and before its first event is stored, so one that
-- begins now is seen, or waits for the partition and makes it anew.
CREATE FUNCTION runledger_drop_event_partition(day date) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    partition text := 'run_events_' || to_char(day, 'YYYYMMDD');
BEGIN
    IF runledger_events_are_pinned(day) THEN
        RAISE EXCEPTION 'events of % are kept: an unfinished run began then', day USING ERRCODE = 'RL001';
    END IF;
    EXECUTE format('DROP TABLE IF EXISTS %I', partition);
END $$;
REVOKE EXECUTE ON FUNCTION runledger_drop_event_partition(date) FROM PUBLIC;
