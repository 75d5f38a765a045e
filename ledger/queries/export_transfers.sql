-- Transfers booked from $1 to before $2, of the organization $3 or of all.
SELECT
    t.posted_at, t.id AS transfer_id, t.kind, coalesce(d.org_id, c.org_id) AS org_id,
    d.kind AS debit_account, c.kind AS credit_account, t.debit_account AS debit_account_id, t.credit_account AS credit_account_id,
    t.amount_nanos, t.event_id
FROM ledger.transfer AS t
JOIN ledger.account AS d ON d.id = t.debit_account
JOIN ledger.account AS c ON c.id = t.credit_account
WHERE t.posted_at >= $1 AND t.posted_at < $2 AND ($3::text IS NULL OR d.org_id = $3 OR c.org_id = $3)
ORDER BY t.posted_at, t.id
