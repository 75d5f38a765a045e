"""Load over real sockets against any OpenAI base URL: what to send (`plan`), sending it (`run`), what came of it.

from benchmarks.load import Distribution, Load, Target, run

measurement = run(Target("http://127.0.0.1:8080", "pareta_sk_…", "ep_…"), Load(name="small", connections=64))
"""

from benchmarks.load.histogram import Histogram
from benchmarks.load.measurement import GroupUse, Measurement
from benchmarks.load.plan import Arrivals, Distribution, Load, PlanError, Target
from benchmarks.load.run import LoadFailed, Progress, run

__all__ = [
    "Arrivals",
    "Distribution",
    "GroupUse",
    "Histogram",
    "Load",
    "LoadFailed",
    "Measurement",
    "PlanError",
    "Progress",
    "Target",
    "run",
]
