-- Engines of this host, and models on a Triton server, beside engines that somebody else runs.
ALTER TABLE control.serving
    DROP CONSTRAINT serving_driver_check,
    ADD CONSTRAINT serving_driver_check CHECK (driver IN ('static', 'process', 'triton'));

-- A deploy that is sent again under its client's idempotency key is the same deploy.
ALTER TABLE control.endpoint ADD COLUMN claim text, ADD COLUMN fingerprint text;
CREATE UNIQUE INDEX endpoint_claim ON control.endpoint (org_id, claim) WHERE claim IS NOT NULL;
