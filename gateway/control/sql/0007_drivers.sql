-- Engines of this host, and models on a Triton server, beside engines that somebody else runs.
ALTER TABLE control.serving
    DROP CONSTRAINT serving_driver_check,
    ADD CONSTRAINT serving_driver_check CHECK (driver IN ('static', 'process', 'triton'));
