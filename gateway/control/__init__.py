"""The control plane: organizations, keys, endpoints."""
