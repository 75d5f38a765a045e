"""Micro benchmarks: one part at a time, on real servers."""
