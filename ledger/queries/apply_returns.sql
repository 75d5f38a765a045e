-- Credit that came back from Redis: the rows that are new. $1: ids, $2: organizations, $3: epochs, $4: the shard,
-- $5: event numbers, $6: amounts, $7: holds (null: given back, else spent there on a hold that recovery had charged),
-- $8: times.
INSERT INTO ledger.escrow_return (id, org_id, epoch, shard, seq, amount_nanos, hold_id, returned_at)
SELECT r.id, r.org_id, r.epoch, $4, r.seq, r.amount_nanos, r.hold_id, r.returned_at
FROM unnest($1::text[], $2::text[], $3::integer[], $5::bigint[], $6::bigint[], $7::text[], $8::timestamptz[])
    AS r (id, org_id, epoch, seq, amount_nanos, hold_id, returned_at)
ON CONFLICT (shard, epoch, seq) DO NOTHING
RETURNING id, org_id, amount_nanos
