-- Each shard's checkpoint and what was seen of its epoch. $1: the shards, $2: their epochs.
SELECT
    s.shard, s.epoch, p.holder, p.fence, p.epoch AS booked_epoch, p.seq AS booked_seq, p.stream_id,
    extract(epoch FROM clock_timestamp() - p.updated_at)::float8 AS silent_s,
    w.seq AS witnessed_seq, w.reported_at AS witnessed_at
FROM unnest($1::smallint[], $2::integer[]) AS s (shard, epoch)
LEFT JOIN ledger.reconcile_checkpoint AS p ON p.shard = s.shard
LEFT JOIN ledger.witness AS w ON w.shard = s.shard AND w.epoch = s.epoch
ORDER BY s.shard
