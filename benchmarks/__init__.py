"""Programs that measure the gateway. ``python -m benchmarks --help`` has the standard set and a load of your own."""
