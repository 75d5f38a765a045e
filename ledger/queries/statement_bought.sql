-- Usage (of export_usage_rows, which stands before this) summed by what was bought at which price. What failed was not
-- bought, whatever it used.
SELECT
    u.endpoint_id, u.alias, u.price_card_id, u.discount_bps,
    count(*) FILTER (WHERE u.revision = 0 AND u.kind <> 'void') AS requests,
    coalesce(sum(u.prompt_tokens) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS prompt_tokens,
    coalesce(sum(u.cached_prompt_tokens) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS cached_prompt_tokens,
    coalesce(sum(u.completion_tokens) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS completion_tokens,
    coalesce(sum(u.reasoning_tokens) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS reasoning_tokens,
    coalesce(sum(u.requests) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS priced_requests,
    coalesce(sum(u.images) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS images,
    coalesce(sum(u.audio_seconds) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS audio_seconds,
    coalesce(sum(u.eval_micros) FILTER (WHERE u.kind <> 'void'), 0)::bigint AS eval_micros,
    sum(u.amount_nanos)::bigint AS amount_nanos,
    sum(u.shortfall_nanos)::bigint AS shortfall_nanos,
    count(*) FILTER (WHERE u.shortfall_nanos > 0) AS short_requests,
    count(*) FILTER (WHERE u.revision = 1) AS corrections,
    coalesce(sum(u.amount_nanos) FILTER (WHERE u.revision = 1 AND u.amount_nanos > 0), 0)::bigint AS raised_nanos,
    coalesce(-sum(u.amount_nanos) FILTER (WHERE u.revision = 1 AND u.amount_nanos < 0), 0)::bigint AS refunded_nanos
FROM usage AS u
GROUP BY u.endpoint_id, u.alias, u.price_card_id, u.discount_bps
ORDER BY u.endpoint_id NULLS LAST, u.alias NULLS LAST, u.price_card_id, u.discount_bps
