-- What the reconciler could not book as it stood and nobody has resolved.
SELECT
    kind || ' at ' || stream_id || ' of shard ' || shard AS subject, NULL::text AS expected, detail::text AS found,
    'noticed ' || to_char(noticed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC and not resolved' AS note
FROM ledger.anomaly
WHERE resolved_at IS NULL
ORDER BY id
