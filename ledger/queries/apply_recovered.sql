-- Writes what lies in pg_temp.staged_event as recovered; returns how many rows were new. Its money is posted separately.
WITH fresh AS (
    INSERT INTO ledger.usage_event (
        hold_id, id_time, revision, kind, org_id, key_id, endpoint_id, price_card_id, route, streamed, alias, outcome, status,
        source, prompt_tokens, cached_prompt_tokens, completion_tokens, reasoning_tokens, requests, images, audio_seconds,
        eval_micros, discount_bps, held_nanos, amount_nanos, shortfall_nanos, started_at, settled_at, ttft_ms, total_ms, epoch, shard, seq, recovered)
    SELECT
        hold_id, id_time, revision, kind, org_id, key_id, endpoint_id, price_card_id, route, streamed, alias, outcome, status,
        source, prompt_tokens, cached_prompt_tokens, completion_tokens, reasoning_tokens, requests, images, audio_seconds,
        eval_micros, discount_bps, held_nanos, amount_nanos, shortfall_nanos, started_at, settled_at, ttft_ms, total_ms, epoch, shard, 0, true
    FROM pg_temp.staged_event
    ON CONFLICT (hold_id, id_time, revision) DO NOTHING
    RETURNING 1
)
SELECT count(*) FROM fresh
