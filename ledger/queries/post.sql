-- Writes transfers and moves the balances of organizations by them. Platform accounts have no balance row.
-- $1 to $7: ids, kinds, organizations, debit and credit accounts, amounts, events.
WITH asked AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
        AS a (id, kind, org_id, debit, credit, amount_nanos, event_id)
),
posted AS (
    -- An account that is not there leaves NULL on purpose: that must fail and not vanish.
    INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
    SELECT
        a.id, ledger.id_time(a.id), a.kind,
        coalesce((SELECT x.id FROM ledger.account AS x WHERE x.org_id = a.org_id AND x.kind = a.debit),
                 (SELECT x.id FROM ledger.account AS x WHERE x.org_id IS NULL AND x.kind = a.debit)),
        coalesce((SELECT x.id FROM ledger.account AS x WHERE x.org_id = a.org_id AND x.kind = a.credit),
                 (SELECT x.id FROM ledger.account AS x WHERE x.org_id IS NULL AND x.kind = a.credit)),
        a.amount_nanos, a.event_id
    FROM asked AS a
)
UPDATE ledger.balance AS b
SET available_nanos = b.available_nanos + moved.available_nanos,
    escrow_nanos = b.escrow_nanos + moved.escrow_nanos,
    frozen_nanos = b.frozen_nanos + moved.frozen_nanos,
    changed_at = now()
FROM (
    SELECT org_id,
        sum((credit = 'available')::integer * amount_nanos - (debit = 'available')::integer * amount_nanos)::bigint AS available_nanos,
        sum((credit = 'escrow')::integer * amount_nanos - (debit = 'escrow')::integer * amount_nanos)::bigint AS escrow_nanos,
        sum((credit = 'frozen')::integer * amount_nanos - (debit = 'frozen')::integer * amount_nanos)::bigint AS frozen_nanos
    FROM asked GROUP BY org_id
) AS moved
WHERE b.org_id = moved.org_id
