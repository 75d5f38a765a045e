"""How the cost of a request grows with what there is: keys, endpoints, organizations, open streams, time.

It should not. ``python -m benchmarks growth`` shows the curves, ``python -m benchmarks soak`` an hour of constant load.
"""
