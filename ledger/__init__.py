"""Money and meters: holds in Redis, a double-entry ledger in Postgres."""
