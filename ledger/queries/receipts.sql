-- Usage with its price card and its transfer, one row per revision, oldest first. $1: hold ids, $2: their times.
-- The transfer's id follows from the hold's, so both are found by key inside one partition.
SELECT
    u.*, c.endpoint_id AS card_endpoint_id, c.rates, c.effective_from_ms, c.effective_to_ms,
    t.id AS transfer_id, t.kind AS transfer_kind, t.amount_nanos AS transfer_nanos, t.posted_at
FROM unnest($1::text[], $2::timestamptz[]) AS wanted (hold_id, id_time)
JOIN ledger.usage_event AS u ON u.hold_id = wanted.hold_id AND u.id_time = wanted.id_time
LEFT JOIN ledger.price_card AS c ON c.id = u.price_card_id
LEFT JOIN ledger.transfer AS t
    ON t.id = CASE u.revision WHEN 0 THEN 'tx_' ELSE 'txl_' END || right(u.hold_id, 26) AND t.id_time = u.id_time
ORDER BY u.hold_id, u.revision
