-- Organizations of a shard that have frozen credit of a lost epoch whose grace time is over, in the order of their ids.
-- $1: the shard, $2: from after this organization, $3: how many.
SELECT DISTINCT b.org_id
FROM ledger.balance AS b
JOIN ledger.escrow_freeze AS f ON f.org_id = b.org_id AND f.kind = 'freeze' AND f.shard = $1
JOIN ledger.epoch AS e ON e.shard = f.shard AND e.closes = f.epoch
WHERE b.frozen_nanos > 0 AND b.org_id > $2 AND e.release_after <= clock_timestamp()
ORDER BY b.org_id
LIMIT $3
