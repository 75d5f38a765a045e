-- Escrow by epoch: what was granted less what came back, was charged and was frozen. Of the last epoch of an organization it
-- is the escrow that it has; of all before, nothing may be left.
WITH moves AS (
    SELECT org_id, epoch, sum(amount_nanos) AS nanos FROM ledger.escrow_grant GROUP BY org_id, epoch
    UNION ALL SELECT org_id, epoch, -sum(amount_nanos) FROM ledger.escrow_return GROUP BY org_id, epoch
    UNION ALL SELECT org_id, epoch, -sum(amount_nanos) FROM ledger.usage_event WHERE NOT recovered GROUP BY org_id, epoch
    UNION ALL SELECT org_id, epoch, -sum(amount_nanos) FROM ledger.escrow_freeze WHERE kind = 'freeze' GROUP BY org_id, epoch
),
left_over AS (
    SELECT org_id, epoch, sum(nanos) AS nanos, epoch = max(epoch) OVER (PARTITION BY org_id) AS is_last
    FROM moves GROUP BY org_id, epoch
)
SELECT
    coalesce(l.org_id, b.org_id) || ' epoch ' || coalesce(l.epoch, 0) AS subject,
    CASE WHEN l.is_last IS NOT FALSE THEN b.escrow_nanos ELSE 0 END::text AS expected, coalesce(l.nanos, 0)::text AS found,
    'grants less returns, charges and what was frozen is not the escrow that is left of an epoch' AS note
FROM left_over AS l
FULL JOIN ledger.balance AS b ON b.org_id = l.org_id
WHERE coalesce(l.nanos, 0) IS DISTINCT FROM CASE WHEN l.is_last IS NOT FALSE THEN b.escrow_nanos ELSE 0 END
UNION ALL
-- A lost epoch must say what was frozen of it, and never release more.
SELECT
    'epoch ' || e.closes || ' of shard ' || e.shard, e.frozen_nanos::text, coalesce(f.frozen_nanos, 0)::text,
    'what a lost epoch froze is not what was frozen for it, or more was released'
FROM ledger.epoch AS e
LEFT JOIN (
    SELECT shard, epoch,
        sum(amount_nanos) FILTER (WHERE kind = 'freeze') AS frozen_nanos,
        sum(amount_nanos) FILTER (WHERE kind = 'release') AS released_nanos
    FROM ledger.escrow_freeze GROUP BY shard, epoch
) AS f ON f.shard = e.shard AND f.epoch = e.closes
WHERE e.closes IS NOT NULL
  AND (e.frozen_nanos <> coalesce(f.frozen_nanos, 0) OR coalesce(f.released_nanos, 0) > coalesce(f.frozen_nanos, 0))
