-- Evals: sets of a customer's rows, the documents that belong to them, runs, and what each model answered.

CREATE TABLE control.eval_set (
    id text PRIMARY KEY,
    org_id text NOT NULL REFERENCES control.organization,
    task_id text NOT NULL REFERENCES control.task,
    name text NOT NULL CHECK (length(name) <= 200),
    item_count integer NOT NULL CHECK (item_count > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    -- Runs and their results outlive their set.
    deleted_at timestamptz,
    -- The client's idempotency key, if it sent one, and what the request was.
    claim text,
    fingerprint text
);
CREATE INDEX eval_set_of_organization ON control.eval_set (org_id, created_at) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX eval_set_claim ON control.eval_set (org_id, claim) WHERE claim IS NOT NULL;

CREATE TABLE control.eval_row (
    set_id text NOT NULL REFERENCES control.eval_set,
    idx integer NOT NULL CHECK (idx >= 0),
    -- What models are asked, what a good answer is, and what else the row said.
    input jsonb NOT NULL,
    expected jsonb NOT NULL,
    extra jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (set_id, idx)
);

CREATE TABLE control.eval_document (
    set_id text NOT NULL,
    idx integer NOT NULL,
    field_name text NOT NULL,
    mime text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    -- Where the bytes lie; never told as an address.
    blob_id text NOT NULL,
    attached_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (set_id, idx, field_name),
    FOREIGN KEY (set_id, idx) REFERENCES control.eval_row
);

-- A right to send the bytes of one document, once and for a while.
CREATE TABLE control.eval_upload (
    blob_id text PRIMARY KEY,
    -- SHA-256 of the secret in the URL.
    secret bytea NOT NULL CHECK (octet_length(secret) = 32),
    set_id text NOT NULL,
    idx integer NOT NULL,
    field_name text NOT NULL,
    mime text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    expires_at timestamptz NOT NULL,
    -- open: may be used; taken: bytes are coming; there: they have come, all of them.
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'taken', 'there')),
    FOREIGN KEY (set_id, idx) REFERENCES control.eval_row
);
CREATE INDEX eval_upload_expiry ON control.eval_upload (expires_at);

CREATE TABLE control.eval_run (
    id text PRIMARY KEY,
    org_id text NOT NULL REFERENCES control.organization,
    key_id text NOT NULL,
    set_id text NOT NULL REFERENCES control.eval_set,
    -- settling: the results are there, and their price is on its way to the books.
    status text NOT NULL DEFAULT 'queued' CHECK (status IN
        ('queued', 'running', 'evaluating', 'settling', 'completed', 'failed')),
    error_detail text,
    -- What was measured with, as it was then: catalogues change.
    scorer text NOT NULL,
    scorer_settings jsonb NOT NULL,
    system_prompt text,
    prompt_scaffold text,
    max_output_tokens integer NOT NULL CHECK (max_output_tokens > 0),
    -- The credit that is held for it.
    hold_id text NOT NULL,
    hold_epoch integer NOT NULL,
    held_micros bigint NOT NULL CHECK (held_micros >= 0),
    total_cost_micros bigint NOT NULL DEFAULT 0 CHECK (total_cost_micros BETWEEN 0 AND held_micros),
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    claim text,
    fingerprint text NOT NULL,
    CHECK ((status IN ('completed', 'failed')) = (ended_at IS NOT NULL)),
    CHECK (status <> 'failed' OR total_cost_micros = 0)
);
CREATE INDEX eval_run_of_organization ON control.eval_run (org_id, created_at);
CREATE INDEX eval_run_under_way ON control.eval_run (created_at) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX eval_run_claim ON control.eval_run (org_id, claim) WHERE claim IS NOT NULL;

-- A model that a run measures. name: the alias or the vendor's id, as it was asked for.
CREATE TABLE control.eval_candidate (
    run_id text NOT NULL REFERENCES control.eval_run,
    position integer NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('open', 'frontier')),
    -- The real one of an open model; never leaves the house.
    model_id text NOT NULL,
    vendor text,
    cost_per_request_micros bigint CHECK (cost_per_request_micros >= 0),
    prompt_rate_nanos bigint CHECK (prompt_rate_nanos >= 0),
    completion_rate_nanos bigint CHECK (completion_rate_nanos >= 0),
    -- Set when the run is over.
    quality_mean double precision CHECK (quality_mean BETWEEN 0 AND 1),
    quality_low double precision CHECK (quality_low BETWEEN 0 AND quality_mean),
    quality_high double precision CHECK (quality_high BETWEEN quality_mean AND 1),
    mean_cost_micros bigint,
    succeeded integer,
    failed integer,
    PRIMARY KEY (run_id, position),
    UNIQUE (run_id, name),
    CHECK ((kind = 'open') = (cost_per_request_micros IS NOT NULL)),
    CHECK ((kind = 'frontier') = (vendor IS NOT NULL AND prompt_rate_nanos IS NOT NULL AND completion_rate_nanos IS NOT NULL))
);

-- What a model answered to a row: written once. A row whose call failed costs nothing.
CREATE TABLE control.eval_answer (
    run_id text NOT NULL,
    position integer NOT NULL,
    idx integer NOT NULL,
    prediction text,
    score double precision CHECK (score BETWEEN 0 AND 1),
    error text,
    cost_micros bigint NOT NULL DEFAULT 0 CHECK (cost_micros >= 0),
    prompt_tokens integer,
    completion_tokens integer,
    answered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, position, idx),
    FOREIGN KEY (run_id, position) REFERENCES control.eval_candidate,
    CHECK ((score IS NULL) = (error IS NOT NULL)),
    CHECK (error IS NULL OR cost_micros = 0)
);
