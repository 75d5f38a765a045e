"""Migrations of the ledger schema, applied in the order of their numbers."""
