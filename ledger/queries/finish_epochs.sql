-- Notes on each epoch of a shard how much of the lost one has been released, and whether nothing is left of it.
-- $1: the shard.
WITH waiting AS (
    SELECT e.number, e.shard, e.closes FROM ledger.epoch AS e
    WHERE e.shard = $1 AND e.closes IS NOT NULL AND e.released_at IS NULL AND e.release_after <= clock_timestamp()
),
looked_at AS (
    SELECT
        w.number,
        (SELECT coalesce(sum(r.amount_nanos), 0) FROM ledger.escrow_freeze AS r
          WHERE r.shard = w.shard AND r.epoch = w.closes AND r.kind = 'release') AS released_nanos,
        NOT EXISTS (
            SELECT 1 FROM ledger.escrow_freeze AS f JOIN ledger.balance AS b ON b.org_id = f.org_id
            WHERE f.shard = w.shard AND f.epoch = w.closes AND f.kind = 'freeze'
              -- What is frozen beyond the epochs that are still in their grace time is of this one (or of its like).
              AND b.frozen_nanos > (
                SELECT coalesce(sum(g.amount_nanos), 0) FROM ledger.escrow_freeze AS g
                JOIN ledger.epoch AS later ON later.shard = g.shard AND later.closes = g.epoch
                WHERE g.org_id = f.org_id AND g.kind = 'freeze' AND later.release_after > clock_timestamp())
        ) AS finished
    FROM waiting AS w
)
UPDATE ledger.epoch AS e
SET released_nanos = l.released_nanos, released_at = CASE WHEN l.finished THEN clock_timestamp() END
FROM looked_at AS l
WHERE e.number = l.number AND (l.finished OR e.released_nanos <> l.released_nanos)
RETURNING e.closes, l.finished
