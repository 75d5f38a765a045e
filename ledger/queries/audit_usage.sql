-- Every hold that ended, with its final description and its whole charge.
SELECT
    u.hold_id, u.kind, l.hold_id IS NOT NULL AS corrected,
    u.amount_nanos + coalesce(l.amount_nanos, 0) AS amount_nanos,
    coalesce(l.shortfall_nanos, u.shortfall_nanos) AS shortfall_nanos,
    coalesce(l.price_card_id, u.price_card_id) AS price_card_id,
    coalesce(l.endpoint_id, u.endpoint_id) AS endpoint_id,
    coalesce(l.prompt_tokens, u.prompt_tokens) AS prompt_tokens,
    coalesce(l.cached_prompt_tokens, u.cached_prompt_tokens) AS cached_prompt_tokens,
    coalesce(l.completion_tokens, u.completion_tokens) AS completion_tokens,
    coalesce(l.reasoning_tokens, u.reasoning_tokens) AS reasoning_tokens,
    coalesce(l.requests, u.requests) AS requests,
    coalesce(l.images, u.images) AS images,
    coalesce(l.audio_seconds, u.audio_seconds) AS audio_seconds,
    coalesce(l.eval_micros, u.eval_micros) AS eval_micros,
    coalesce(l.discount_bps, u.discount_bps) AS discount_bps,
    u.org_id,
    coalesce(l.started_at, u.started_at, u.id_time) AS started_at
FROM ledger.usage_event AS u
LEFT JOIN ledger.usage_event AS l ON l.hold_id = u.hold_id AND l.id_time = u.id_time AND l.revision = 1
WHERE u.revision = 0
UNION ALL
-- A correction without the event that it corrects: the first part of its charge was lost.
SELECT l.hold_id, 'orphan', true, l.amount_nanos, l.shortfall_nanos, l.price_card_id, l.endpoint_id, l.prompt_tokens,
    l.cached_prompt_tokens, l.completion_tokens, l.reasoning_tokens, l.requests, l.images, l.audio_seconds,
    l.eval_micros, l.discount_bps, l.org_id, coalesce(l.started_at, l.id_time)
FROM ledger.usage_event AS l
LEFT JOIN ledger.usage_event AS u ON u.hold_id = l.hold_id AND u.id_time = l.id_time AND u.revision = 0
WHERE l.revision = 1 AND u.hold_id IS NULL
