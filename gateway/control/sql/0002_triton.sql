-- Backends on a Triton server: triton://host:port/model, see backends/triton_backend.py.
-- Further options: {"model_folder": path, "metrics_url": url}.
ALTER TABLE control.backend
    DROP CONSTRAINT backend_url_check,
    DROP CONSTRAINT backend_kind_check,
    ADD CONSTRAINT backend_kind_check CHECK (kind IN ('openai', 'triton')),
    ADD CONSTRAINT backend_url_check CHECK (
        CASE kind WHEN 'triton' THEN url ~ '^triton://' ELSE url ~ '^https?://' END
    );
