-- Usage summed by endpoint and hour, so that a month of ten million requests is read in milliseconds. Kept by a trigger in
-- the transaction that books the usage: what is booked once is counted once, and is seen as soon as it is booked.
CREATE TABLE ledger.usage_hour (
    endpoint_id       text COLLATE "C" NOT NULL,
    hour              timestamptz NOT NULL,
    org_id            text COLLATE "C" NOT NULL,
    -- Answered ones, and those that an engine or we failed; what a client gave up is neither.
    requests          bigint NOT NULL DEFAULT 0,
    errors            bigint NOT NULL DEFAULT 0,
    abandoned         bigint NOT NULL DEFAULT 0,
    prompt_tokens     bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    amount_nanos      bigint NOT NULL DEFAULT 0,
    last_at           timestamptz NOT NULL,
    PRIMARY KEY (endpoint_id, hour, org_id)
);

-- How often a measure fell into a bucket. Bucket b holds values from 1.04^b to 1.04^(b+1): its middle is within 2 %.
CREATE TABLE ledger.usage_histogram (
    endpoint_id text COLLATE "C" NOT NULL,
    hour        timestamptz NOT NULL,
    measure     smallint NOT NULL CHECK (measure IN (0, 1, 2)), -- total ms, ms to the first token, tokens a second
    bucket      smallint NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (endpoint_id, hour, measure, bucket)
);

-- The same by day: ninety days of one endpoint are then some ten thousand rows to read, not some hundred thousand.
CREATE TABLE ledger.usage_histogram_day (
    endpoint_id text COLLATE "C" NOT NULL,
    day         timestamptz NOT NULL,
    measure     smallint NOT NULL CHECK (measure IN (0, 1, 2)),
    bucket      smallint NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (endpoint_id, day, measure, bucket)
);

CREATE FUNCTION ledger.bucket_of(value double precision) RETURNS smallint LANGUAGE sql IMMUTABLE AS $$
    SELECT floor(ln(least(greatest(value, 1e-3), 1e9)) / ln(1.04))::smallint
$$;

-- Adds rows of usage_event to the tables. A correction counts as no request; its tokens are the final ones, so that the
-- difference to what was booked first is added.
CREATE FUNCTION ledger.sum_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger.usage_hour AS h
        (endpoint_id, hour, org_id, requests, errors, abandoned, prompt_tokens, completion_tokens, amount_nanos, last_at)
    SELECT u.endpoint_id, date_trunc('hour', u.settled_at, 'UTC'), u.org_id,
        count(*) FILTER (WHERE u.revision = 0 AND u.outcome IN ('finished', 'length')),
        count(*) FILTER (WHERE u.revision = 0 AND u.outcome IN ('failed', 'reaped')),
        count(*) FILTER (WHERE u.revision = 0 AND u.outcome = 'abandoned'),
        sum(CASE WHEN u.kind = 'void' THEN 0 ELSE u.prompt_tokens + u.cached_prompt_tokens END
            - coalesce(f.prompt_tokens + f.cached_prompt_tokens, 0)),
        sum(CASE WHEN u.kind = 'void' THEN 0 ELSE u.completion_tokens + u.reasoning_tokens END
            - coalesce(f.completion_tokens + f.reasoning_tokens, 0)),
        sum(u.amount_nanos),
        max(u.settled_at)
    FROM fresh AS u
    LEFT JOIN ledger.usage_event AS f
        ON u.revision = 1 AND f.hold_id = u.hold_id AND f.id_time = u.id_time AND f.revision = 0
    WHERE u.endpoint_id IS NOT NULL
    GROUP BY 1, 2, 3
    ORDER BY 1, 2, 3 -- so that nobody waits in a circle
    ON CONFLICT (endpoint_id, hour, org_id) DO UPDATE SET
        requests = h.requests + EXCLUDED.requests,
        errors = h.errors + EXCLUDED.errors,
        abandoned = h.abandoned + EXCLUDED.abandoned,
        prompt_tokens = h.prompt_tokens + EXCLUDED.prompt_tokens,
        completion_tokens = h.completion_tokens + EXCLUDED.completion_tokens,
        amount_nanos = h.amount_nanos + EXCLUDED.amount_nanos,
        last_at = greatest(h.last_at, EXCLUDED.last_at);

    WITH counted AS MATERIALIZED (
        SELECT u.endpoint_id, date_trunc('hour', u.settled_at, 'UTC') AS hour, m.measure,
            ledger.bucket_of(m.value) AS bucket, count(*) AS count
        FROM fresh AS u
        CROSS JOIN LATERAL (VALUES
            (0::smallint, u.total_ms::double precision),
            (1::smallint, u.ttft_ms::double precision),
            (2::smallint, CASE WHEN u.streamed AND u.total_ms > u.ttft_ms
                THEN u.completion_tokens * 1000.0 / (u.total_ms - u.ttft_ms) END)
        ) AS m (measure, value)
        WHERE u.endpoint_id IS NOT NULL AND u.revision = 0 AND u.outcome IN ('finished', 'length') AND m.value > 0
        GROUP BY 1, 2, 3, 4
    ),
    days AS (
        INSERT INTO ledger.usage_histogram_day AS d (endpoint_id, day, measure, bucket, count)
        SELECT endpoint_id, date_trunc('day', hour, 'UTC'), measure, bucket, sum(count) FROM counted
        GROUP BY 1, 2, 3, 4
        ORDER BY 1, 2, 3, 4
        ON CONFLICT (endpoint_id, day, measure, bucket) DO UPDATE SET count = d.count + EXCLUDED.count
    )
    INSERT INTO ledger.usage_histogram AS h (endpoint_id, hour, measure, bucket, count)
    SELECT endpoint_id, hour, measure, bucket, count FROM counted
    ORDER BY 1, 2, 3, 4
    ON CONFLICT (endpoint_id, hour, measure, bucket) DO UPDATE SET count = h.count + EXCLUDED.count;
    RETURN NULL;
END $$;
CREATE TRIGGER sum_usage AFTER INSERT ON ledger.usage_event
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION ledger.sum_usage();

-- What was booked before this release.
DO $$
BEGIN
    CREATE TEMPORARY TABLE earlier (LIKE ledger.usage_event) ON COMMIT DROP;
    CREATE TRIGGER sum_usage AFTER INSERT ON earlier
        REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION ledger.sum_usage();
    INSERT INTO earlier SELECT * FROM ledger.usage_event;
END $$;
