-- What may be released: all that is frozen, less what epochs froze whose grace time is not over, less what the open carried
-- holds of other epochs reserve. One row for each lost epoch of an organization whose grace time is over, oldest first.
-- $1: the shard, $2: organizations.
WITH frozen AS (
    SELECT
        f.org_id, f.epoch, f.amount_nanos::numeric AS frozen_nanos, e.release_after <= clock_timestamp() AS over,
        (SELECT coalesce(sum(r.amount_nanos), 0) FROM ledger.escrow_freeze AS r
          WHERE r.org_id = f.org_id AND r.epoch = f.epoch AND r.kind = 'release') AS released_nanos
    FROM ledger.escrow_freeze AS f
    JOIN ledger.epoch AS e ON e.shard = f.shard AND e.closes = f.epoch
    WHERE f.kind = 'freeze' AND f.shard = $1 AND f.org_id = ANY($2::text[])
)
SELECT
    f.org_id, f.epoch, f.frozen_nanos - f.released_nanos AS unreleased_nanos,
    greatest(0, b.frozen_nanos
        - (SELECT coalesce(sum(w.frozen_nanos), 0) FROM frozen AS w WHERE w.org_id = f.org_id AND NOT w.over)
        - (SELECT coalesce(sum(c.held_nanos), 0) FROM ledger.carried_hold AS c
            WHERE c.org_id = f.org_id AND c.expires_at > clock_timestamp()
              AND c.epoch NOT IN (SELECT w.epoch FROM frozen AS w WHERE w.org_id = f.org_id AND NOT w.over))) AS due_nanos
FROM frozen AS f
JOIN ledger.balance AS b ON b.org_id = f.org_id
WHERE f.over
ORDER BY f.org_id, f.epoch
