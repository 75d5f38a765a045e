"""An OpenAI-compatible engine that makes its answers up, for demos, tests and benchmarks.

It runs as its own process (`python -m backends.simulator --port 9000`), says in `/v1/models` that it is
a simulator, answers deterministically by seed, and fails on demand. It holds no model and knows nothing
of money or of the gateway.
"""
