"""An engine that costs less than what is measured with it: made-up answers in vLLM's shape, encoded beforehand.

The simulator (`backends.simulator`) is the faithful engine: it counts tokens, honours every parameter and misbehaves on
demand. This one knows the requests of a load and little else, because a benchmark is to measure the gateway, and on a
machine of two cores the engine has to share one with everything else.

CPU of either engine, asked directly by `benchmarks.load` in turns, two rounds (CPython 3.11, x86-64, two cores that
other work shared; on a quiet machine all of it is less):

===================================  ==============  ==============
..                                   mock            simulator
===================================  ==============  ==============
whole answer of 16 tokens            29 – 38 µs      205 – 220 µs
64 tokens at once, a chunk           0.7 – 1.0 µs    4.3 – 5.7 µs
300 streams at 10 ms, a chunk        8.5 – 8.7 µs    14.5 – 14.7 µs
===================================  ==============  ==============

Of the mock's 8.5 µs about 1 is Python; the rest is the kernel's ``send``. ``python -m benchmarks self-check`` measures
it again, and ``python -m benchmarks.micro.simulator`` the simulator.
"""
