-- For `runledger prune`. Deleting a message or a session looks for sessions that point at it, once for
-- each row. Both are nearly always null, so the indexes are small and their build reads sessions once.
CREATE INDEX IF NOT EXISTS sessions_branch_point_message_id ON sessions (branch_point_message_id)
    WHERE branch_point_message_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS sessions_parent_session_id ON sessions (parent_session_id)
    WHERE parent_session_id IS NOT NULL;
