-- Transactions that may have posted transfers which nobody else sees yet: an INSERT locks its table before it takes the
-- time of its rows, and keeps the lock until its transaction has ended. Every role may read this view; prepared
-- transactions are in it, too.
SELECT l.virtualtransaction AS writer
FROM pg_locks AS l
WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'RowExclusiveLock'
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.relation IN (SELECT relid FROM pg_partition_tree('ledger.transfer'))
    AND l.pid IS DISTINCT FROM pg_backend_pid()
