-- Usage booked from $1 to before $2, of the organization $3 or of all: what was charged at the time of its transfer, so that
-- its sum is that of the transfers; what cost nothing at the time when it ended. A correction restates its event, so here it
-- has the difference of every number: all rows of a request add up to what it was.
WITH booked AS (
    SELECT u.*, t.posted_at AS booked_at, t.id AS transfer_id
    FROM ledger.transfer AS t
    JOIN ledger.usage_event AS u
        ON u.hold_id = t.event_id AND u.id_time = t.id_time AND u.revision = CASE t.kind WHEN 'charge' THEN 0 ELSE 1 END
    WHERE t.posted_at >= $1 AND t.posted_at < $2 AND t.kind IN ('charge', 'late_charge', 'late_refund')
        AND ($3::text IS NULL OR u.org_id = $3)
        AND ($3::text IS NULL OR t.debit_account IN (SELECT id FROM ledger.account WHERE org_id = $3)
            OR t.credit_account IN (SELECT id FROM ledger.account WHERE org_id = $3))
    UNION ALL
    SELECT u.*, u.settled_at, NULL
    FROM ledger.usage_event AS u
    WHERE u.amount_nanos = 0 AND u.settled_at >= $1 AND u.settled_at < $2 AND ($3::text IS NULL OR u.org_id = $3)
)
SELECT
    b.booked_at, b.hold_id AS request_id, b.revision, b.kind, b.org_id, b.key_id, b.endpoint_id, b.alias, b.route, b.outcome,
    b.status, b.source AS usage_source, b.price_card_id, b.discount_bps, b.recovered,
    b.prompt_tokens - coalesce(f.prompt_tokens, 0) AS prompt_tokens,
    b.cached_prompt_tokens - coalesce(f.cached_prompt_tokens, 0) AS cached_prompt_tokens,
    b.completion_tokens - coalesce(f.completion_tokens, 0) AS completion_tokens,
    b.reasoning_tokens - coalesce(f.reasoning_tokens, 0) AS reasoning_tokens,
    b.requests - coalesce(f.requests, 0) AS requests,
    b.images - coalesce(f.images, 0) AS images,
    b.audio_seconds - coalesce(f.audio_seconds, 0) AS audio_seconds,
    b.eval_micros - coalesce(f.eval_micros, 0) AS eval_micros,
    b.amount_nanos,
    b.shortfall_nanos - coalesce(f.shortfall_nanos, 0) AS shortfall_nanos,
    b.started_at, b.settled_at AS ended_at, b.transfer_id
FROM booked AS b
-- LIMIT keeps this a lookup by key, done for corrections alone, which are few.
LEFT JOIN LATERAL (
    SELECT * FROM ledger.usage_event AS first
    WHERE b.revision = 1 AND first.hold_id = b.hold_id AND first.id_time = b.id_time AND first.revision = 0
    LIMIT 1
) AS f ON true
