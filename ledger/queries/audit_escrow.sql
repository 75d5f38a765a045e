-- What each account in Redis should be at the booked position. $1: the epoch; only organizations of its shard are of use.
SELECT
    b.org_id,
    b.escrow_nanos - coalesce(g.pending_nanos, 0)::bigint AS spendable_nanos,
    coalesce(g.applied_nanos, 0)::bigint AS granted_nanos,
    coalesce(g.last_applied, 0) AS grant_seq,
    (coalesce(u.spent_nanos, 0) + coalesce(r.spent_nanos, 0))::bigint AS spent_nanos,
    coalesce(r.returned_nanos, 0)::bigint AS returned_nanos
FROM ledger.balance AS b
LEFT JOIN (
    SELECT org_id,
        sum(amount_nanos) FILTER (WHERE state = 'pending') AS pending_nanos,
        sum(amount_nanos) FILTER (WHERE state = 'applied') AS applied_nanos,
        max(grant_seq) FILTER (WHERE state = 'applied') AS last_applied
    FROM ledger.escrow_grant WHERE epoch = $1 GROUP BY org_id
) AS g ON g.org_id = b.org_id
LEFT JOIN (
    -- What was recovered, Redis does not know of.
    SELECT org_id, sum(amount_nanos) AS spent_nanos
    FROM ledger.usage_event WHERE epoch = $1 AND NOT recovered GROUP BY org_id
) AS u ON u.org_id = b.org_id
LEFT JOIN (
    -- With a hold: what Redis has spent although recovery had charged the hold before.
    SELECT org_id,
        sum(amount_nanos) FILTER (WHERE hold_id IS NOT NULL) AS spent_nanos,
        sum(amount_nanos) FILTER (WHERE hold_id IS NULL) AS returned_nanos
    FROM ledger.escrow_return WHERE epoch = $1 GROUP BY org_id
) AS r ON r.org_id = b.org_id
