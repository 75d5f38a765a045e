"""The control plane: organizations, keys, endpoints and their backends in Postgres. It may be slow; no stream waits."""
