"""Migrations of the schema ``control``; applied by ``ledger.books.migrate``."""
