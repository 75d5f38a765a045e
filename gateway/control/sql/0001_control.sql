-- Organizations, keys, endpoints and their backends: what an operator arranges and the workers mirror.
--
-- Every change that a worker must obey is announced on the channel pareta_state, inside the transaction that makes it,
-- as {"kind": "org" | "key" | "endpoint", "id": …}. Listeners read the row anew; only that a key is revoked is said in
-- the announcement itself ("revoked": true), so that its open streams end even where nothing can be read.

-- One row for ever. The pepper authenticates key ids (gateway/core/keys.py); it is no password and opens nothing.
-- gen_random_uuid() draws 122 random bits from the server's strong source; four of them fill 32 bytes amply.
CREATE TABLE control.installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    pepper bytea NOT NULL CHECK (octet_length(pepper) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO control.installation (pepper)
VALUES (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
               || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));

CREATE TABLE control.organization (
    id text PRIMARY KEY CHECK (id ~ '^org_[a-z2-7]{12}$'),
    name text NOT NULL UNIQUE CHECK (name <> '' AND length(name) <= 100),
    -- Ceilings; NULL means none.
    requests_per_minute bigint CHECK (requests_per_minute > 0),
    tokens_per_minute bigint CHECK (tokens_per_minute > 0),
    concurrent bigint CHECK (concurrent > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE control.api_key (
    id text PRIMARY KEY CHECK (id ~ '^[a-z2-7]{24}$'),
    org_id text NOT NULL REFERENCES control.organization,
    -- SHA-256 of the secret part; the secret itself is stored nowhere.
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    scope text NOT NULL CHECK (scope IN ('full', 'read')),
    name text NOT NULL DEFAULT '' CHECK (length(name) <= 100),
    requests_per_minute bigint CHECK (requests_per_minute > 0),
    tokens_per_minute bigint CHECK (tokens_per_minute > 0),
    concurrent bigint CHECK (concurrent > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz
);
CREATE INDEX api_key_of_org ON control.api_key (org_id, created_at);

CREATE TABLE control.endpoint (
    id text PRIMARY KEY CHECK (id ~ '^ep_[A-Za-z0-9_-]{1,60}$'),
    org_id text NOT NULL REFERENCES control.organization,
    -- What a customer passes as `model`; equal to the id unless a name was given.
    name text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$' AND name NOT IN ('auto', 'recommended')),
    -- The public label; the real model id never leaves the house.
    model_alias text,
    real_model text NOT NULL CHECK (real_model <> '' AND length(real_model) <= 300),
    status text NOT NULL CHECK (status IN ('deploying', 'starting', 'live', 'stopped', 'failed', 'seed')),
    context_tokens bigint NOT NULL CHECK (context_tokens > 0),
    max_output_tokens bigint NOT NULL CHECK (max_output_tokens > 0 AND max_output_tokens <= context_tokens),
    deadline_s double precision NOT NULL DEFAULT 600 CHECK (deadline_s > 0 AND deadline_s <= 86400),
    capabilities text[] NOT NULL CHECK (capabilities <@ ARRAY['chat', 'completion', 'embedding', 'tools', 'logprobs']),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Removed endpoints stay for their receipts; an id is never used again.
    deleted_at timestamptz,
    -- A name that looks like an id may only be the row's own.
    CHECK (name = id OR name NOT LIKE 'ep\_%')
);
CREATE UNIQUE INDEX endpoint_name ON control.endpoint (org_id, name) WHERE deleted_at IS NULL;
CREATE INDEX endpoint_present ON control.endpoint (created_at, id) WHERE deleted_at IS NULL;

CREATE TABLE control.backend (
    id text PRIMARY KEY CHECK (id ~ '^be_[a-z2-7]{12}$'),
    endpoint_id text NOT NULL REFERENCES control.endpoint ON DELETE CASCADE,
    url text NOT NULL CHECK (url ~ '^https?://'),
    kind text NOT NULL DEFAULT 'openai' CHECK (kind IN ('openai')),
    -- {"api_key_file": path, "tolerates_unknown_fields": bool, "health_path": path}; each has a default.
    options jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(options) = 'object'),
    -- A drained backend gets no new requests and keeps its place.
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'drained')),
    position integer NOT NULL DEFAULT 0,
    UNIQUE (endpoint_id, url)
);

CREATE FUNCTION control.announce(kind text, id text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('pareta_state', json_build_object('kind', kind, 'id', id)::text)
$$;

CREATE FUNCTION control.announce_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM control.announce(TG_ARGV[0], OLD.id);
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND NEW.id <> OLD.id) THEN
        PERFORM control.announce(TG_ARGV[0], NEW.id);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION control.announce_key() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    revoked boolean := TG_OP = 'DELETE';
BEGIN
    IF TG_OP = 'UPDATE' THEN
        revoked := NEW.revoked_at IS NOT NULL OR NEW.id <> OLD.id;
    END IF;
    PERFORM pg_notify('pareta_state', json_build_object('kind', 'key', 'id', OLD.id, 'revoked', revoked)::text);
    RETURN NULL;
END $$;

CREATE FUNCTION control.announce_backend() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        PERFORM control.announce('endpoint', OLD.endpoint_id);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        PERFORM control.announce('endpoint', NEW.endpoint_id);
    END IF;
    RETURN NULL;
END $$;

-- New keys and organizations are no news: nobody can have asked for their ids before they were shown. So minting
-- many keys wakes no worker.
CREATE TRIGGER announce AFTER UPDATE OR DELETE ON control.organization
    FOR EACH ROW EXECUTE FUNCTION control.announce_row('org');
CREATE TRIGGER announce AFTER UPDATE OR DELETE ON control.api_key
    FOR EACH ROW EXECUTE FUNCTION control.announce_key();
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON control.endpoint
    FOR EACH ROW EXECUTE FUNCTION control.announce_row('endpoint');
CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON control.backend
    FOR EACH ROW EXECUTE FUNCTION control.announce_backend();
