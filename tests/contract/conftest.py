"""Fixtures of the contract tests."""

from tests.contract.flavours import chat_model, flavour
from tests.seed.conftest import catalog

__all__ = ["catalog", "chat_model", "flavour"]
