-- Engines of this host, models on a Triton server and engines in a cluster, beside engines that somebody else runs.
ALTER TABLE control.serving
    DROP CONSTRAINT serving_driver_check,
    ADD CONSTRAINT serving_driver_check CHECK (driver IN ('static', 'process', 'triton', 'kubernetes'));

-- A deploy that is sent again under its client's idempotency key is the same deploy.
ALTER TABLE control.endpoint ADD COLUMN claim text, ADD COLUMN fingerprint text;
CREATE UNIQUE INDEX endpoint_claim ON control.endpoint (org_id, claim) WHERE claim IS NOT NULL;

-- How long models took to become ready, so that whoever calls one that is starting is told when to come again.
CREATE TABLE control.start_time (
    model_id text NOT NULL REFERENCES control.model,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seconds double precision NOT NULL CHECK (seconds >= 0),
    PRIMARY KEY (model_id, ended_at)
);
-- While it is on its way: the Retry-After of its 503.
ALTER TABLE control.endpoint ADD COLUMN starts_in_s integer CHECK (starts_in_s BETWEEN 1 AND 30);
