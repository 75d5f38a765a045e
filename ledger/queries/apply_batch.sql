-- Books what lies in pg_temp.staged_event: usage first, then transfers and balances from the rows that were really new.
-- An event that was booked before changes nothing, nor does a correction of what recovery has booked: recovery corrected it
-- itself. The balances are locked, so whether it did is certain. $1: the shard.
WITH fresh AS (
    INSERT INTO ledger.usage_event (
        hold_id, id_time, revision, kind, org_id, key_id, endpoint_id, price_card_id, route, streamed, alias, outcome, status,
        source, prompt_tokens, cached_prompt_tokens, completion_tokens, reasoning_tokens, requests, images, audio_seconds,
        eval_micros, discount_bps, held_nanos, amount_nanos, shortfall_nanos, started_at, settled_at, ttft_ms, total_ms, epoch, shard, seq)
    SELECT
        hold_id, id_time, revision, kind, org_id, key_id, endpoint_id, price_card_id, route, streamed, alias, outcome, status,
        source, prompt_tokens, cached_prompt_tokens, completion_tokens, reasoning_tokens, requests, images, audio_seconds,
        eval_micros, discount_bps, held_nanos, amount_nanos, shortfall_nanos, started_at, settled_at, ttft_ms, total_ms, epoch, $1, seq
    FROM pg_temp.staged_event AS s
    -- Not by NOT EXISTS: that may be planned as one scan over all that was ever recovered.
    WHERE revision = 0 OR (
        SELECT u.recovered FROM ledger.usage_event AS u
        WHERE u.hold_id = s.hold_id AND u.id_time = s.id_time AND u.revision = 0) IS NOT TRUE
    ON CONFLICT (hold_id, id_time, revision) DO NOTHING
    RETURNING hold_id, id_time, revision, org_id, amount_nanos
),
posted AS (
    -- The escrow account is joined from the left on purpose: a charge of an organization without accounts must fail on
    -- NOT NULL and not vanish.
    INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
    SELECT
        CASE revision WHEN 0 THEN 'tx_' ELSE 'txl_' END || right(hold_id, 26),
        id_time,
        CASE WHEN revision = 0 THEN 'charge' WHEN amount_nanos > 0 THEN 'late_charge' ELSE 'late_refund' END,
        CASE WHEN amount_nanos > 0 THEN escrow.id ELSE revenue.id END,
        CASE WHEN amount_nanos > 0 THEN revenue.id ELSE escrow.id END,
        abs(amount_nanos),
        hold_id
    FROM fresh
    CROSS JOIN (SELECT id FROM ledger.account WHERE kind = 'revenue' AND org_id IS NULL) AS revenue
    LEFT JOIN ledger.account AS escrow ON escrow.org_id = fresh.org_id AND escrow.kind = 'escrow'
    WHERE amount_nanos <> 0
),
moved AS (
    UPDATE ledger.balance AS b
    SET escrow_nanos = b.escrow_nanos - spent.nanos, changed_at = now()
    FROM (SELECT org_id, sum(amount_nanos)::bigint AS nanos FROM fresh GROUP BY org_id) AS spent
    WHERE b.org_id = spent.org_id AND spent.nanos <> 0
)
SELECT count(*) AS booked, coalesce(sum(amount_nanos), 0)::bigint AS charged_nanos FROM fresh
