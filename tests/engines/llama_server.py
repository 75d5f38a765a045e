"""llama.cpp's server as a process: ``python -m tests.engines.llama_server FILE [PORT]``, in the engine's environment.

Prints the address when it answers. Ends when its standard input does, so it never outlives whoever started it.
"""

from __future__ import annotations

import sys

import xllamacpp

SLOTS, CONTEXT = 4, 512


def main() -> None:
    """Serve one model on loopback."""
    wanted = xllamacpp.CommonParams()
    wanted.model.path = sys.argv[1]
    wanted.port = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    wanted.n_parallel = SLOTS
    wanted.n_ctx = SLOTS * CONTEXT
    wanted.cpuparams.n_threads = 1
    wanted.n_gpu_layers = 0
    wanted.endpoint_metrics = True
    wanted.endpoint_slots = True
    wanted.use_jinja = True
    server = xllamacpp.Server(wanted)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
