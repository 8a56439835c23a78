-- What each run changed, as patches that `git apply` takes, to be read when its pod and its volume are
-- gone. Bytes, since a file's content need not be text in any encoding. Of several attempts the last
-- word counts: each counts from the run's initial commit.
CREATE TABLE run_patches (
    run_id       uuid NOT NULL,
    -- What is committed, and what was left uncommitted at the end.
    part         text NOT NULL CHECK (part IN ('committed', 'uncommitted')),
    -- The event that said so.
    attempt      int NOT NULL,
    sequence     bigint NOT NULL CHECK (sequence > 0),
    at           timestamptz NOT NULL,
    base_commit  text,
    patch        bytea NOT NULL CHECK (octet_length(patch) <= 2097152),
    files        bigint NOT NULL CHECK (files >= 0),
    binary_files bigint NOT NULL CHECK (binary_files >= 0),
    left_out     bigint NOT NULL CHECK (left_out >= 0),
    size         bigint CHECK (size >= 0),
    unknown      text,
    truncated    boolean NOT NULL GENERATED ALWAYS AS (left_out > 0 OR unknown IS NOT NULL) STORED,
    PRIMARY KEY (run_id, part),
    FOREIGN KEY (run_id, attempt) REFERENCES run_attempts (run_id, attempt) ON DELETE CASCADE
);
COMMENT ON COLUMN run_patches.base_commit IS 'The commit that it applies to; null where there was none yet';
COMMENT ON COLUMN run_patches.files IS 'Files that it shows; others are named at its head';
COMMENT ON COLUMN run_patches.left_out IS 'Files that are too large for it, in conflict or repositories of their own';
COMMENT ON COLUMN run_patches.size IS 'Bytes that it would have with those that are too large; null where nobody measured that';
COMMENT ON COLUMN run_patches.unknown IS 'Why there is none, where it could not be made';
