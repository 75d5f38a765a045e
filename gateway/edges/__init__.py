"""Thin edges to the outside: state feed, metrics, request log."""
