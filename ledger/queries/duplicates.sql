-- Events of this batch whose hold is in the books through another event, or through recovery. An event that was only read
-- twice is not among them. $1: the shard.
SELECT s.epoch, s.seq, s.kind, s.hold_id, s.org_id, s.amount_nanos, bool_or(u.recovered) AS recovered
FROM pg_temp.staged_event AS s
JOIN ledger.usage_event AS u ON u.hold_id = s.hold_id AND u.id_time = s.id_time
    AND (u.revision = s.revision OR (s.revision = 1 AND u.revision = 0 AND u.recovered))
WHERE (u.epoch, u.shard, u.seq) <> (s.epoch, $1::smallint, s.seq)
GROUP BY s.epoch, s.seq, s.kind, s.hold_id, s.org_id, s.amount_nanos
ORDER BY s.epoch, s.seq
