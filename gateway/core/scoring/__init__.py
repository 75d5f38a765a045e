"""Scorers: how well a model's text answers a row. Pure; ``registry.scorer`` finds one by its name."""
