-- Scale to zero: endpoints of some models are put to sleep when nobody has called them for a while, and woken by a call.
ALTER TABLE control.serving ADD COLUMN idle_s integer CHECK (idle_s >= 1);
ALTER TABLE control.endpoint
    -- As its model's; NULL: it never sleeps. Workers say of the others when they are used.
    ADD COLUMN idle_s integer CHECK (idle_s >= 1),
    ADD COLUMN asleep boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT asleep_is_stopped CHECK (NOT asleep OR status = 'stopped');

-- When a request was last begun or was still running. No column of the endpoint, whose changes all workers hear of.
CREATE TABLE control.endpoint_use (
    endpoint_id text PRIMARY KEY REFERENCES control.endpoint ON DELETE CASCADE,
    used_at timestamptz NOT NULL
);

CREATE OR REPLACE FUNCTION control.note_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.status <> OLD.status THEN
        NEW.status_since := now();
    END IF;
    NEW.asleep := NEW.asleep AND NEW.status = 'stopped';
    RETURN NEW;
END $$;
