-- Deploys: an endpoint of a task, how far it has come, and what serves a model.
ALTER TABLE control.endpoint
    ADD COLUMN task_id text REFERENCES control.task,
    -- The catalogue's model; real_model is what its engines call it. Neither leaves the house.
    ADD COLUMN model_id text REFERENCES control.model,
    -- How far a deploy or a start has come, a word; and why it failed, a sentence. Both are public.
    ADD COLUMN stage text,
    ADD COLUMN status_detail text,
    -- When its present status began.
    ADD COLUMN status_since timestamptz NOT NULL DEFAULT now();

CREATE FUNCTION control.note_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status THEN
        NEW.status_since := now();
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER note_status BEFORE UPDATE ON control.endpoint
    FOR EACH ROW EXECUTE FUNCTION control.note_status();
CREATE INDEX endpoint_under_way ON control.endpoint (created_at)
    WHERE deleted_at IS NULL AND status IN ('deploying', 'starting');

-- What serves an open model: a driver and what it has to know. Data of the operator; customers see none of it.
CREATE TABLE control.serving (
    model_id text PRIMARY KEY REFERENCES control.model,
    driver text NOT NULL CHECK (driver IN ('static')),
    spec jsonb NOT NULL CHECK (jsonb_typeof(spec) = 'object'),
    max_output_tokens bigint CHECK (max_output_tokens > 0),
    changed_at timestamptz NOT NULL DEFAULT now()
);
