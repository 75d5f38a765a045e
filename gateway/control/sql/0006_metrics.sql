-- What metrics need besides the ledger's sums: when an endpoint stood where, and what a judge thought of its answers.
CREATE TABLE control.endpoint_history (
    endpoint_id text NOT NULL REFERENCES control.endpoint,
    since timestamptz NOT NULL,
    status text NOT NULL,
    PRIMARY KEY (endpoint_id, since)
);

CREATE FUNCTION control.keep_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' OR NEW.status <> OLD.status THEN
        INSERT INTO control.endpoint_history (endpoint_id, since, status) VALUES (NEW.id, clock_timestamp(), NEW.status)
        ON CONFLICT (endpoint_id, since) DO UPDATE SET status = EXCLUDED.status;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER keep_history AFTER INSERT OR UPDATE OF status ON control.endpoint
    FOR EACH ROW EXECUTE FUNCTION control.keep_history();
INSERT INTO control.endpoint_history (endpoint_id, since, status)
    SELECT id, coalesce(status_since, created_at), status FROM control.endpoint;

-- Times in which no engine of a live endpoint answered; to_at is NULL while it lasts.
CREATE TABLE control.endpoint_outage (
    endpoint_id text NOT NULL REFERENCES control.endpoint,
    from_at timestamptz NOT NULL,
    to_at timestamptz CHECK (to_at >= from_at),
    PRIMARY KEY (endpoint_id, from_at)
);
CREATE UNIQUE INDEX endpoint_outage_now ON control.endpoint_outage (endpoint_id) WHERE to_at IS NULL;

-- What a judge thought of sampled answers, by hour. No answer is kept.
CREATE TABLE control.judge_window (
    endpoint_id text NOT NULL REFERENCES control.endpoint,
    hour timestamptz NOT NULL,
    judged bigint NOT NULL CHECK (judged > 0),
    score_sum double precision NOT NULL CHECK (score_sum BETWEEN 0 AND judged),
    PRIMARY KEY (endpoint_id, hour)
);
