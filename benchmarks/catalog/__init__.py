"""The demonstration catalogue's numbers: rows of our own making, and the command that measures on them."""
