"""Tasks, models, aliases, measurements and the vendors' roster: imported from files, read by everybody."""
