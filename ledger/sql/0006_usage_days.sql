-- The histograms by day as well: ninety days of one endpoint are then some ten thousand rows to read, not some hundred
-- thousand. Kept by the same trigger, in the same transaction.
CREATE TABLE ledger.usage_histogram_day (
    endpoint_id text COLLATE "C" NOT NULL,
    day         timestamptz NOT NULL,
    measure     smallint NOT NULL CHECK (measure IN (0, 1, 2)),
    bucket      smallint NOT NULL,
    count       bigint NOT NULL,
    PRIMARY KEY (endpoint_id, day, measure, bucket)
);

CREATE OR REPLACE FUNCTION ledger.sum_usage() RETURNS trigger LANGUAGE plpgsql AS $$
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

-- What was counted before this release. Nothing is booked meanwhile: this waits for who books, and they for this.
LOCK TABLE ledger.usage_histogram IN SHARE ROW EXCLUSIVE MODE;
INSERT INTO ledger.usage_histogram_day (endpoint_id, day, measure, bucket, count)
SELECT endpoint_id, date_trunc('day', hour, 'UTC'), measure, bucket, sum(count) FROM ledger.usage_histogram
GROUP BY 1, 2, 3, 4;
