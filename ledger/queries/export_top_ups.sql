-- Payments booked from $1 to before $2, of the organization $3 or of all.
SELECT t.posted_at AS booked_at, p.id AS top_up_id, p.org_id, p.amount_nanos, p.idempotency_key, p.note, t.id AS transfer_id
FROM ledger.top_up AS p
JOIN ledger.transfer AS t ON t.event_id = p.id AND t.kind = 'top_up' AND t.id_time = ledger.id_time(p.id)
WHERE t.posted_at >= $1 AND t.posted_at < $2 AND ($3::text IS NULL OR p.org_id = $3)
ORDER BY t.posted_at, p.id
