-- The tables of the earlier system with rows in them, as its own installations have them.
CREATE FUNCTION update_updated_at_column() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN NEW.updated_at = CURRENT_TIMESTAMP; RETURN NEW; END $$;

CREATE TABLE users (
    id uuid PRIMARY KEY,
    email text UNIQUE,
    phone_number text,
    user_data jsonb DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE agents (
    id serial PRIMARY KEY,
    name text NOT NULL UNIQUE,
    type text NOT NULL,
    model text NOT NULL,
    description text,
    version text,
    config jsonb DEFAULT '{}',
    active boolean DEFAULT true,
    run_id integer DEFAULT 0,
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
CREATE TABLE sessions (
    id uuid PRIMARY KEY,
    user_id uuid REFERENCES users (id) ON DELETE SET NULL,
    agent_id integer REFERENCES agents (id) ON DELETE CASCADE,
    agent_name text,
    name text,
    platform text,
    metadata jsonb DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    run_finished_at timestamptz,
    message_count integer DEFAULT 0
);
CREATE TABLE messages (
    id uuid PRIMARY KEY,
    session_id uuid REFERENCES sessions (id) ON DELETE CASCADE,
    user_id uuid REFERENCES users (id) ON DELETE SET NULL,
    agent_id integer REFERENCES agents (id) ON DELETE CASCADE,
    role text NOT NULL,
    text_content text,
    media_url text,
    mime_type text,
    message_type text,
    raw_payload jsonb DEFAULT '{}',
    tool_calls jsonb DEFAULT '{}',
    tool_outputs jsonb DEFAULT '{}',
    context jsonb DEFAULT '{}',
    system_prompt text,
    user_feedback text,
    flagged text,
    channel_payload jsonb,
    usage jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(usage) = 'object'),
    created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
);
CREATE TABLE migrations (
    id serial PRIMARY KEY,
    name varchar(255) NOT NULL UNIQUE,
    checksum varchar(64),
    applied_at timestamptz DEFAULT now(),
    execution_time_ms integer,
    status varchar(20) DEFAULT 'applied'
);
INSERT INTO migrations (name) VALUES ('001_first'), ('002_second');

INSERT INTO users (id, email, created_at, updated_at)
SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'u' || n || '@example.com',
       timestamptz '2025-01-01 00:00Z', timestamptz '2025-02-01 00:00Z'
FROM generate_series(1, 20) n;
INSERT INTO agents (name, type, model, created_at, updated_at)
SELECT 'agent' || n, 'claude', 'claude-3', '2025-01-01 00:00Z', CASE WHEN n > 2 THEN timestamptz '2025-01-01 00:00Z' END
FROM generate_series(1, 3) n;
-- Names repeat, across users too; metadata is not always an object.
INSERT INTO sessions (id, user_id, agent_id, agent_name, name, platform, metadata, created_at, updated_at, message_count)
SELECT ('10000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % 20), 12, '0'))::uuid, 1 + n % 3, 'agent' || (1 + n % 3),
       'talk ' || n % 7, 'claude-code',
       CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN '[]'::jsonb ELSE jsonb_build_object('n', n) END,
       timestamptz '2025-01-01 00:00Z' + n * interval '1 hour', timestamptz '2025-02-01 00:00Z' + n * interval '1 hour',
       nullif(n % 11, 0)
FROM generate_series(1, 200) n;
INSERT INTO messages (id, session_id, user_id, agent_id, role, text_content, message_type, tool_calls, created_at, updated_at)
SELECT ('20000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
       CASE WHEN n % 50 > 0 THEN ('10000000-0000-4000-8000-' || lpad(to_hex(1 + n % 200), 12, '0'))::uuid END,
       NULL, 1 + n % 3, CASE n % 2 WHEN 0 THEN 'user' ELSE 'assistant' END, 'words ' || n, 'text',
       CASE WHEN n % 9 = 0 THEN NULL ELSE '[]'::jsonb END,
       CASE WHEN n % 97 > 0 THEN timestamptz '2025-03-01 00:00Z' + n * interval '1 minute' END,
       timestamptz '2025-03-01 00:00Z' + n * interval '1 minute'
FROM generate_series(1, 2000) n;
CREATE TRIGGER update_users_updated_at BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_agents_updated_at BEFORE UPDATE ON agents FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_sessions_updated_at BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
CREATE TRIGGER update_messages_updated_at BEFORE UPDATE ON messages FOR EACH ROW EXECUTE FUNCTION update_updated_at_column();
