"""The fault suite: a real gateway under load, everything that can break broken, and an independent count of the money.

``python -m tests.faults --help``; see ``runner.py`` for the order of things.
"""
