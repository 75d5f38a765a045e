-- What an organization could still get, when Redis came short. $1: the organization, $2: the epoch of its shard.
SELECT
    b.available_nanos,
    b.frozen_nanos,
    EXISTS (SELECT 1 FROM ledger.escrow_grant WHERE org_id = $1 AND state = 'pending' AND epoch = $2) AS pending,
    (SELECT coalesce(sum(amount_nanos), 0)::bigint FROM ledger.escrow_return
      WHERE org_id = $1 AND epoch = $2 AND hold_id IS NULL)
        AS returned_nanos,
    coalesce((SELECT extract(epoch FROM max(release_after) - clock_timestamp()) FROM ledger.epoch
               WHERE released_at IS NULL), 1) AS release_in_s
FROM ledger.balance AS b
WHERE b.org_id = $1
