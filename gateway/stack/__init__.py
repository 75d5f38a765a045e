"""Processes around the workers: embedded databases, supervisor, demo set-up."""
