-- The trial balance: every account (of the organization $3 or all) before $1, its movements, and before $2. Balances stand on
-- the account's normal side.
WITH moved AS (
    SELECT account,
        coalesce(sum(debit) FILTER (WHERE posted_at < $1), 0) AS debits_before,
        coalesce(sum(credit) FILTER (WHERE posted_at < $1), 0) AS credits_before,
        coalesce(sum(debit) FILTER (WHERE posted_at >= $1), 0) AS debits,
        coalesce(sum(credit) FILTER (WHERE posted_at >= $1), 0) AS credits
    FROM (
        SELECT debit_account AS account, posted_at, amount_nanos::numeric AS debit, 0::numeric AS credit
        FROM ledger.transfer WHERE posted_at < $2
        UNION ALL
        SELECT credit_account, posted_at, 0, amount_nanos FROM ledger.transfer WHERE posted_at < $2
    ) AS sides
    GROUP BY account
),
signed AS (
    SELECT a.id, a.kind, a.org_id, a.normal_side, CASE a.normal_side WHEN 'debit' THEN 1 ELSE -1 END AS side,
        coalesce(m.debits_before, 0) AS debits_before, coalesce(m.credits_before, 0) AS credits_before,
        coalesce(m.debits, 0) AS debits, coalesce(m.credits, 0) AS credits
    FROM ledger.account AS a LEFT JOIN moved AS m ON m.account = a.id
    WHERE (a.opened_at < $2 OR m.account IS NOT NULL) AND ($3::text IS NULL OR a.org_id = $3)
)
SELECT
    id AS account_id, kind, org_id, normal_side,
    (side * (debits_before - credits_before))::bigint AS opening_nanos,
    debits::bigint AS debits_nanos, credits::bigint AS credits_nanos,
    (side * (debits_before - credits_before + debits - credits))::bigint AS closing_nanos
FROM signed
ORDER BY org_id NULLS FIRST, kind
