"""``python -m gateway``, also installed as ``pareta-gateway``: the operator's command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its status."""
    from gateway.cli.main import run  # late, so that importing this module costs nothing

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
