-- What moved between an organization and the outside: before $2, and from $3 on. $1: the organization. Moves among its own
-- accounts cancel out. And what it has now.
SELECT
    coalesce(m.before_nanos, 0)::numeric AS before_nanos, coalesce(m.after_nanos, 0)::numeric AS after_nanos,
    b.available_nanos, b.escrow_nanos, b.frozen_nanos
FROM ledger.balance AS b
LEFT JOIN (
    SELECT sum(nanos) FILTER (WHERE posted_at < $2) AS before_nanos, sum(nanos) FILTER (WHERE posted_at >= $3) AS after_nanos
    FROM (
        SELECT posted_at, amount_nanos::numeric AS nanos FROM ledger.transfer
        WHERE credit_account IN (SELECT id FROM ledger.account WHERE org_id = $1)
        UNION ALL
        SELECT posted_at, -amount_nanos::numeric FROM ledger.transfer
        WHERE debit_account IN (SELECT id FROM ledger.account WHERE org_id = $1)
    ) AS sides
) AS m ON true
WHERE b.org_id = $1
