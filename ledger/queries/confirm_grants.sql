-- Marks grants that Redis has applied, where number and amount are those that were granted.
-- $1: the shard; $2 to $6: organizations, epochs, grant numbers, amounts and event numbers.
UPDATE ledger.escrow_grant AS g
SET state = 'applied', applied_at = coalesce(g.applied_at, now()), attempted_at = coalesce(g.attempted_at, now()),
    shard = $1, seq = seen.seq
FROM unnest($2::text[], $3::integer[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS seen (org_id, epoch, grant_seq, amount_nanos, seq)
WHERE g.org_id = seen.org_id AND g.epoch = seen.epoch AND g.grant_seq = seen.grant_seq
  AND g.amount_nanos = seen.amount_nanos AND (g.seq IS NULL OR g.seq = seen.seq)
RETURNING g.seq
