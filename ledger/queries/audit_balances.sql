-- Balances that the transfers do not add up to, and accounts without a balance or a balance without accounts.
WITH moved AS (
    SELECT account, sum(nanos) AS nanos
    FROM (SELECT credit_account AS account, amount_nanos::numeric AS nanos FROM ledger.transfer
          UNION ALL SELECT debit_account, -amount_nanos::numeric FROM ledger.transfer) AS sides
    GROUP BY account
),
recomputed AS (
    SELECT a.org_id, a.kind, coalesce(m.nanos, 0) AS nanos
    FROM ledger.account AS a LEFT JOIN moved AS m ON m.account = a.id
    WHERE a.org_id IS NOT NULL
),
recorded AS (
    SELECT org_id, 'available' AS kind, available_nanos::numeric AS nanos FROM ledger.balance
    UNION ALL SELECT org_id, 'escrow', escrow_nanos FROM ledger.balance
    UNION ALL SELECT org_id, 'frozen', frozen_nanos FROM ledger.balance
)
SELECT
    coalesce(c.org_id, r.org_id) || ' ' || coalesce(c.kind, r.kind) AS subject,
    c.nanos::text AS expected, r.nanos::text AS found,
    'balance differs from the sum of its transfers' AS note
FROM recomputed AS c FULL JOIN recorded AS r ON r.org_id = c.org_id AND r.kind = c.kind
WHERE c.nanos IS DISTINCT FROM r.nanos
UNION ALL
-- What came in is what is left plus what was earned: nothing else may touch an account.
SELECT 'everyone', paid.nanos::text, (left_over.nanos + earned.nanos)::text, 'paid in differs from what is left plus revenue'
FROM (SELECT coalesce(sum(amount_nanos), 0)::numeric AS nanos FROM ledger.top_up) AS paid,
     (SELECT coalesce(sum(available_nanos::numeric + escrow_nanos + frozen_nanos), 0) AS nanos FROM ledger.balance) AS left_over,
     (SELECT coalesce(sum(m.nanos), 0) AS nanos FROM moved AS m JOIN ledger.account AS a ON a.id = m.account
       WHERE a.kind = 'revenue') AS earned
WHERE paid.nanos <> left_over.nanos + earned.nanos
