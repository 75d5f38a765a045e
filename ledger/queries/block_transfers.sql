-- The transfers posted from $1 (NULL: from the beginning) to before $2, in the order of the chain.
SELECT id, kind, debit_account, credit_account, amount_nanos, event_id, posted_at
FROM ledger.transfer
WHERE posted_at < $2 AND ($1::timestamptz IS NULL OR posted_at >= $1)
ORDER BY posted_at, id
