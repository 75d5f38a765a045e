"""``python -m benchmarks.load --base-url …``: the same as ``python -m benchmarks load``."""

from benchmarks.cli import one_load

if __name__ == "__main__":
    one_load(prog_name="python -m benchmarks.load")
