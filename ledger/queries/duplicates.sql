-- Events of this batch whose hold is in the books through another event. An event that was only read twice is not among
-- them. $1: the shard.
SELECT s.epoch, s.seq, s.kind, s.hold_id, s.org_id, s.amount_nanos
FROM pg_temp.staged_event AS s
JOIN ledger.usage_event AS u ON u.hold_id = s.hold_id AND u.id_time = s.id_time AND u.revision = s.revision
WHERE (u.epoch, u.shard, u.seq) <> (s.epoch, $1::smallint, s.seq)
ORDER BY s.epoch, s.seq
