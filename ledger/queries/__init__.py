"""Named queries that are too long to read inside Python."""
