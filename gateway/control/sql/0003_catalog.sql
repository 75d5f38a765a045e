-- The catalogue: tasks, models, their names in public, what was measured, the roster of vendors' models.
--
-- It is imported from files (gateway/control/catalog); every import is one transaction and is kept as a row of
-- catalog_import. What a file does not name any more is retired, not removed: an alias is a promise for ever.

CREATE TABLE control.catalog_import (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    version text NOT NULL CHECK (version <> '' AND length(version) <= 100),
    -- SHA-256 of the canonical content, so that the same files twice are seen to be the same.
    checksum bytea NOT NULL CHECK (octet_length(checksum) = 32),
    changes jsonb NOT NULL,
    imported_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE control.task (
    id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9-]{0,62}$' AND id <> 'match'),
    position integer NOT NULL,
    title text NOT NULL,
    description text NOT NULL,
    category text NOT NULL,
    keywords text[] NOT NULL DEFAULT '{}',
    default_scorer text NOT NULL CHECK (default_scorer <> ''),
    scorer_settings jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(scorer_settings) = 'object'),
    scoring_strategy text NOT NULL,
    has_blob_input boolean NOT NULL,
    input_fields jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(input_fields) = 'array'),
    expected_schema jsonb,
    system_prompt text,
    prompt_scaffold text,
    metric text NOT NULL,
    cost_unit text NOT NULL,
    examples jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(examples) = 'array'),
    -- The operator's pick; without one the best open model is recommended.
    recommended_alias text,
    retired_at timestamptz,
    CHECK (system_prompt IS NULL OR prompt_scaffold IS NULL)
);

-- Open models. The id is the real one and never leaves the house.
CREATE TABLE control.model (
    id text PRIMARY KEY CHECK (id <> '' AND length(id) <= 300),
    family text NOT NULL CHECK (family ~ '^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*$' AND length(family) <= 80),
    context_tokens bigint NOT NULL CHECK (context_tokens > 0),
    vision boolean NOT NULL DEFAULT false,
    added_at timestamptz NOT NULL DEFAULT now()
);

-- The public name of a model in one task. Given once, in the order in which models join; kept for ever.
CREATE TABLE control.task_alias (
    task_id text NOT NULL REFERENCES control.task,
    alias text NOT NULL CHECK (alias ~ '^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*-[1-9][0-9]*$' AND length(alias) <= 100),
    model_id text NOT NULL REFERENCES control.model,
    -- What a request costs its customer.
    cost_per_request_micros bigint NOT NULL CHECK (cost_per_request_micros >= 0),
    listed boolean NOT NULL DEFAULT true,
    given_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (task_id, alias),
    UNIQUE (task_id, model_id)
);

CREATE FUNCTION control.keep_alias() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (NEW.task_id, NEW.alias, NEW.model_id) IS DISTINCT FROM (OLD.task_id, OLD.alias, OLD.model_id) THEN
        RAISE EXCEPTION 'an alias is given for ever' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER keep BEFORE UPDATE OR DELETE ON control.task_alias
    FOR EACH ROW EXECUTE FUNCTION control.keep_alias();

-- Models that vendors host. Rates in nano-USD a million tokens, as the vendor lists them.
CREATE TABLE control.frontier_model (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._-]{1,128}$'),
    position integer NOT NULL,
    vendor text NOT NULL CHECK (vendor <> ''),
    vision boolean NOT NULL,
    context_tokens bigint NOT NULL CHECK (context_tokens > 0),
    prompt_rate_nanos bigint NOT NULL CHECK (prompt_rate_nanos >= 0),
    completion_rate_nanos bigint NOT NULL CHECK (completion_rate_nanos >= 0),
    retired_at timestamptz
);

-- What was measured, with all that is needed to measure it again. subject: a model's real id, or a frontier model's id.
CREATE TABLE control.measurement (
    task_id text NOT NULL REFERENCES control.task,
    kind text NOT NULL CHECK (kind IN ('open', 'frontier')),
    subject text NOT NULL,
    quality double precision NOT NULL CHECK (quality BETWEEN 0 AND 1),
    quality_low double precision CHECK (quality_low BETWEEN 0 AND quality),
    quality_high double precision CHECK (quality_high BETWEEN quality AND 1),
    -- Of a frontier model: the mean of its list price over the rows. An open one costs its alias' flat rate.
    cost_per_request_micros bigint CHECK (cost_per_request_micros >= 0),
    items integer NOT NULL CHECK (items > 0),
    provenance jsonb NOT NULL CHECK (jsonb_typeof(provenance) = 'object'),
    PRIMARY KEY (task_id, kind, subject),
    CHECK (kind = 'open' OR cost_per_request_micros IS NOT NULL)
);
