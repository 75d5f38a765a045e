"""An engine that costs less than what is measured with it: made-up answers in vLLM's shape, encoded beforehand.

The simulator (`backends.simulator`) is the faithful engine: it counts tokens, honours every parameter and misbehaves on
demand. This one knows the requests of a load and little else, because a benchmark is to measure the gateway, and on a
machine of two cores the engine has to share one with everything else.

CPU of the engine, each asked directly by `benchmarks.load` (CPython 3.13, x86-64 with 2 cores that other work shared):

COSTS_TABLE
"""
