-- Every top-up, grant, return, freeze, release and charge has exactly its transfer, on the right account of its organization,
-- and every transfer has its cause.
WITH cause AS (
    SELECT 'tx_' || right(id, 26) AS id, 'top_up' AS kind, id AS event_id, org_id, 'external' AS debit, amount_nanos FROM ledger.top_up
    UNION ALL
    SELECT 'tx_' || right(id, 26), 'grant', id, org_id, 'available', amount_nanos FROM ledger.escrow_grant
    UNION ALL
    SELECT 'tx_' || right(id, 26), 'return', id, org_id, 'escrow', amount_nanos FROM ledger.escrow_return
    UNION ALL
    SELECT CASE WHEN starts_with(id, 'covl_') THEN 'txcl_' WHEN kind = 'cover' THEN 'txc_' ELSE 'tx_' END || right(id, 26),
           CASE kind WHEN 'release' THEN 'release' ELSE 'freeze' END, id, org_id,
           CASE kind WHEN 'freeze' THEN 'escrow' WHEN 'release' THEN 'frozen' ELSE 'available' END, amount_nanos
    FROM ledger.escrow_freeze
    UNION ALL
    SELECT CASE revision WHEN 0 THEN 'tx_' ELSE 'txl_' END || right(hold_id, 26),
           CASE WHEN revision = 0 THEN 'charge' WHEN amount_nanos > 0 THEN 'late_charge' ELSE 'late_refund' END,
           hold_id, org_id,
           CASE WHEN amount_nanos < 0 THEN 'revenue' WHEN recovered THEN 'frozen' ELSE 'escrow' END, abs(amount_nanos)
    FROM ledger.usage_event WHERE amount_nanos <> 0
),
effect AS (
    SELECT t.id, t.kind, t.event_id, coalesce(d.org_id, c.org_id) AS org_id, d.kind AS debit, t.amount_nanos
    FROM ledger.transfer AS t
    LEFT JOIN ledger.account AS d ON d.id = t.debit_account
    LEFT JOIN ledger.account AS c ON c.id = t.credit_account
)
SELECT
    coalesce(cause.event_id, effect.event_id) AS subject,
    cause.kind || ' of ' || cause.org_id || ' from ' || cause.debit || ' ' || cause.amount_nanos AS expected,
    effect.kind || ' of ' || effect.org_id || ' from ' || effect.debit || ' ' || effect.amount_nanos AS found,
    CASE WHEN effect.id IS NULL THEN 'there is no transfer for it' WHEN cause.id IS NULL THEN 'transfer without a cause'
         ELSE 'transfer differs from its cause' END AS note
FROM cause FULL JOIN effect ON effect.id = cause.id
WHERE (cause.kind, cause.event_id, cause.org_id, cause.debit, cause.amount_nanos)
    IS DISTINCT FROM (effect.kind, effect.event_id, effect.org_id, effect.debit, effect.amount_nanos)
