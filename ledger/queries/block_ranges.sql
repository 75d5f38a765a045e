-- The BRIN index on posted_at of each month, and how many of its block ranges are full.
SELECT i.relid::oid AS index, r.pages_per_range, pg_relation_size(x.indrelid) / s.block_size / r.pages_per_range AS ranges
FROM pg_partition_tree('ledger.transfer_posted') AS i
JOIN pg_index AS x ON x.indexrelid = i.relid
JOIN pg_class AS c ON c.oid = i.relid,
    LATERAL (SELECT coalesce((SELECT option_value::bigint FROM pg_options_to_table(c.reloptions)
        WHERE option_name = 'pages_per_range'), 128) AS pages_per_range) AS r,
    (SELECT current_setting('block_size')::bigint AS block_size) AS s
WHERE i.isleaf AND c.relkind = 'i'
ORDER BY i.relid
