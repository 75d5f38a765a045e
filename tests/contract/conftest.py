"""Contract tests of the platform need its catalogue."""

from tests.seed.conftest import catalog

__all__ = ["catalog"]
