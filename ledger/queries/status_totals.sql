-- Everything that is one number.
SELECT
    b.organizations, b.available_nanos, b.escrow_nanos, b.frozen_nanos,
    g.pending AS pending_grants, g.nanos AS pending_grant_nanos, g.oldest AS pending_since,
    c.holds AS carried_holds, c.expired AS carried_expired, c.held AS carried_held_nanos, c.accrued AS carried_accrued_nanos,
    a.anomalies,
    k.number AS block_number, encode(k.hash, 'hex') AS block_hash, k.to_posted_at AS block_until,
    t.transfers AS unsealed_transfers, t.oldest AS unsealed_since,
    clock_timestamp() AS now
FROM
    (SELECT count(*) AS organizations, coalesce(sum(available_nanos), 0) AS available_nanos,
        coalesce(sum(escrow_nanos), 0) AS escrow_nanos, coalesce(sum(frozen_nanos), 0) AS frozen_nanos
     FROM ledger.balance) AS b,
    (SELECT count(*) AS pending, coalesce(sum(amount_nanos), 0) AS nanos, min(created_at) AS oldest
     FROM ledger.escrow_grant WHERE state = 'pending') AS g,
    (SELECT count(*) AS holds, count(*) FILTER (WHERE expires_at < clock_timestamp()) AS expired,
        coalesce(sum(held_nanos), 0) AS held, coalesce(sum(accrued_nanos), 0) AS accrued
     FROM ledger.carried_hold) AS c,
    (SELECT count(*) AS anomalies FROM ledger.anomaly WHERE resolved_at IS NULL) AS a,
    (SELECT max(number) AS number FROM ledger.audit_block) AS newest
    LEFT JOIN ledger.audit_block AS k ON k.number = newest.number
    LEFT JOIN LATERAL (
        SELECT count(*) AS transfers, min(posted_at) AS oldest
        FROM ledger.transfer WHERE posted_at >= coalesce(k.to_posted_at, '-infinity')
    ) AS t ON true
