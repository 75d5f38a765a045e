"""How many calls the hot path makes per small request, short stream and relayed chunk: ``python -m benchmarks.budget``.

Time depends on the machine and on who else uses it; a count of Python's calls does not, so a test can hold it against
a budget (``budget.json``) and fail when the hot path has grown. A real worker is counted, with metering on: Postgres,
Redis, journal and reconciler are there, the mock engine behind it.
"""
