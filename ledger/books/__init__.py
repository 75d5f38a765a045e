"""The books in Postgres: what was paid, spent, lent to Redis, and everything that is ever posted."""
