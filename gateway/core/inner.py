"""What our own processes say to each other over HTTP.

Floor: core (pure). Names of headers, all in lower case. They only count on the control process's own listener, behind
the secret; what a client sends under these names is never passed on.
"""

from __future__ import annotations

from typing import Final

SECRET: Final = "x-pareta-control"  # noqa: S105  the name of the header, not what stands in it
KEY: Final = "x-pareta-key"
ORGANIZATION: Final = "x-pareta-org"
REQUEST: Final = "x-pareta-request"
ERROR: Final = "x-pareta-error"
"""Of an answer: what its refusal is called in the log."""

SAMPLES: Final = "/inner/samples"
"""Where workers hand over answers to be judged; no route of the platform begins so."""
