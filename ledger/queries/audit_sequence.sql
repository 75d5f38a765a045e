-- Events of a shard and epoch that are missing in the books or stand there twice: each number from 1 to the checkpoint, or to
-- where the books stood when the epoch was closed, once. What was recovered is no event of Redis.
WITH booked AS (
    SELECT shard, epoch, seq FROM ledger.usage_event WHERE NOT recovered
    UNION ALL SELECT shard, epoch, seq FROM ledger.escrow_grant WHERE seq IS NOT NULL
    UNION ALL SELECT shard, epoch, seq FROM ledger.escrow_return
    UNION ALL SELECT shard, epoch, seq FROM ledger.anomaly WHERE seq IS NOT NULL
),
summed AS (
    SELECT shard, epoch, count(*) AS events, count(DISTINCT seq) AS numbers, min(seq) AS first, max(seq) AS last
    FROM booked GROUP BY shard, epoch
),
reached AS (
    SELECT shard, epoch, seq FROM ledger.reconcile_checkpoint WHERE seq > 0
    UNION ALL SELECT shard, closes, lost_booked_seq FROM ledger.epoch WHERE closes IS NOT NULL AND lost_booked_seq > 0
)
SELECT
    'shard ' || coalesce(s.shard, p.shard) || ' epoch ' || coalesce(s.epoch, p.epoch) AS subject,
    'events 1 to ' || coalesce(p.seq, s.last) || ', each once' AS expected,
    coalesce(s.events, 0) || ' events, ' || coalesce(s.numbers, 0) || ' numbers, ' || coalesce(s.first, 0) || ' to '
        || coalesce(s.last, 0) AS found,
    'the sequence of booked events is not dense' AS note
FROM summed AS s
FULL JOIN reached AS p ON p.shard = s.shard AND p.epoch = s.epoch
WHERE (s.events, s.numbers, s.first, s.last) IS DISTINCT FROM (coalesce(p.seq, s.last), coalesce(p.seq, s.last), 1, coalesce(p.seq, s.last))
